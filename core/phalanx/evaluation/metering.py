"""Counting the passes that an attack takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from phalanx.defense import Combined


@dataclass
class Passes:
    """Rows sent through a function so far.

    One image through the attacked function is one pass, whatever the function holds: an ensemble
    of ten members, or twenty draws of a stochastic model, count once.

    Attributes:
        forwards: images sent forward.
        backwards: images whose scores got a gradient.
    """

    forwards: int = 0
    backwards: int = 0


class Metered(nn.Module):
    """A function that counts its passes and tells an attack whether it may drop rows.

    Device and type of images and scores are whatever the module makes of them.

    Args:
        module: images ``(N, C, H, W)`` to scores ``(N, K)``.
        rowwise: whether a row's scores depend on that row alone (`phalanx.defense.View`); attacks
            read it through `phalanx.attack.may_drop_rows`.
        passes: where to count; its own counter if absent.
    """

    def __init__(self, module: nn.Module, *, rowwise: bool, passes: Passes | None = None) -> None:
        super().__init__()
        self.module = module
        self.rowwise = rowwise
        self.passes = Passes() if passes is None else passes

    def forward(self, x: Tensor) -> Tensor:
        """The module's scores ``(N, K)``; counts N forward, and N backward for each gradient."""
        scores: Tensor = self.module(x)
        rows = len(x)
        self.passes.forwards += rows
        if scores.requires_grad:
            scores.register_hook(lambda _: self._went_back(rows))
        return scores

    @property
    def members(self) -> tuple[Metered, ...]:
        """The function's members, counting here too; () where it has none."""
        parts = getattr(self.module, "members", ())
        return tuple(Metered(one, rowwise=self.rowwise, passes=self.passes) for one in parts)

    def combined(self, x: Tensor) -> Combined | None:
        """What the function averages, counted as one pass of it; None where it is no average."""
        ask = getattr(self.module, "combined", None)
        found: Combined | None = None if ask is None else ask(x)
        if found is None:
            return None
        rows = len(x)
        self.passes.forwards += rows
        if found.logits.requires_grad:
            found.logits.register_hook(lambda _: self._went_back(rows))
        return found

    def _went_back(self, rows: int) -> None:
        self.passes.backwards += rows
