"""The mathematics of MoL as functions of tensors.

Cheng, Xu, Li, Zhao, Wang, Lin, Kailkhura, Goldhahn, "More or Less (MoL): Defending against Multiple
Perturbation Attacks on Deep Neural Networks through Model Ensemble and Compression", WACV Workshops
2022: what the system answers, eq. (12), and what its aggregator learns, eq. (13).

Symbols: m experts, N images, K classes; a are the aggregator's weights ``(N, m)``, f_j an expert's
logits ``(N, K)``.

An expert that does not determine the loss is not in its graph, so it gets no gradient at all, and
an optimizer leaves it alone; a maximum over stacked losses would send it zeros, which momentum and
weight decay turn into steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phalanx_mol.config import Weighting


def weights(scores: Tensor, weighting: Weighting) -> Tensor:
    """What is made of the aggregator's scores ``(N, m)``: weights a ``(N, m)``.

    Softmax: positive, of sum 1. Sigmoid: each in (0, 1). Linear: the scores, of any sign.
    """
    match weighting:
        case "softmax":
            return scores.softmax(1)
        case "sigmoid":
            return scores.sigmoid()
        case "linear":
            return scores


def aggregate(a: Tensor, experts: Iterable[Tensor]) -> Tensor:
    """F = Σ_j a_j f_j, eq. (12); one expert's logits are asked for at a time.

    Args:
        a: weights ``(N, m)``.
        experts: m tensors of logits ``(N, K)``.

    Returns:
        The system's logits, ``(N, K)``.
    """
    total: Tensor | None = None
    for weight, logits in zip(a.unbind(1), experts, strict=True):
        part = weight[:, None] * logits
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a system has one expert at least, found none")
    return total


def weighted_losses(a: Tensor, experts: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """L_j = CE(a_j f_j, y), of each expert alone, image by image (algorithm 1, line 11).

    Args:
        a: weights ``(N, m)``.
        experts: m tensors of logits ``(N, K)``.
        y: labels ``(N,)``.

    Returns:
        m tensors ``(N,)``, each at its expert's own graph; log K where a_j is 0.
    """
    return [
        F.cross_entropy(weight[:, None] * logits, y, reduction="none")
        for weight, logits in zip(a.unbind(1), experts, strict=True)
    ]


def worst_expert(losses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """max_j L_j of the batch's means, eq. (13) as it is printed.

    Args:
        losses: m tensors ``(N,)``.

    Returns:
        The scalar of one expert, the first of equal ones; and who it is, ``(m,)``, a single 1.
    """
    means = [loss.mean() for loss in losses]
    winner = int(torch.stack(means).detach().argmax())
    chosen = torch.zeros(len(means))
    chosen[winner] = 1.0
    return means[winner], chosen


def worst_expert_per_image(losses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over images of max_j L_j.

    Args:
        losses: m tensors ``(N,)``.

    Returns:
        A scalar; and the share of images for which each expert is the worst, ``(m,)``.
    """
    winners = torch.stack([loss.detach() for loss in losses]).argmax(0)
    count = winners.bincount(minlength=len(losses)).cpu()
    sums = [loss[winners == j].sum() for j, loss in enumerate(losses) if count[j] > 0]
    return torch.stack(sums).sum() / len(winners), count / len(winners)
