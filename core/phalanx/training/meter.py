"""Counts the passes that a training takes."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from phalanx.nn.member import Member


class PassMeter:
    """Counts images sent forward and gradients sent backward through each member's classifier.

    One image through one member is one pass, whoever sends it: the objective, an attack inside a
    transform, or a gradient of a gradient (which passes backward twice). Passes of a prepared copy
    (`phalanx.nn.prepare`) on which an attack takes its steps count as the module's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self._count = _Count()
        heads = {
            part.backbone.get_classifier() for part in module.modules() if isinstance(part, Member)
        }
        self._handles = [head.register_forward_hook(self._count) for head in (heads or {module})]

    @property
    def forwards(self) -> int:
        """Images times members, sent forward."""
        return self._count.forwards

    @property
    def backwards(self) -> int:
        """The same, sent backward."""
        return self._count.backwards

    def restore(self, forwards: int, backwards: int) -> None:
        """Set both counts, as when a training goes on or passes are not to count."""
        self._count.forwards, self._count.backwards = forwards, backwards

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


class _Count:
    """A forward hook that a copy of the module shares with it."""

    travels = True  # `phalanx.nn.prepare` copies modules with such hooks

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], scores: Tensor) -> None:
        self.forwards += len(scores)
        if scores.requires_grad:
            scores.register_hook(self._back)

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
