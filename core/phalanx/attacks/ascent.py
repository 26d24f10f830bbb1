"""THE loop of iterated gradient attacks, over any objective with one value per image.

One forward and one backward pass per step, and the gradient with respect to the images only.
What is ascended is the caller's: cross-entropy on a model, a distance of features, the norm of a
gradient. Momentum: Dong et al., "Boosting adversarial attacks with momentum" (CVPR 2018, arXiv
1710.06081), eq. (6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor

from phalanx.attack import Observer
from phalanx.attacks.balls import finite, per_row, project, steepest
from phalanx.errors import AttackInapplicable
from phalanx.specs import Threat

Objective = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` to a loss per row ``(N,)``, to be ascended."""
InputGradient = Callable[[Objective, Tensor], tuple[Tensor, Tensor]]
"""Objective and images to (loss per row ``(N,)``, gradient ``(N, C, H, W)``)."""


class Deciding(ABC):
    """An objective over independent rows that also tells which rows need no further step.

    Attributes:
        reached: which rows of the latest call are done, ``(N,)`` booleans.
    """

    reached: Tensor

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Loss per row ``(N,)`` of images ``(N, C, H, W)``; sets `reached`."""

    @abstractmethod
    def __getitem__(self, rows: Tensor) -> Self:
        """The objective of some rows, given by a mask or by indices."""


def input_gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """The objective and its gradient with respect to the images, in one forward and backward.

    Args:
        objective: images to a loss per row; rows are summed, so each keeps its own gradient.
        x: images ``(N, C, H, W)``; left as they are.

    Returns:
        Loss ``(N,)`` and gradient ``(N, C, H, W)``, both detached.

    Raises:
        AttackInapplicable: if the loss does not depend on the images differentiably.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = objective(x)
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
    if gradient is None:
        raise AttackInapplicable(
            "a gradient attack needs scores that depend on the images differentiably, and these "
            "do not: attack a differentiable view, or use an attack on scores such as 'square'"
        )
    return loss.detach(), gradient.detach()


def expectation(gradient: InputGradient, k: int) -> InputGradient:
    """The mean of `k` calls of a gradient: expectation over a stochastic objective's draws.

    It averages gradients of per-draw losses (Athalye et al., ICML 2018); the gradient of the
    averaged probability is the view ``expected`` of a model instead.
    """
    if k == 1:
        return gradient

    def averaged(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
        loss, total = gradient(objective, x)
        for _ in range(k - 1):
            more, slope = gradient(objective, x)
            loss, total = loss + more, total + slope
        return loss / k, total / k

    return averaged


def ascend(
    objective: Objective | Deciding,
    x: Tensor,
    threat: Threat,
    *,
    steps: int,
    size: float,
    start: Tensor | None = None,
    momentum: float = 0.0,
    keep: Literal["last", "best"] = "last",
    gradient: InputGradient = input_gradient,
    observe: Observer | None = None,
) -> Tensor:
    """Ascend an objective within a threat by steps along the steepest direction.

    Args:
        objective: images to a loss per row ``(N,)``. Of a `Deciding` one, rows that are done leave
            the batch with the iterate that did it, unless somebody observes.
        x: clean images ``(N, C, H, W)`` in [0, 1], the centre of the ball.
        threat: `Linf`, `L2` or `L1`; it gives direction and projection.
        steps: number of steps; each costs one forward and one backward pass.
        size: length of a step, in the threat's norm.
        start: first iterate; absent: `x`.
        momentum: decay μ of the sum of gradients, each divided by its mean absolute value;
            0: the plain gradient.
        keep: return the last iterate, or each row's iterate of highest loss (one forward more).
        gradient: how loss and gradient are got; `expectation(input_gradient, k)` averages draws.
        observe: called with each iterate and its loss, the final one included (one forward more).

    Returns:
        Images ``(N, C, H, W)`` within the threat, detached.
    """
    x = x.detach()
    current = x if start is None else start.detach()
    best, highest = current, current.new_full((len(x),), -torch.inf)
    velocity = torch.zeros_like(x) if momentum else x
    done = _Done(current)
    for step in range(steps):
        loss, slope = gradient(objective, current)
        if observe is not None:
            observe(step, current, loss)
        elif isinstance(objective, Deciding) and bool(objective.reached.any()):
            left = done.leave(objective.reached, current)
            if len(done.rows) == 0:
                return done.images
            objective = objective[left]
            x, current, loss, slope, velocity, best, highest = (
                part[left] for part in (x, current, loss, slope, velocity, best, highest)
            )
        if keep == "best":
            best, highest = _higher(best, highest, current, loss)
        if momentum:
            velocity = momentum * velocity + by_mean_size(slope)  # eq. (6)
            slope = velocity
        current = project(current + size * steepest(slope, threat, current), x, threat)
    if keep == "last" and observe is None:
        return done.with_rest(current)
    with torch.no_grad():
        loss = objective(current)
    if observe is not None:
        observe(steps, current, loss)
    return done.with_rest(_higher(best, highest, current, loss)[0] if keep == "best" else current)


class _Done:
    """The images of rows that left the batch, and which rows are still in it.

    Attributes:
        images: ``(N, C, H, W)``; what stands in the rows still in the batch means nothing.
        rows: indices of the rows still in the batch, ``(n,)``.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.rows = torch.arange(len(images), device=images.device)
        self._shared = True

    def leave(self, reached: Tensor, current: Tensor) -> Tensor:
        """Keep the images of the rows that are done; indices of the others, in the batch."""
        if self._shared:
            self.images, self._shared = self.images.clone(), False
        self.images[self.rows[reached]] = current[reached]
        left = (~reached).nonzero().squeeze(1)
        self.rows = self.rows[left]
        return left

    def with_rest(self, current: Tensor) -> Tensor:
        """All rows, `current` those still in the batch."""
        if self._shared:
            return current
        return self.images.index_copy(0, self.rows, current)


def by_mean_size(gradient: Tensor) -> Tensor:
    """Each row over its mean absolute value; (1, −3, 0, 4) becomes (.5, −1.5, 0, 2)."""
    gradient = finite(gradient)
    size = gradient.abs().flatten(1).mean(1)
    return gradient / per_row(size.clamp_min(torch.finfo(size.dtype).tiny), gradient)


def _higher(best: Tensor, highest: Tensor, x: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the images of higher loss, and that loss."""
    rises = loss > highest
    return torch.where(per_row(rises, x), x, best), torch.where(rises, loss, highest)
