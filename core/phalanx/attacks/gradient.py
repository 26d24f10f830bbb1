"""FGSM, BIM, PGD and MI-FGSM: one ascent loop, four ways to set it.

Papers: FGSM: Goodfellow et al., ICLR 2015, arXiv 1412.6572. BIM: Kurakin et al., 2016, arXiv
1607.02533. PGD: Madry et al., ICLR 2018, arXiv 1706.06083. MI-FGSM: Dong et al., CVPR 2018, arXiv
1710.06081. `Targeted` labels are reached by descending the loss at them.

Where rows are independent and nobody observes, a row that is fooled leaves the batch with the
iterate that fooled it: more steps could only cost passes, or lead it back.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from phalanx.attack import Attack, Observer, Scores, Targeted, may_drop_rows
from phalanx.attacks.ascent import Deciding, Objective, ascend, expectation, input_gradient
from phalanx.attacks.balls import per_row, random_start
from phalanx.attacks.config import BIMConfig, FGSMConfig, MIFGSMConfig, PGDConfig
from phalanx.attacks.losses import LOSSES, Goal, goal_of, substitute
from phalanx.specs import L1, L2, Linf, Threat

BALLS = (Linf, L2, L1)


def radius(threat: Threat) -> float:
    """A ball's eps."""
    assert isinstance(threat, BALLS)  # `supports` has been checked
    return threat.eps


class GoalObjective(Deciding):
    """A goal's loss on a model of independent rows; `reached` where the goal is."""

    def __init__(self, model: Scores, goal: Goal) -> None:
        self._model = model
        self._goal = goal

    def __call__(self, x: Tensor) -> Tensor:
        """See `Deciding`."""
        scores = self._model(x)
        self.reached = self._goal.reached(scores.detach())
        return self._goal.loss(scores)

    def __getitem__(self, rows: Tensor) -> GoalObjective:
        return GoalObjective(self._model, self._goal[rows])


def objective_of(model: Scores, goal: Goal) -> Objective | Deciding:
    """A goal's loss as a function of images; it decides rows where they are independent."""
    if may_drop_rows(model):
        return GoalObjective(model, goal)
    return lambda images: goal.loss(model(images))


class FGSM(Attack[FGSMConfig]):
    """One step of length eps from the clean image: 1 forward, 1 backward.

    An image that is fooled already stays as it is where rows are independent.
    """

    supports = BALLS

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; draws nothing."""
        size = radius(self.threat)
        objective = objective_of(model, goal_of(y))
        return ascend(objective, x, self.threat, steps=1, size=size, observe=observe)


class BIM(Attack[BIMConfig]):
    """Steps from the clean image: `steps` forward and backward passes."""

    supports = BALLS

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; draws nothing."""
        steps = self.config.steps
        size = self.config.step or 2.5 * radius(self.threat) / steps
        objective = objective_of(model, goal_of(y))
        return ascend(objective, x, self.threat, steps=steps, size=size, observe=observe)


class MIFGSM(Attack[MIFGSMConfig]):
    """Steps along an accumulated gradient: `steps` forward and backward passes."""

    supports = BALLS

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; draws nothing."""
        steps = self.config.steps
        return ascend(
            objective_of(model, goal_of(y)),
            x,
            self.threat,
            steps=steps,
            size=self.config.step or radius(self.threat) / steps,
            momentum=self.config.decay,
            observe=observe,
        )


class PGD(Attack[PGDConfig]):
    """Projected gradient descent: the last iterate (or the first that fools), of the best restart.

    One run costs `steps` × `eot` forward and backward passes. With several restarts each run's
    result is scored by `eot` forwards more, and where rows are independent only those not yet
    fooled are attacked again. An observer sees step 0 again at each restart, and all rows.
    """

    supports = BALLS

    def note(self, classes: int) -> str:
        """What was ascended instead of the named loss with so few classes; '' if it was itself."""
        return substitute(self.config.loss, classes)

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`."""
        goal = goal_of(y, LOSSES[self.config.loss])
        if self.config.restarts == 1:
            return self._run(model, x, goal, generator, observe)
        best = x.detach()
        merit = x.new_full((len(x),), -torch.inf)
        rows = torch.arange(len(x), device=x.device)
        decides = may_drop_rows(model)
        for _ in range(self.config.restarts):
            found = self._run(model, x[rows], goal[rows], generator, observe)
            loss, fooled = self._judge(model, found, goal[rows])
            value = torch.where(fooled, torch.inf, loss) if decides else loss
            rises = value > merit[rows]
            best = best.index_copy(0, rows, torch.where(per_row(rises, x), found, best[rows]))
            merit = merit.index_copy(0, rows, torch.where(rises, value, merit[rows]))
            if decides and observe is None:
                rows = rows[~fooled]
                if len(rows) == 0:
                    break
        return best

    def _run(
        self, model: Scores, x: Tensor, goal: Goal, generator: Generator, observe: Observer | None
    ) -> Tensor:
        """The last iterate of one run."""
        config = self.config
        random = config.start == "random"
        return ascend(
            objective_of(model, goal),
            x,
            self.threat,
            steps=config.steps,
            size=config.step or 2.5 * radius(self.threat) / config.steps,
            start=random_start(x, self.threat, generator) if random else None,
            gradient=expectation(input_gradient, config.eot),
            observe=observe,
        )

    def _judge(self, model: Scores, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Mean loss over `eot` draws, and whether the last of them is fooled: ``(N,)`` each."""
        loss = x.new_zeros(len(x))
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        with torch.no_grad():
            for _ in range(self.config.eot):
                scores = model(x)
                loss, fooled = loss + goal.loss(scores), goal.reached(scores)
        return loss / self.config.eot, fooled
