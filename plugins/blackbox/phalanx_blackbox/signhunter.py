"""SignHunter: the signs of the gradient by trial, block by block, from the loss alone.

Paper: Al-Dujaili, O'Reilly, "Sign Bits Are All You Need for Black-Box Attacks" (ICLR 2020, arXiv
1902.06894): divide and conquer over the signs, inside an attack that begins anew from its result.

The directional derivative along a sign vector s is largest at the gradient's signs, and it is a
sum over coordinates: so blocks of s are flipped, the whole, halves, quarters, down to single ones,
and a flip stays if the loss at ``x_o + eps s`` does not fall by it. When all blocks are tried a new
round begins around the image reached, which becomes x_o.

Deviation: the image that is asked is the projected one, in the ball and in the box, so what fooled
is what is returned. The code asks ``x_o + eps s`` itself, which the box or, after the first round,
the ball may forbid, and takes the projection as its example.
Deviation: losses are compared instead of ``(loss(x_o + eps s) − loss(x_o)) / eps``: the order is
the same, and x_o need not be asked again. So a round takes one query a block and one to begin,
where the code counts three, and the clean image takes one.
Deviation: any queried image that fools ends a row's search, also one whose loss is lower.
Deviation: x_o is the image after the round's last flip; in the code it is that before it.
Deviation: rows still right at the end return the image of highest loss of all rounds, the code the
last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from phalanx.api import (
    L2,
    Attack,
    Goal,
    Linf,
    Observer,
    Scores,
    Targeted,
    Threat,
    goal_of,
    margin,
    may_drop_rows,
    project,
)
from phalanx_blackbox.config import Loss, SignHunterConfig
from phalanx_blackbox.search import ballot, blocks, carried, step


@dataclass(frozen=True)
class Hunt:
    """What a sign hunt found.

    Attributes:
        x: of the images asked one that fooled, else that of highest loss ``(N, C, H, W)``.
        loss: its loss ``(N,)``.
        fooled: whether it did ``(N,)``.
        queries: forward passes each row took ``(N,)``, the clean image's included.
        signs: of the current round ``(N, C, H, W)``, ±1.
    """

    x: Tensor
    loss: Tensor
    fooled: Tensor
    queries: Tensor
    signs: Tensor


def sign_hunt(
    model: Scores,
    x: Tensor,
    y: Tensor | Targeted,
    *,
    threat: Threat,
    queries: int = 10_000,
    loss: Loss = "ce",
    draws: int = 1,
    observe: Observer | None = None,
) -> Hunt:
    """Raise each row's loss by flipping blocks of a sign vector.

    Args:
        model: images to scores ``(N, K)``. With a true attribute `rowwise` one pass gives the
            loss, and a row leaves the batch when it is fooled; else the mean over `draws` passes
            of the whole batch does, and all rows go on until the budget is spent.
        x: clean images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``, or `Targeted` ones.
        threat: `Linf`: each coordinate moves by eps; `L2`: by ``eps / √D``.
        queries: forward passes a row may take.
        loss: what is raised: cross-entropy or the margin.
        draws: passes whose losses are averaged.
        observe: sees after each query the images as `Hunt.x`, and their loss.

    Raises:
        ThreatModelError: for other threats than L-inf and L2.
    """
    D = x.shape[1:].numel()
    size = step(threat, D)
    goal: Goal = goal_of(y, margin) if loss == "margin" else goal_of(y)
    x, rowwise = x.detach(), may_drop_rows(model)
    draws = 1 if rowwise else draws
    with torch.no_grad():
        top = x.clone()
        highest, fooled = _loss(model, x, goal, draws)
        used = torch.full((len(x),), draws, device=x.device)
        rows, spent = torch.arange(len(x), device=x.device), draws
        origin, current = x, x.clone()  # the paper's x_o and x
        signs, best = x.new_ones((len(x), D)), highest.clone()
        for number, (start, end) in enumerate(_flips(D)):
            if rowwise:
                rows = rows[~fooled[rows]]
            if len(rows) == 0 or spent + draws > queries:
                break
            if start == end:  # a round begins: any loss is higher than none
                origin = current.clone()
                signs[rows], best[rows] = 1.0, -torch.inf
            clean, tried = x[rows], signs[rows]
            tried[:, start:end].neg_()
            images = project(origin[rows] + size * tried.view_as(clean), clean, threat)
            value, reached = _loss(model, images, goal[rows], draws)
            used[rows] += draws
            spent += draws
            stays = value >= best[rows]
            at = rows[stays]
            signs[at], current[at], best[at] = tried[stays], images[stays], value[stays]
            rises = value > highest[rows]
            if rowwise:
                rises |= reached
            at = rows[rises]
            top[at], highest[at], fooled[at] = images[rises], value[rises], reached[rises]
            if observe is not None:
                observe(number, top, highest)
    return Hunt(top, highest, fooled, used, signs.view_as(x))


def _flips(D: int) -> Iterator[tuple[int, int]]:
    """Blocks to flip, as (start, end), round after round; each round begins with an empty one."""
    starts, ends = (edge.tolist() for edge in blocks(D))
    while True:
        yield 0, 0
        yield from zip(starts, ends, strict=True)


def _loss(model: Scores, images: Tensor, goal: Goal, draws: int) -> tuple[Tensor, Tensor]:
    """Mean loss over the draws ``(N,)``, and whether the label given most often is wanted."""
    answers = [model(images) for _ in range(draws)]
    losses = torch.stack([goal.loss(scores) for scores in answers]).mean(0)
    return losses, carried(torch.stack([ballot(scores) for scores in answers]).sum(0), goal)


class SignHunter(Attack[SignHunterConfig]):
    """Signs by divide and conquer: scores only, at most `queries` passes an image."""

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
        """See `Attack`; draws nothing. An observer sees the best images so far, of all rows."""
        config = self.config
        return sign_hunt(
            model,
            x,
            y,
            threat=self.threat,
            queries=config.queries,
            loss=config.loss,
            draws=config.draws,
            observe=observe,
        ).x
