"""From outcome bits to accuracies: pure functions, the same for every model.

A cell's outcome is a table of bits ``(R, N)``: whether draw r of the served function still
classifies example n rightly. The unit is the image. Per image q is the share of draws that are
right; bits over draws are never ANDed: with true accuracy .90 under each of 8 cells and R = 20
the AND would say 5e-8, the smallest of the cells' shares .798, and the rule here .900.

Draws are *exact* where they are all that there are: the one function of a deterministic model
(q is then 0 or 1, and `worst_shares` the per-example AND), or each function of `support()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Draws = Literal["exact", "fresh"]
"""All functions that the model serves, or some of its draws that no attack ever saw."""


def shares(bits: Tensor) -> Tensor:
    """The share q of draws that are right, per image: bits ``(R, N)`` to ``(N,)`` in [0, 1]."""
    return bits.double().mean(0)


def accuracy(bits: Tensor) -> float:
    """A cell's accuracy: the mean of q over images; bits ``(R, N)`` to [0, 1]."""
    return float(shares(bits).mean())


def conditional(q: Tensor, clean: Tensor) -> float | None:
    """Accuracy among the images that are right without an attack, as several papers count.

    Args:
        q: share of right draws of each attacked image, ``(N,)``.
        clean: the same of the clean images; they weigh the images.

    Returns:
        ``Σ q clean / Σ clean``; None where no clean image is right.
    """
    total = float(clean.sum())
    return float((q * clean).sum()) / total if total else None


def majority(bits: Tensor) -> float:
    """Share of images that more than half of the draws classify rightly."""
    return float((shares(bits) > 0.5).double().mean())


def worst_draw(bits: Tensor) -> float:
    """The smallest accuracy of the whole set over the R draws."""
    return float(bits.double().mean(1).min())


def worst_shares(cells: Sequence[Tensor], draws: Draws) -> Tensor:
    """The smallest q of each image over cells, without a bias from choosing.

    Exact draws: the minimum of q. Fresh draws: per image the cell is chosen on the first half of
    the draws and its q is read on the other half, since the smallest of several noisy shares is
    smaller than any true one. Images for which cells tie on the first half take the cell that is
    lowest there over all images, so the order of the cells does not matter.

    Args:
        cells: bits ``(R, N)`` of each cell, the clean one among them; R is even for fresh draws.
        draws: what the bits are over.

    Returns:
        ``(N,)`` in [0, 1].
    """
    if draws == "exact":
        return torch.stack([shares(bits) for bits in cells]).amin(0)
    half = len(cells[0]) // 2
    first = torch.stack([shares(bits[:half]) for bits in cells])
    second = torch.stack([shares(bits[half:]) for bits in cells])
    order = first.mean(1).argsort(stable=True)
    first, second = first[order], second[order]
    # argmin may return any of equal values; the first one is wanted
    chosen = (first == first.amin(0)).int().cumsum(0).eq(0).sum(0)
    return second.gather(0, chosen[None]).squeeze(0)


def spread(bits: Tensor, chunk: int) -> float:
    """Standard deviation of the accuracies of chunks of consecutive images; 0 for one chunk.

    Args:
        bits: ``(R, N)``.
        chunk: images in a chunk; the last one may have fewer.
    """
    parts = torch.stack([part.mean() for part in torch.split(shares(bits), chunk)])
    return float(parts.std()) if len(parts) > 1 else 0.0
