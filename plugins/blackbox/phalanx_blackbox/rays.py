"""RayS: from labels alone, the sign vector along which the decision boundary is nearest.

Paper: Chen, Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack" (KDD 2020, arXiv
2006.12792): hierarchical search with fast check and bisection, as the authors' code for batches.

A ray leaves x along ``s / √D``, s a vector of signs. One block of s is flipped at a time, and the
label asked at the shortest length d so far: if it is still right, the flip is dropped after this
one query; else bisection on [0, d] finds the candidate's own, shorter length.

Every row goes at its own pace: at one query a row may try a block while its neighbour bisects. So
each forward pass is a query of every row at work, a row does exactly what it would do alone, and
where rows are not independent the whole batch is asked.

Deviation: the clean image is asked first and counts as a query, one more than the code counts.
Deviation: the budget also ends a bisection; the code looks at it between two of them only.
Deviation: of all images that fooled, the nearest in the threat's norm is kept. The code keeps that
of the shortest ray, which can be another one where the box cuts rays off.
Deviation: with ``stop = "success"`` a row is done in mid-bisection; the code for batches goes on
until the budget is spent, as ``"budget"`` does.
Deviation: an image that nothing fools within the threat is moved along its shortest ray to the
ball's edge; the code returns that of the boundary, outside the threat. Where answers vary all
images are: on the boundary itself the label would turn at every second draw.
"""

from __future__ import annotations

import math
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
    may_drop_rows,
    norm,
    per_row,
    project,
)
from phalanx_blackbox.config import RaySConfig, Stop
from phalanx_blackbox.search import ballot, blocks, carried, radius, step


@dataclass(frozen=True)
class Rays:
    """What a ray search found.

    Attributes:
        x: the nearest image seen to fool, ``(N, C, H, W)``, within the threat or not; the clean
            one where there is none.
        distance: its distance from the clean image in the threat's norm ``(N,)``: 0 where the
            clean image fools, infinite where nothing does. Their mean is the paper's ADBD.
        queries: forward passes each row took ``(N,)``, the clean image's included.
        signs: the shortest ray ``(N, C, H, W)`` of ±1.
        length: its Euclidean length d, before the box cuts it ``(N,)``; infinite where there is
            none.
    """

    x: Tensor
    distance: Tensor
    queries: Tensor
    signs: Tensor
    length: Tensor


def along(x: Tensor, signs: Tensor, length: Tensor) -> Tensor:
    """The images at these lengths of the rays, cut off by the box.

    Args:
        x: clean images ``(N, C, H, W)``.
        signs: ±1, of as many entries.
        length: Euclidean ``(N,)``; infinity ends in the corner of the box, as √D does.
    """
    root = math.sqrt(x.shape[1:].numel())
    size = length.clamp_max(root) / root  # no infinity reaches the product
    return (x + per_row(size, x) * signs.view_as(x)).clamp(0.0, 1.0)


def ray_search(
    model: Scores,
    x: Tensor,
    y: Tensor | Targeted,
    *,
    threat: Threat,
    queries: int = 10_000,
    tolerance: float = 1e-3,
    votes: int = 1,
    stop: Stop = "success",
) -> Rays:
    """Search each row's nearest boundary along sign vectors; only labels are read.

    Args:
        model: images to scores ``(N, K)``. With a true attribute `rowwise` one pass decides, and
            rows leave the batch when they are done; else `votes` passes of the whole batch do,
            and all rows go on until the budget is spent.
        x: clean images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``, or `Targeted` ones.
        threat: `Linf` or `L2`: the norm of `distance`, and what is near enough.
        queries: forward passes a row may take.
        tolerance: Euclidean width at which a bisection ends.
        votes: passes whose most frequent label decides.
        stop: a row is done at its first image within the threat that fools (``"success"``), or
            when the budget is spent (``"budget"``), or in both cases if its clean image fools.

    Raises:
        ThreatModelError: for other threats than L-inf and L2.
    """
    enough = radius(threat) if stop == "success" else 0.0
    x, goal, rowwise = x.detach(), goal_of(y), may_drop_rows(model)
    votes = 1 if rowwise else votes
    walk = _Walk(x, tolerance)
    nearest, distance = x.clone(), x.new_full((len(x),), torch.inf)
    used = torch.full((len(x),), votes, device=x.device)
    rows, spent = torch.arange(len(x), device=x.device), votes
    with torch.no_grad():
        distance[_fooled(model, x, goal, votes)] = 0.0
        while spent + votes <= queries:
            if rowwise:
                rows = rows[distance[rows] > enough]
            if len(rows) == 0:
                break
            length = walk.length_to_ask(rows)
            images = along(x[rows], walk.tried[rows], length)
            fooled = _fooled(model, images, goal[rows], votes)
            walk.tell(rows, length, fooled)
            used[rows] += votes
            spent += votes
            away = norm(images - x[rows], threat)
            nearer = fooled & (away < distance[rows])
            nearest[rows[nearer]], distance[rows[nearer]] = images[nearer], away[nearer]
    return Rays(nearest, distance, used, walk.signs.view_as(x), walk.length)


