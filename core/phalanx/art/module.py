"""The one module that ART differentiates: everything a defense does lies in its forward.

ART re-wraps ``estimator.model`` in plain classifiers of its own (APGD, AutoAttack,
Brendel-Bethge), so what stands in the estimator's methods does not reach those attacks. Casting,
freezing, modes and random streams therefore live here.
"""

from __future__ import annotations

import difflib
from typing import Self

from torch import Tensor, nn

from phalanx.attack import attacking
from phalanx.defense import DefendedModel, cast_like
from phalanx.errors import ConfigError


class ArtModule(nn.Module):
    """A view of a defended model, safe to hand to ART.

    It is no ``nn.Sequential``, and must not become one: ART unrolls those and skips forward.

    In evaluation mode each forward freezes the parameters and sets every submodule to evaluation,
    and gives both back afterwards: attacks build no parameter gradients, and the model that the
    user goes on training keeps its flags and modes. In training mode (`fit`) the model's own
    flags hold, so frozen and pruned members stay as they are.

    Attributes:
        model: the defended model (or any module); its layers and its state are this module's.
        view: name of the view that forward computes.
        seed: opened the view.
        rowwise: whether a row's scores depend on that row alone.
    """

    view: str
    seed: int
    rowwise: bool

    def __init__(self, model: nn.Module, view: str = "deployed", seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self._modes: list[tuple[nn.Module, bool]] = []
        self.open(view, seed)
        self.training = False

    def open(self, view: str, seed: int) -> None:
        """Open a view afresh: its stream starts again.

        Raises:
            ConfigError: if the model has no such view.
        """
        opened, rowwise = self.model, False
        known: list[str] = ["deployed"]
        if isinstance(self.model, DefendedModel):
            views = self.model.views()
            known = list(views)
            if view in views:
                opened, rowwise = views[view].open(seed), views[view].rowwise
        if view not in known:
            near = difflib.get_close_matches(view, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                [f"view: no view {view!r}; {hint}this model has: {', '.join(known)}"],
                source="as_art",
            )
        self.view, self.seed, self.rowwise = view, seed, rowwise
        self._opened = (opened,)  # in a tuple: shares model's weights, so it must not own them too

    def _parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.model, *self._opened])

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # nn.Module's signature
        """Training mode for the whole model, or back to the modes it had before."""
        if mode and not self.training:
            parts = self._parts()
            self._modes = [(part, part.training) for part in parts.modules()]
            parts.train()
        elif self.training and not mode:
            for part, before in self._modes:
                part.training = before
            self._modes = []
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` of any real dtype to the view's scores ``(N, K)``."""
        x = cast_like(x, self)
        opened: nn.Module = self._opened[0]
        if self.training:
            scores: Tensor = opened(x)
            return scores
        with attacking(self._parts()):
            scores = opened(x)
        return scores

    def layers(self) -> dict[str, nn.Module]:
        """Every layer of `model` that has a forward, by its dotted name there, in order."""
        empty = nn.Module.forward
        return {
            name: part
            for name, part in self.model.named_modules()
            if name and type(part).forward is not empty
        }
