"""Several perturbations of one batch: their mean loss, and the worst of them image by image.

Symbols: K types, N images. Both are outer minimisations of Tramèr and Boneh (NeurIPS 2019, arXiv
1904.13000, section 2): AVG of the mean over types, MAX of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def by_type(scores: Tensor, y: Tensor, types: int) -> Tensor:
    """Mean cross-entropy of each type.

    Args:
        scores: of the concatenated batches, type after type, ``(K·N, C)``.
        y: labels of one batch, ``(N,)``.
        types: K.

    Returns:
        ``(K,)``; its mean is AVG's loss.
    """
    losses = F.cross_entropy(scores, y.repeat(types), reduction="none")
    return losses.view(types, len(y)).mean(1)


def worst_of(candidates: Sequence[Tensor], losses: Tensor) -> tuple[Tensor, Tensor]:
    """Each image in the type of highest loss; of equal ones the first.

    Args:
        candidates: K tensors of images ``(N, ...)``, row for row of the same ones.
        losses: of each type and image, ``(K, N)``; NaN counts as highest.

    Returns:
        Images ``(N, ...)``, and the type that each one is of, ``(N,)``.
    """
    images, highest = candidates[0], losses[0]
    chosen = torch.zeros(len(highest), dtype=torch.long, device=losses.device)
    for k, (candidate, loss) in enumerate(zip(candidates, losses, strict=True)):
        higher = ~(loss <= highest) & ~highest.isnan()
        images = torch.where(higher.view(-1, *[1] * (images.dim() - 1)), candidate, images)
        highest, chosen = torch.where(higher, loss, highest), chosen.masked_fill(higher, k)
    return images, chosen
