"""The paper's measures: model robustness average (MRA) and similarity of saliency maps.

Jasser & Garibay, arXiv 2111.10272. Implements eqs. (6), (7) and (8).

Choice: f_m(x)[y] of eq. (8) is the logit of the true class, before the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def model_robustness_average(correct: Tensor) -> Tensor:
    """MRA of eq. (6): the mean over sub-models of their accuracy on all of X'.

    X' holds each image as attacked through one random sub-model, so 1/n of the pairs are matched:
    the answering sub-model is the attacked one. For n = 1 it is the white-box robust accuracy.

    Args:
        correct: whether sub-model i is right on example j, ``(n, N)``.

    Returns:
        A scalar in [0, 1].
    """
    return correct.to(torch.get_default_dtype()).mean(1).mean(0)


def matched_and_unmatched(correct: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the MRA: attacked sub-model answers (white box), another one (transfer).

    Args:
        correct: whether sub-model i is right on example j, ``(n, N)``.
        assignment: index from 0 of the sub-model that example j was crafted on, ``(N,)``.

    Returns:
        Two accuracies in [0, 1], scalars; NaN where there is no such pair (n = 1 has no other).
    """
    n, _ = correct.shape
    matched = torch.arange(n, device=correct.device)[:, None] == assignment[None, :]
    right = correct.to(torch.get_default_dtype())
    return right[matched].mean(), right[~matched].mean()


def saliency(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """s_m of eq. (8): the derivative of the true class's logit by the image.

    Args:
        model: images to logits ``(N, K)``, row by row (in eval mode).
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.

    Returns:
        Saliency maps, flattened to ``(N, C·H·W)``.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logit = model(x).gather(1, y[:, None]).sum()
        (gradient,) = torch.autograd.grad(logit, x)
    return gradient.flatten(1)


def cosine_similarity(s_i: Tensor, s_j: Tensor) -> Tensor:
    """Eq. (7), row by row; 0 where a map is zero.

    Args:
        s_i: saliency maps ``(N, D)``.
        s_j: another sub-model's, same shape.

    Returns:
        Values in [−1, 1], ``(N,)``.
    """
    return (F.normalize(s_i, eps=1e-12) * F.normalize(s_j, eps=1e-12)).sum(1)


def saliency_similarity(
    members: Sequence[Callable[[Tensor], Tensor]], x: Tensor, y: Tensor
) -> dict[tuple[int, int], Tensor]:
    """Eq. (7) for each of the n(n − 1)/2 pairs of sub-models (fig. 6).

    Args:
        members: n sub-models, images to logits ``(N, K)``, in eval mode.
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.

    Returns:
        For each pair of indices (from 0, the smaller first) the similarities ``(N,)``.
    """
    maps = [saliency(member, x, y) for member in members]
    return {
        (i, j): cosine_similarity(maps[i], maps[j])
        for i in range(len(maps))
        for j in range(i + 1, len(maps))
    }
