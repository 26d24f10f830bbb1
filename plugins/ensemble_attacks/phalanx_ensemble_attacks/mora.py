"""MORA: projected gradient steps on an ensemble whose members are weighed anew at each step.

Paper: Yu, Gao and Xu, "MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing
Attack" (NeurIPS 2022, arXiv 2211.08008). The loss is `mixture.mixture`; this is the loop around
it. Runs with β = .5, 0, .25, .75 and 1 follow one another on what is left; in each the step falls
from 2 eps to 0 and is mixed with the step before as in Auto-PGD, a = .75.

Deviation: a random start is uniform in the ball. The code stretches it to the ball's surface,
    which in the dimension of images is nearly the same.
Deviation: an iterate is judged by the pass that gives its gradient, one forward pass a step; the
    code takes a second one.
Deviation: no targeted runs. Those of the code overwrite the reweighed loss, so that they are
    ordinary targeted steps: `apgd-t`.
Deviation: L2 points are clipped to the box before they are scaled into the ball, as everywhere in
    Phalanx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from phalanx.api import (
    L2,
    Attack,
    AttackInapplicable,
    Combined,
    Linf,
    Observer,
    Scores,
    Targeted,
    Threat,
    input_gradient,
    may_drop_rows,
    project,
    random_start,
    steepest,
)
from phalanx_ensemble_attacks.config import MORAConfig
from phalanx_ensemble_attacks.found import Found
from phalanx_ensemble_attacks.mixture import TEMPERATURE, ensemble_scores, mixture, standing

MOMENTUM = 0.75
"""Share a of the new step; the rest is of the step before."""


class MORA(Attack[MORAConfig]):
    """At most ``steps + 1`` forward and `steps` backward passes for each β and restart."""

    supports = (Linf, L2)

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; an observer sees step 0 again at each run, and all rows.

        Where rows are independent, a row is decided by its first fooling iterate and leaves.
        Otherwise, and for rows that nothing fools, the iterate that leads by most is kept.

        Raises:
            AttackInapplicable: if the function is no average of members, or for targets.
        """
        if isinstance(y, Targeted):
            raise AttackInapplicable(
                "attack 'mora' leads away from the labels and knows no targets: use 'apgd-ce' or "
                "'pgd' towards a label"
            )
        decides = may_drop_rows(model)
        found = Found(x)
        betas = self.config.betas * self.config.restarts
        for beta in betas:
            rows = found.undecided if observe is None else found.all
            if len(rows) == 0:
                break
            start = random_start(x[rows], self.threat, generator)
            state = Rows(rows, x[rows].detach(), y[rows], start, start)
            loss = Reweighed(model, beta, self.config.temperature)
            self._run(loss, state, found, decides=decides, observe=observe)
        return found.x

    def _run(
        self,
        loss: Reweighed,
        rows: Rows,
        found: Found,
        *,
        decides: bool,
        observe: Observer | None,
    ) -> None:
        """One run from the rows' current points, into `found`."""
        steps = self.config.steps
        for step in range(steps + 1):
            value, slope = loss.look(rows.current, rows.y, differentiate=step < steps)
            if observe is not None:
                observe(step, rows.current, value)
            lead = torch.where(loss.fooled, torch.inf, loss.lead) if decides else loss.lead
            found.take(rows.index, rows.current, lead)
            if decides and observe is None and bool(loss.fooled.any()):
                rows, slope = rows.keep(~loss.fooled), slope[~loss.fooled]
                if len(rows.index) == 0:
                    return
            if step < steps:
                size = step_size(step, steps, self.threat, schedule=self.config.schedule)
                ahead = moved(rows, slope, self.threat, size=size, mixes=step > 0)
                rows.previous, rows.current = rows.current, ahead


@dataclass
class Rows:
    """The rows still attacked; every field is per row.

    Attributes:
        index: the row's place in the batch.
        x: clean images ``(n, C, H, W)``.
        y: labels ``(n,)``.
        current: iterate i.
        previous: iterate i − 1.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    current: Tensor
    previous: Tensor

    def keep(self, mask: Tensor) -> Rows:
        """Only the rows where `mask` is true."""
        parts = (self.index, self.x, self.y, self.current, self.previous)
        return Rows(*(part[mask] for part in parts))


class Reweighed:
    """MORA's loss on a function; one pass of the members gives it and tells who is fooled.

    Args:
        model: a function with the method ``combined(x)`` (`phalanx.api.Combined`).
        beta: β.
        temperature: τ; None: by what is averaged.

    Attributes:
        lead: by how much the best wrong class led at the latest look, ``(n,)``.
        fooled: which rows were misclassified there, ``(n,)`` booleans.
    """

    lead: Tensor
    fooled: Tensor

    def __init__(self, model: Scores, beta: float, temperature: float | None) -> None:
        self.model = model
        self.beta = beta
        self.temperature = temperature

    def look(self, x: Tensor, y: Tensor, *, differentiate: bool) -> tuple[Tensor, Tensor]:
        """Loss ``(n,)`` and its gradient at images ``(n, C, H, W)``; zeros where none is asked."""
        if differentiate:
            return input_gradient(lambda images: self._loss(images, y), x)
        with torch.no_grad():
            return self._loss(x, y), torch.zeros_like(x)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        parts = combined(self.model, x)
        scores = ensemble_scores(parts)
        self.lead, self.fooled = standing(parts, scores, y)
        tau = TEMPERATURE[parts.rule] if self.temperature is None else self.temperature
        mixed = mixture(parts, scores, y, beta=self.beta, tau=tau)
        return functional.cross_entropy(mixed, y, reduction="none")


def combined(model: Scores, x: Tensor) -> Combined:
    """What the function averages at images ``(N, C, H, W)``.

    Raises:
        AttackInapplicable: if it is no average, with what to use.
    """
    ask = getattr(model, "combined", None)
    found: Combined | None = None if ask is None else ask(x)
    if found is None:
        raise AttackInapplicable(
            "attack 'mora' weighs the members of an ensemble, and this function is no average of "
            "members' probabilities, logits or votes: attack the view 'deployed' of a "
            "deterministic ensemble or 'expected' of a stochastic one, or use 'apgd-t', which "
            "needs no members"
        )
    return found


def step_size(
    step: int, steps: int, threat: Threat, *, schedule: Literal["linear", "cosine"]
) -> float:
    """Length of a step, in the threat's norm: from 2 eps towards 0."""
    assert isinstance(threat, Linf | L2)  # `supports` has been checked
    done = step / steps
    left = 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return 2.0 * threat.eps * left


def moved(rows: Rows, slope: Tensor, threat: Threat, *, size: float, mixes: bool) -> Tensor:
    """The next iterate: ``P(x + a (x' − x) + (1 − a)(x − x_prev))``, x' a projected step.

    Args:
        rows: where they are.
        slope: gradient at `current`.
        threat: ball and direction.
        size: length of the step.
        mixes: whether there was a step before; else the result is x'.
    """
    ahead = project(rows.current + size * steepest(slope, threat), rows.x, threat)
    if not mixes:
        return ahead
    inertia = (1.0 - MOMENTUM) * (rows.current - rows.previous)
    return project(rows.current + MOMENTUM * (ahead - rows.current) + inertia, rows.x, threat)
