"""A natural perturbation in an attack's place, so that an evaluation has cells of it.

It has no ball: examples are asked to lie in [0, 1], and nothing else. With one draw it does not
look at the model; with several the worst of them is kept for each image, an attacker who waits for
bad weather (Engstrom et al., ICML 2019, arXiv 1712.02779: "worst-of-k").
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from phalanx.attack import Attack, Observer, Scores, Targeted, may_drop_rows
from phalanx.attacks.balls import per_row
from phalanx.attacks.config import NaturalConfig
from phalanx.attacks.losses import goal_of
from phalanx.config import PerturbationConfig
from phalanx.errors import PluginContractError
from phalanx.perturbation import Perturbation
from phalanx.specs import NoBall


class NaturalAttack(Attack[NaturalConfig]):
    """Perturbed images: one draw and no pass, or the worst of `draws`, a forward pass each.

    The worst is the draw of highest cross-entropy; where rows are independent one that fools goes
    before one that does not.
    """

    supports = (NoBall,)

    def __init__(self, config: NaturalConfig) -> None:
        super().__init__(config)
        self.perturbation: Perturbation[PerturbationConfig] = config.perturbation.create()

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; an observer sees each draw, which costs a forward pass.

        Raises:
            PluginContractError: if the perturbation changes the images' shape.
        """
        worst = self._draw(x, generator)
        draws = self.config.draws
        if draws == 1 and observe is None:
            return worst
        goal, decides = goal_of(y), may_drop_rows(model)
        highest = x.new_full((len(x),), -torch.inf)
        for number in range(draws):
            images = worst if number == 0 else self._draw(x, generator)
            with torch.no_grad():
                scores = model(images)
                loss = goal.loss(scores)
            if observe is not None:
                observe(number, images, loss)
            value = torch.where(goal.reached(scores), torch.inf, loss) if decides else loss
            higher = value > highest
            worst = torch.where(per_row(higher, x), images, worst)
            highest = torch.where(higher, value, highest)
        return worst

    def _draw(self, x: Tensor, generator: Generator) -> Tensor:
        images = self.perturbation(x, generator=generator).detach()
        if images.shape != x.shape:
            name = self.config.perturbation.use
            raise PluginContractError(
                f"perturbation {name!r} returned {tuple(images.shape)} for images "
                f"{tuple(x.shape)}; it must return their shape",
                plugin=type(self.perturbation).__module__,
            )
        return images