def _fooled(model: Scores, images: Tensor, goal: Goal, votes: int) -> Tensor:
    """Whether the label given most often is one that the attacker wants, ``(N,)``."""
    ballots = torch.stack([ballot(model(images)) for _ in range(votes)])
    return carried(ballots.sum(0), goal)


class _Walk:
    """Where each row's search stands.

    A row either tries its candidate at the shortest length d so far, or bisects between `low`,
    where the candidate did not fool, and d, where it did: d is always the upper end.

    Attributes:
        signs: rays of the shortest lengths ``(N, D)``, all +1 at first.
        length: d ``(N,)``, infinite at first.
        tried: candidates ``(N, D)``: `signs` as they were, with the block flipped.
    """

    def __init__(self, x: Tensor, tolerance: float) -> None:
        N, D = len(x), x.shape[1:].numel()
        self.root, self.tolerance = math.sqrt(D), tolerance
        self.starts, self.ends = (ends.to(x.device) for ends in blocks(D))
        self.place = torch.arange(D, device=x.device)
        self.signs = x.new_ones((N, D))
        self.tried = -self.signs  # the first block is all of them
        self.length = x.new_full((N,), torch.inf)
        self.low = x.new_zeros(N)
        self.bisects = torch.zeros(N, dtype=torch.bool, device=x.device)
        self.block = torch.zeros(N, dtype=torch.long, device=x.device)

    def length_to_ask(self, rows: Tensor) -> Tensor:
        """How far along `tried` these rows ask next; √D, a corner of the box, where d is ∞."""
        high = self.length[rows].clamp_max(self.root)
        return torch.where(self.bisects[rows], (self.low[rows] + high) / 2.0, high)

    def tell(self, rows: Tensor, length: Tensor, fooled: Tensor) -> None:
        """Take the answers: which rows `fooled` at these lengths."""
        bisects = self.bisects[rows]
        shorter = fooled & (length < self.length[rows])
        at = rows[shorter]
        self.signs[at], self.length[at] = self.tried[at], length[shorter]
        low = torch.where(fooled, self.low[rows], length)
        self.low[rows] = low = torch.where(bisects, low, 0.0)
        wide = self.length[rows] - low > self.tolerance
        self.bisects[rows] = bisects = (bisects | fooled) & wide
        self._next_block(rows[~bisects])

    def _next_block(self, rows: Tensor) -> None:
        """Flip the next block; after the last level, of single coordinates, that level again."""
        block = self.block[rows] + 1
        block = torch.where(block == len(self.starts), block - len(self.place), block)
        self.block[rows] = block
        inside = (self.place >= self.starts[block, None]) & (self.place < self.ends[block, None])
        signs = self.signs[rows]
        self.tried[rows] = torch.where(inside, -signs, signs)


class RayS(Attack[RaySConfig]):
    """Nearest boundary along sign vectors: labels only, at most `queries` passes an image.

    In L2 the search is the same one for sign vectors, and only what counts as success differs: a
    poor L2 attack.
    """

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
        """See `Attack`; draws nothing, and has no path to observe: a label is no loss."""
        config, threat = self.config, self.threat
        x = x.detach()
        found = ray_search(
            model,
            x,
            y,
            threat=threat,
            queries=config.queries,
            tolerance=config.tolerance,
            votes=config.votes,
            stop=config.stop,
        )
        edge = project(x + step(threat, x.shape[1:].numel()) * found.signs, x, threat)
        moved = found.length.isfinite()
        if may_drop_rows(model):
            moved &= found.distance > radius(threat)
        kept = project(found.x, x, threat)  # rounding, where it is within
        return torch.where(per_row(moved, x), edge, kept)
