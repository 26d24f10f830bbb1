"""How different the members of an ensemble are: pure functions of what they answer.

Entropy measure and interrater agreement: L. I. Kuncheva and C. J. Whitaker, "Measures of diversity
in classifier ensembles and their relationship with the ensemble accuracy" (Machine Learning 51,
2003). Ambiguity: A. Krogh and J. Vedelsby, "Neural network ensembles, cross validation, and active
learning" (NIPS 1994, printed 1995). Discrimination score: Huang et al., "Adversarial defence by
diversified simultaneous training of deep ensembles" (AAAI 2021), eq. (6). Model robustness average
and similarity of saliency maps: Jasser and Garibay, "Resilience from diversity" (arXiv 2111.10272),
eqs. (6) to (8).

Symbols: L members, N images, K classes; l of the members are right on an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------- right or wrong


def entropy_measure(correct: Tensor) -> Tensor:
    """E: how evenly the members split into right and wrong, ``mean min(l, L − l) / (L − ⌈L/2⌉)``.

    0 where all agree on every image, 1 where they are split as evenly as they can be; the higher,
    the more diverse.

    Args:
        correct: whether member j is right on image i, ``(L, N)``.

    Returns:
        A scalar in [0, 1], float64.

    Raises:
        ValueError: for fewer than two members, or no image.
    """
    L, _ = _of_several(correct)
    right = correct.double().sum(0)
    return (torch.minimum(right, L - right) / (L - (L + 1) // 2)).mean()


def interrater_agreement(correct: Tensor) -> Tensor:
    """κ: 1 if all are right on the same images, 0 as if independent; the lower, the more diverse.

    ``κ = 1 − (1/L) Σ_i l_i (L − l_i) / (N (L − 1) p (1 − p))``, where p is the members' mean
    accuracy. It is Fleiss' κ of the right-or-wrong table.

    Args:
        correct: whether member j is right on image i, ``(L, N)``.

    Returns:
        A scalar in [-1 / (L − 1), 1], float64; NaN where all are right, or wrong, everywhere.

    Raises:
        ValueError: for fewer than two members, or no image.
    """
    L, N = _of_several(correct)
    right = correct.double()
    l = right.sum(0)  # noqa: E741  # the paper's symbol
    p = right.mean()
    return 1.0 - (l * (L - l)).sum() / L / (N * (L - 1) * p * (1.0 - p))


def model_robustness_average(correct: Tensor) -> Tensor:
    """MRA: the mean over members of their accuracy on all adversarial examples, eq. (6).

    In the paper each example was made for one member at random, so 1/L of the pairs are those of
    the attacked member itself, the others tell how well examples transfer.

    Args:
        correct: whether member i is right on adversarial example j, ``(L, N)``.

    Returns:
        A scalar in [0, 1], float64.
    """
    return correct.double().mean(1).mean(0)


# ---------------------------------------------------------------- probabilities and features


def squared_errors(probabilities: Tensor, y: Tensor) -> Tensor:
    """``Σ_c (y_c − p_c)²``: probabilities ``(…, N, K)`` and labels ``(N,)`` to ``(…, N)``."""
    target = F.one_hot(y, probabilities.shape[-1]).to(probabilities.dtype)
    return (probabilities - target).square().sum(-1)


def ambiguity(probabilities: Tensor) -> Tensor:
    """How far the members' probabilities lie from their mean P: ``(1/L) Σ_m Σ_c (p_mc − P_c)²``.

    Krogh and Vedelsby: the squared error of P is the mean of the members' squared errors less
    this, on every image. So of ensembles with equally good members the more diverse is better.

    Args:
        probabilities: of each member, ``(L, N, K)``.

    Returns:
        For each image, ``(N,)``, in [0, 1 − 1/min(L, K)]; the higher, the more diverse.
    """
    return (probabilities - probabilities.mean(0)).square().sum(-1).mean(0)


def discrimination_score(features: Sequence[Tensor]) -> Tensor:
    """How far apart the strengths of the members' activations lie, eq. (6) of Huang et al.

    ``Σ_{i<j} (μ_i − μ_j)² / (σ²_i + σ²_j)`` over the features that are activated on an image.

    Choice: a feature is activated above 0, which the paper leaves open. Variances are of the set
    (not N − 1); a member without activated features has mean and variance 0.

    Args:
        features: L tensors ``(N, D)``, whose D may differ.

    Returns:
        For each image, ``(N,)``, at least 0; the higher, the more diverse. NaN where two members
        have different means and no variance at all: the ratio has no value.
    """
    means, variances = [], []
    for one in features:
        active = (one > 0).to(one.dtype)
        count = active.sum(1).clamp_min(1.0)
        mean = (one * active).sum(1) / count
        means.append(mean)
        variances.append(((one - mean[:, None]).square() * active).sum(1) / count)
    total = torch.zeros_like(means[0])
    for i, j in combinations(range(len(means)), 2):
        gap, width = (means[i] - means[j]).square(), variances[i] + variances[j]
        ratio = torch.where(width > 0, gap / width, torch.nan)
        total = total + torch.where(gap > 0, ratio, 0.0)
    return total


# ---------------------------------------------------------------- gradients


def smooth_margin(scores: Tensor, y: Tensor) -> Tensor:
    """``log Σ_{j≠y} exp z_j − z_y``: cross-entropy is softplus of it, so gradients are parallel.

    Unlike cross-entropy's its gradient does not fade where a member is sure of an image, where in
    float32 even the direction would be lost.

    Args:
        scores: logits ``(N, K)``, K at least 2.
        y: labels ``(N,)``.

    Returns:
        ``(N,)``.
    """
    others = scores.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - scores.gather(1, y[:, None]).squeeze(1)


def pairwise_cosines(maps: Sequence[Tensor]) -> Tensor:
    """Cosine between each two members' maps of an image: eq. (7) of Jasser and Garibay.

    Args:
        maps: L tensors ``(N, ...)`` of one shape, such as gradients; their length does not matter.

    Returns:
        ``(L (L − 1) / 2, N)`` in [-1, 1], pairs (0, 1), (0, 2), …, (1, 2), …; NaN where one of
        the two maps is zero or not finite, which has no direction.
    """
    units = []
    for one in maps:
        rows = one.flatten(1)
        # first by the largest entry: the squares of a tiny gradient would underflow
        rows = rows / rows.abs().amax(1, keepdim=True)
        units.append(rows / rows.square().sum(1, keepdim=True).sqrt())
    # products and sums, not a matmul: TF32 and autocast leave these in float32
    return torch.stack([(a * b).sum(1).clamp(-1.0, 1.0) for a, b in combinations(units, 2)])


def attention(gradient: Tensor) -> Tensor:
    """Where a member looks: the largest absolute value over channels of the saliency map.

    K. Simonyan, A. Vedaldi and A. Zisserman, "Deep inside convolutional networks" (arXiv
    1312.6034), section 3.1.

    Args:
        gradient: of a class's score, ``(N, C, H, W)``.

    Returns:
        ``(N, H, W)``, at least 0.
    """
    return gradient.abs().amax(1)


def _of_several(correct: Tensor) -> tuple[int, int]:
    """L and N of a table, or an error."""
    L, N = correct.shape
    if L < 2:
        raise ValueError(f"diversity is between two classifiers or more, found {L}")
    if N < 1:
        raise ValueError("diversity is measured on images, found none")
    return L, N
