"""Euclidean projections on the sets S_l of weights with few non-zero entries, filters or blocks.

Cheng et al., "More or Less (MoL)", WACV Workshops 2022, eq. (9), and Ye et al., "Adversarial
Robustness vs Model Compression, or Both?", ICCV 2019, arXiv 1903.12561. What keeps the groups of
largest L2 norm is the nearest point of such a set. Of equal ones the first are kept, so that the
number kept is exact.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scheme = Literal["kgs", "vanilla"]


def kept(count: int, rate: float) -> int:
    """How many of `count` groups stay: all but ``round((1 − 1/rate) · count)``, at least one.

    A layer without any would cut the network in two.

    >>> kept(100, 4.0), kept(64, 8.0), kept(3, 8.0)
    (25, 8, 1)
    """
    return max(1, count - round((1.0 - 1.0 / rate) * count))


def largest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` largest scores, of equal ones at the first; of the scores' shape."""
    order = scores.flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[order[:count]] = True
    return chosen.view_as(scores)


def irregular(weight: Tensor, *, rate: float) -> Tensor:
    """The entries of largest magnitude; ``(O, I, …)`` to the same shape."""
    chosen = largest(weight.abs(), kept(weight.numel(), rate))
    return weight.where(chosen, 0.0)


def filters(weight: Tensor, *, rate: float) -> Tensor:
    """The filters of largest norm; ``(O, I, …)`` to the same shape."""
    chosen = largest(weight.flatten(1).square().sum(1), kept(len(weight), rate))
    return weight.where(chosen.view(-1, *(1,) * (weight.ndim - 1)), 0.0)


def blocks(
    weight: Tensor, *, rate: float, block: tuple[int, int], scheme: Scheme = "kgs"
) -> Tensor:
    """The blocks of largest norm.

    Blocks at the edge are smaller where filters or channels are no multiple of the block's.

    Args:
        weight: ``(O, I, …)``; two dimensions are a kernel of one position.
        rate: of the layer.
        block: filters and channels of a block; at most O and I are taken.
        scheme: ``kgs``: blocks at one kernel position; ``vanilla``: with all positions.
    """
    norms = block_norms(weight, block=block, scheme=scheme)
    chosen = largest(norms, kept(norms.numel(), rate))
    rows, columns = _fitted(weight, block)
    spread = chosen.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return weight.where(_positions(spread[: weight.shape[0], : weight.shape[1]], weight), 0.0)


def block_norms(weight: Tensor, *, block: tuple[int, int], scheme: Scheme = "kgs") -> Tensor:
    """L2 norms of the blocks: ``(⌈O/rows⌉, ⌈I/columns⌉, kernel positions, or 1 in vanilla)``."""
    rows, columns = _fitted(weight, block)
    squares = weight.flatten(2).square() if weight.ndim > 2 else weight.square()[..., None]
    out, channels, positions = squares.shape
    squares = F.pad(squares, (0, 0, 0, -channels % columns, 0, -out % rows))
    out, channels = squares.shape[:2]
    sums = squares.view(out // rows, rows, channels // columns, columns, positions).sum((1, 3))
    if scheme == "vanilla":
        sums = sums.sum(2, keepdim=True)
    return sums.sqrt()


def _fitted(weight: Tensor, block: tuple[int, int]) -> tuple[int, int]:
    return min(block[0], weight.shape[0]), min(block[1], weight.shape[1])


def _positions(chosen: Tensor, weight: Tensor) -> Tensor:
    """``(O, I, positions or 1)`` to what broadcasts to the weight."""
    if weight.ndim == 2:
        return chosen[..., 0]
    if chosen.shape[2] == 1:
        return chosen.view(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    return chosen.reshape(weight.shape)
