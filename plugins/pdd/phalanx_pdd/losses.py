"""The mathematics of PDD and DEG as functions of tensors.

Huang, Ke, et al., "Adversarial Defence by Diversified Simultaneous Training of Deep Ensembles",
AAAI 2021: Algorithm 1 and eq. (2) (the mask), Algorithm 2 and eq. (3) (the penalty), eq. (1)
(the loss), eq. (5) and (6) (the diversity measures). Eq. (4) is the sum in `phalanx_pdd.defense`.

Symbols: B images, K members, D features of a member, M bins, C classes.

Deviation: equal counts of bins are ranked lowest bin first; the authors' order depends on which
    value occurs first in the image.
Deviation: fewer than K filled bins are completed by empty ones; the authors' code fails.
Deviation: the range v − u is at least 1e-12, so equal activations all fall into bin 0; the
    authors' code divides by zero.
Deviation: norms are ``sqrt(Σ g² + 1e-12)``; the authors add 1e-64, which is 0 in float32.
Deviation: "activated" of eq. (6), which the paper leaves open, means a value above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TINY = 1e-12


# ---------------------------------------------------------------- PDD


def bin_indices(features: Tensor, bins: int) -> Tensor:
    """The bin of each activation, of the image's range over all members.

    Args:
        features: ``(B, K, D)``, any real values.
        bins: M.

    Returns:
        Integers ``(B, K, D)`` in [0, M): floor((a − u)·M / (v − u)), the maximum in the last bin.
    """
    a = features.to(torch.promote_types(features.dtype, torch.float32))
    u, v = torch.aminmax(a.flatten(1), dim=1)
    width = (v - u).clamp_min(TINY).view(-1, 1, 1)
    return ((a - u.view(-1, 1, 1)) * bins / width).long().clamp_(0, bins - 1)


@torch.no_grad()
def keep_probabilities(features: Tensor, bins: int, alpha: float, beta: float) -> Tensor:
    """The probability with which each feature is kept: eq. (2).

    The K fullest bins of an image, counted over all members, are the priorities: member 1 gets
    the fullest, member 2 the next. The other bins' rates follow the member's own counts.

    Args:
        features: activations of all members ``(B, K, D)``; a constant for autograd.
        bins: M, at least K.
        alpha: α in [0, 1], for a member's priority bin.
        beta: β in [0, 1], scales the rate of its other bins.

    Returns:
        Probabilities ``(B, K, D)``, float32 (float64 for float64 features).
    """
    batch, members, units = features.shape
    index = bin_indices(features, bins)
    dtype = torch.promote_types(features.dtype, torch.float32)
    own = torch.zeros(batch, members, bins, dtype=dtype, device=features.device)
    own.scatter_add_(2, index, own.new_ones(()).expand_as(index))  # N_m^(k)
    joint = own.sum(1)
    priority = joint.argsort(dim=1, descending=True, stable=True)[:, :members]  # t_k
    rate = beta * (1.0 - own / units)  # eq. (2), m ≠ t_k
    rate.scatter_(2, priority.unsqueeze(2), alpha)  # eq. (2), m = t_k
    return rate.gather(2, index)


def diversified_mask(
    keep: Tensor, generator: Generator, rescale: Literal["none", "inverted"] = "none"
) -> Tensor:
    """One Bernoulli draw for each unit: step 9 of Algorithm 1.

    Args:
        keep: probabilities ``(B, K, D)``.
        generator: on the device of `keep`.
        rescale: ``inverted`` divides by the probability, which the paper does not.

    Returns:
        The factors of the features ``(B, K, D)``: 0 or 1, or 0 or 1/keep.
    """
    mask = torch.bernoulli(keep, generator=generator)
    if rescale == "inverted":
        return mask / keep.clamp_min(torch.finfo(keep.dtype).tiny)
    return mask


# ---------------------------------------------------------------- losses


def cross_entropies(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """Each member's cross-entropy, mean over the batch.

    A list, not a stacked tensor: the gradient of one element of a stack would walk through the
    graphs of all members.

    Args:
        logits: K tensors ``(B, C)``.
        labels: ``(B,)``.

    Returns:
        K scalars.
    """
    return [F.cross_entropy(z, labels) for z in logits]


def ensemble_cross_entropy(
    losses: Sequence[Tensor], reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """The members' cross-entropies together: eq. (1) for ``sum``.

    Args:
        losses: K scalars.
        reduction: ``sum`` as in the paper, ``mean`` as in its code.

    Returns:
        A scalar.
    """
    total = torch.stack(list(losses)).sum()  # eq. (1)
    return total / len(losses) if reduction == "mean" else total


def pairwise_cosines(gradients: Sequence[Tensor]) -> Tensor:
    """Cosine between the input gradients of each two members, mean over the batch.

    Args:
        gradients: K tensors ``(B, ...)``, one gradient a row, best in units of one image's loss
            (not of the batch's mean), for norms well above 1e-6.

    Returns:
        The signed cosines ``(K(K−1)/2,)`` in [−1, 1], pairs (0, 1), (0, 2), …, (1, 2), …
    """
    units = []
    for gradient in gradients:
        g = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
        units.append(g / (g.square().sum(1, keepdim=True) + TINY).sqrt())
    # products and sums, not a matmul: autocast and TF32 leave these in float32
    return torch.stack([(a * b).sum(1).mean() for a, b in combinations(units, 2)])


def dispersion(gradients: Sequence[Tensor]) -> Tensor:
    """The penalty of DEG: the sum over pairs of the cosines, eq. (3).

    Args:
        gradients: K tensors ``(B, ...)``, K at least 2.

    Returns:
        A scalar in [−K/2, K(K−1)/2].
    """
    return pairwise_cosines(gradients).sum()  # eq. (3)


# ---------------------------------------------------------------- diversity measures


def entropy_measure(correct: Tensor) -> Tensor:
    """How evenly the members split into right and wrong: eq. (5), 0 (all agree) to 1.

    Args:
        correct: whether member k is right on image i, ``(N, K)``, K at least 2.

    Returns:
        The mean over the images, a scalar.
    """
    members = correct.shape[1]
    right = correct.sum(1)
    split = torch.minimum(right, members - right).float()
    return (split / (members - (members + 1) // 2)).mean()  # eq. (5)


def discrimination_score(features: Tensor) -> Tensor:
    """How far apart the members' activation strengths lie: eq. (6).

    Args:
        features: unmasked activations ``(B, K, D)``; those above 0 count as activated.

    Returns:
        The score of each image ``(B,)``, at least 0; variances are of the set (not N − 1), a
        member without activated units has mean and variance 0.
    """
    active = (features > 0).to(features.dtype)
    count = active.sum(2).clamp_min(1.0)
    mean = (features * active).sum(2) / count
    variance = ((features - mean.unsqueeze(2)).square() * active).sum(2) / count
    pairs = [
        (mean[:, i] - mean[:, j]).square() / (variance[:, i] + variance[:, j]).clamp_min(TINY)
        for i, j in combinations(range(features.shape[1]), 2)
    ]
    return torch.stack(pairs).sum(0)  # eq. (6)
