"""Auto-PGD on cross-entropy, on DLR, and towards each of the most likely wrong classes.

Paper: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (ICML 2020, arXiv 2003.01690); L1: "Mind the box" (ICML 2021, arXiv
2103.01208), whose runs go through balls of 3, 2 and 1 eps. The loop is `auto.auto_ascend`.

Where rows are independent, a row is decided by its first fooling iterate and leaves the batch.
Where they are not (a stochastic view), no draw decides: every row gets its iterate of highest
loss, and of several runs the one that leads by most.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from phalanx.attack import Attack, Observer, Scores, Targeted, may_drop_rows
from phalanx.attacks.ascent import expectation, input_gradient
from phalanx.attacks.auto import Found, auto_ascend
from phalanx.attacks.balls import project, random_start
from phalanx.attacks.config import APGDConfig, APGDTConfig
from phalanx.attacks.gradient import BALLS
from phalanx.attacks.losses import (
    LOSSES,
    Across,
    Goal,
    goal_of,
    margin,
    substitute,
    targeted_dlr,
    wrong_classes,
)
from phalanx.specs import L1, Threat

L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""(Factor of eps, share of the steps) of the balls that an L1 run goes through."""


class APGDCE(Attack[APGDConfig]):
    """Auto-PGD on cross-entropy: at most `steps` + 1 passes of each direction a run (L1: + 3)."""

    supports = BALLS
    criterion: ClassVar[str] = "ce"

    def note(self, classes: int) -> str:
        """What was ascended instead of the named loss with so few classes; '' if it was itself."""
        return substitute(self.criterion, classes)

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; an observer sees step 0 again at each restart, and all rows."""
        goal = goal_of(y, LOSSES[self.criterion])
        best = _nothing(x)
        for _ in range(self.config.restarts):
            rows = _still_open(best, observe)
            if len(rows) == 0:
                break
            _take(best, rows, _run(self, model, x[rows], goal[rows], generator, observe))
        return best.x


class APGDDLR(APGDCE):
    """Auto-PGD on the difference of logits ratio; on the margin for two classes."""

    criterion = "dlr"


class APGDT(Attack[APGDTConfig]):
    """Auto-PGD on the targeted DLR loss, towards the most likely wrong classes in turn.

    One forward pass ranks the classes; then at most `steps` + 1 forward and backward passes for
    each of min(`targets`, K − 1) classes, on the rows that no class before has broken.
    """

    supports = BALLS

    def note(self, classes: int) -> str:
        """What was ascended instead of targeted DLR with so few classes; '' if it was itself."""
        return substitute("targeted dlr", classes)

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; a `Targeted` label is the one target class, with the margin loss."""
        best = _nothing(x)
        goals: list[Goal]
        if isinstance(y, Targeted):
            goals = [goal_of(y, margin)]
        else:
            with torch.no_grad():
                scores = model(x)
            if may_drop_rows(model):
                best.reached.copy_(scores.argmax(1) != y)  # broken by the clean image
            targets = wrong_classes(scores, y, self.config.targets)
            goals = [Across(y, target, targeted_dlr) for target in targets.unbind(1)]
        for goal in goals:
            rows = _still_open(best, observe)
            if len(rows) == 0:
                break
            _take(best, rows, _run(self, model, x[rows], goal[rows], generator, observe))
        return best.x


def _run(
    attack: APGDCE | APGDT,
    model: Scores,
    x: Tensor,
    goal: Goal,
    generator: Generator,
    observe: Observer | None,
) -> Found:
    """One run from a random start; for L1 through balls that shrink to the threat."""
    config, threat = attack.config, attack.threat
    balls: list[tuple[Threat, int]] = [(threat, config.steps)]
    if isinstance(threat, L1):
        counts = [round(share * config.steps) for _, share in L1_STAGES[:-1]]
        counts.append(config.steps - sum(counts))
        balls = [(L1(f * threat.eps), n) for (f, _), n in zip(L1_STAGES, counts, strict=True)]
    found, start = _nothing(x), None
    for ball, steps in balls:
        start = random_start(x, ball, generator) if start is None else project(found.x, x, ball)
        found = auto_ascend(
            model,
            x,
            goal,
            ball,
            start=start,
            steps=steps,
            rho=config.rho,
            gradient=expectation(input_gradient, config.eot),
            decides=may_drop_rows(model) and ball == threat,
            observe=observe if ball == threat else None,  # a larger ball's points are no finds
        )
    return found


def _nothing(x: Tensor) -> Found:
    """Nothing found yet: the clean images."""
    unset = x.new_full((len(x),), -torch.inf)
    return Found(x.detach().clone(), unset, torch.zeros_like(unset, dtype=torch.bool))


def _still_open(best: Found, observe: Observer | None) -> Tensor:
    """Indices of the rows to attack: those not decided, or all if somebody observes."""
    if observe is not None:
        return torch.arange(len(best.x), device=best.x.device)
    return (~best.reached).nonzero().squeeze(1)


def _take(best: Found, rows: Tensor, found: Found) -> None:
    """Into `best` what leads by more, in these rows."""
    more = (found.lead > best.lead[rows]) & ~best.reached[rows]
    at = rows[more]
    best.x[at], best.lead[at] = found.x[more], found.lead[more]
    best.reached[at] = found.reached[more]
