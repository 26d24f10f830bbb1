"""The loop of Auto-PGD: step sizes that follow the progress made, restarts from the best point.

Papers: Croce and Hein, "Reliable evaluation of adversarial robustness" (ICML 2020, arXiv
2003.01690), section 3 and Algorithm 1, for L-inf and L2; Croce and Hein, "Mind the box" (ICML
2021, arXiv 2103.01208), section 3, for L1.

Deviation: the random start is uniform in the ball. Deviation: L2 points are clipped to the box
before they are scaled into the ball; scaled first, as in torchattacks, they lose length at the
box, and 100 images of an adversarially trained MNIST network were left 3 points more often under
cross-entropy and 6 under DLR.
Deviation: where rows are independent, a fooled row leaves the batch at once, since it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from phalanx.attack import Observer, Scores
from phalanx.attacks.ascent import InputGradient
from phalanx.attacks.balls import per_row, project, steepest
from phalanx.attacks.losses import Goal
from phalanx.specs import L1, L2, Linf, Threat

MOMENTUM = 0.75
"""α of Algorithm 1."""


@dataclass(frozen=True)
class Found:
    """What a run found.

    Attributes:
        x: per row the fooling iterate if rows are decided one by one and there was one, else
            the iterate of highest loss; ``(N, C, H, W)``.
        lead: by how much it reaches the goal, ``(N,)``; infinity for a decided row.
        reached: which rows are decided, ``(N,)``; none where rows are not independent.
    """

    x: Tensor
    lead: Tensor
    reached: Tensor


@dataclass
class Rows:
    """The rows still attacked; every field is per row, images ``(n, C, H, W)`` or ``(n,)``.

    Attributes:
        index: the row's place in the batch.
        x: clean images.
        current: iterate k; `previous` is iterate k − 1, `slope` and `loss` belong to `current`.
        best: iterate of highest loss, with its `best_slope`, `best_loss` and `best_lead`.
        size: step size η.
        rises: steps since the last checkpoint that raised the loss.
        halved: whether the last checkpoint lowered the step size.
        checked: highest loss at the last checkpoint.
        top: coordinates that an L1 step moves.
    """

    index: Tensor
    x: Tensor
    current: Tensor
    previous: Tensor
    slope: Tensor
    loss: Tensor
    best: Tensor
    best_slope: Tensor
    best_loss: Tensor
    best_lead: Tensor
    size: Tensor
    rises: Tensor
    halved: Tensor
    checked: Tensor
    top: Tensor

    def keep(self, mask: Tensor) -> Rows:
        """Only the rows where `mask` is true."""
        return Rows(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    def go_back(self, where: Tensor) -> None:
        """Continue from the best point in these rows."""
        wide = per_row(where, self.x)
        self.current = torch.where(wide, self.best, self.current)
        self.slope = torch.where(wide, self.best_slope, self.slope)
        self.loss = torch.where(where, self.best_loss, self.loss)


class Rule(Protocol):
    """How steps are made and when they shrink."""

    def checkpoints(self, steps: int) -> list[int]:
        """Numbers of steps after which `adapt` is called."""

    def move(self, rows: Rows, threat: Threat, step: int) -> Tensor:
        """The next iterate."""

    def adapt(self, rows: Rows, span: int) -> None:
        """Change the step sizes after `span` steps, and go back to the best points."""


@dataclass(frozen=True)
class Momentum:
    """Algorithm 1 of the ICML 2020 paper, for L-inf and L2."""

    rho: float = 0.75

    def checkpoints(self, steps: int) -> list[int]:
        """``w_j = ⌈p_j N⌉``: p is 0, .22, then grows by ``max(p_j − p_{j−1} − .03, .06)``."""
        before, share = 0, 22  # in hundredths, so that ⌈·⌉ is exact
        found: list[int] = []
        while share <= 100:
            found.append(-(-share * steps // 100))
            before, share = share, share + max(share - before - 3, 6)
        return found

    def move(self, rows: Rows, threat: Threat, step: int) -> Tensor:
        """Eq. (1): a projected step, mixed with the step before; the first one is plain."""
        ahead = rows.current + per_row(rows.size, rows.x) * steepest(rows.slope, threat)
        z = project(ahead, rows.x, threat)
        if step == 0:
            return z
        inertia = (1.0 - MOMENTUM) * (rows.current - rows.previous)
        return project(rows.current + MOMENTUM * (z - rows.current) + inertia, rows.x, threat)

    def adapt(self, rows: Rows, span: int) -> None:
        """Halve where too few steps rose, or where neither step size nor best loss changed."""
        few = rows.rises < self.rho * span  # condition 1
        stuck = ~rows.halved & (rows.best_loss <= rows.checked)  # condition 2
        rows.halved = few | stuck
        rows.size = torch.where(rows.halved, rows.size / 2.0, rows.size)
        rows.checked = rows.best_loss
        rows.go_back(rows.halved)


@dataclass(frozen=True)
class Sparse:
    """The rule of the ICML 2021 paper, for L1: the sparsity of steps follows the best point's.

    Attributes:
        largest: first and largest step size, eps; steps shrink by 1.5 down to a tenth of it.
    """

    largest: float

    def checkpoints(self, steps: int) -> list[int]:
        """Every ⌈.04 N⌉ steps."""
        every = -(-steps // 25)
        return list(range(every, steps + 1, every))

    def move(self, rows: Rows, threat: Threat, step: int) -> Tensor:
        """A step along the sign of the `top` largest entries, then the exact projection."""
        along = steepest(rows.slope, threat, rows.current, top=rows.top)
        return project(rows.current + per_row(rows.size, rows.x) * along, rows.x, threat)

    def adapt(self, rows: Rows, span: int) -> None:
        """Sparser by 1.5 than the best point; where that shrinks, start again at the best."""
        changed = (rows.best - rows.x).flatten(1).count_nonzero(1)
        top = (changed / 1.5).long().clamp_min(1)
        sparser = top < 0.95 * rows.top
        shrunk = (rows.size / 1.5).clamp_min(self.largest / 10.0)
        rows.size = torch.where(sparser, torch.full_like(rows.size, self.largest), shrunk)
        rows.top = top
        rows.go_back(sparser)


def auto_ascend(
    model: Scores,
    x: Tensor,
    goal: Goal,
    threat: Threat,
    *,
    start: Tensor,
    steps: int,
    rho: float,
    gradient: InputGradient,
    decides: bool,
    observe: Observer | None = None,
) -> Found:
    """One run of Auto-PGD: at most ``steps + 1`` forward and backward passes.

    Args:
        model: images to scores ``(N, K)``.
        x: clean images ``(N, C, H, W)`` in [0, 1].
        goal: what is ascended and when a row is done.
        threat: `Linf`, `L2` or `L1`.
        start: first iterate, within the threat.
        steps: number of steps N.
        rho: share of rising steps below which the step is halved.
        gradient: how loss and gradient are got.
        decides: whether one fooling iterate decides its row (rows are independent); such rows
            leave the batch unless somebody observes.
        observe: called with each iterate of all rows.
    """
    found = Found(
        start.clone(),
        x.new_full((len(x),), -torch.inf),
        torch.zeros(len(x), dtype=torch.bool, device=x.device),
    )
    rule: Rule = Sparse(threat.eps) if isinstance(threat, L1) else Momentum(rho)
    marks, last = set(rule.checkpoints(steps)), 0
    rows = _first(x.detach(), start.detach(), threat)
    for step in range(steps + 1):
        if step > 0:
            rows.current, rows.previous = rule.move(rows, threat, step - 1), rows.current
        reached = _look(model, rows, goal[rows.index], gradient)
        if observe is not None:
            observe(step, rows.current, rows.loss)
        if decides:
            _decide(found, rows, reached)
            if observe is None and bool(reached.any()):
                rows = rows.keep(~reached)
                if len(rows.index) == 0:
                    break
        if step in marks:
            rule.adapt(rows, step - last)
            rows.rises, last = torch.zeros_like(rows.rises), step
    undecided = ~found.reached[rows.index]
    at = rows.index[undecided]
    found.x[at], found.lead[at] = rows.best[undecided], rows.best_lead[undecided]
    return found


def _first(x: Tensor, start: Tensor, threat: Threat) -> Rows:
    """The state before the first look."""
    N, D = len(x), x[0].numel() if len(x) else 0
    lowest, zero = x.new_full((N,), -torch.inf), x.new_zeros(N)
    eps = threat.eps if isinstance(threat, Linf | L2 | L1) else 0.0
    nonzero = (start - x).flatten(1).count_nonzero(1)
    return Rows(
        index=torch.arange(N, device=x.device),
        x=x,
        current=start,
        previous=start,
        slope=torch.zeros_like(x),
        loss=-lowest,  # so that the first look counts as no rise
        best=start,
        best_slope=torch.zeros_like(x),
        best_loss=lowest,
        best_lead=lowest,
        size=torch.full_like(zero, eps if isinstance(threat, L1) else 2.0 * eps),  # η⁰
        rises=zero,
        halved=torch.zeros(N, dtype=torch.bool, device=x.device),
        checked=lowest,
        top=(nonzero / 1.5).clamp(1.0, max(1.0, 0.2 * D)).long(),  # k⁰ = .2 d, or a sparse start's
    )


def _look(model: Scores, rows: Rows, goal: Goal, gradient: InputGradient) -> Tensor:
    """Loss and slope at the current iterates, the best ones brought up to date; who is fooled."""
    leads: list[Tensor] = []
    reached: list[Tensor] = []

    def objective(images: Tensor) -> Tensor:
        scores = model(images)
        leads.append(goal.lead(scores.detach()))
        reached.append(goal.reached(scores.detach()))
        return goal.loss(scores)

    loss, rows.slope = gradient(objective, rows.current)
    lead = torch.stack(leads).mean(0)
    rows.rises = rows.rises + (loss > rows.loss)
    rows.loss = loss
    better = loss > rows.best_loss
    wide = per_row(better, rows.x)
    rows.best = torch.where(wide, rows.current, rows.best)
    rows.best_slope = torch.where(wide, rows.slope, rows.best_slope)
    rows.best_loss = torch.where(better, loss, rows.best_loss)
    rows.best_lead = torch.where(better, lead, rows.best_lead)
    return reached[-1]


def _decide(found: Found, rows: Rows, reached: Tensor) -> None:
    """Keep the first fooling iterate of each row."""
    new = reached & ~found.reached[rows.index]
    at = rows.index[new]
    found.x[at], found.lead[at], found.reached[at] = rows.current[new], torch.inf, True
