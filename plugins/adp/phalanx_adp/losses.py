"""The mathematics of ADP as functions of tensors.

Pang, Xu, Du, Chen, Zhu, "Improving Adversarial Robustness via Promoting Ensemble Diversity", ICML
2019, arXiv 1901.08846: the ensemble entropy H, the ensemble diversity ED = det(M̃ᵀM̃) and their
weighted sum ADP_{α,β} = α·H + β·log ED, which is maximised beside the members' cross-entropies.

Symbols: K members, B images, C classes; scores are logits ``(K, B, C)``.

Deviation: the removed rows are built from logits. The softmax over the C − 1 wrong classes is
    proportional to the probabilities with the true one removed, so after normalisation it is the
    same row; but it cannot be all zeros in float32, where the probabilities give NaN.
Deviation: the K×K part is computed in float64; in float32 log det of nearly equal rows is wrong in
    the first decimal (K = 3: −26.63 for −26.53).
Deviation: no constants inside the logarithms of cross-entropy and entropy, since log-probabilities
    come from logits; the authors clip at 1e-7 and add 1e-20.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from phalanx.api import log_mean

JITTER = 1e-6
"""Added to the diagonal before the determinant, as in the authors' code."""


def cross_entropies(scores: Tensor, y: Tensor) -> Tensor:
    """Each member's cross-entropy, mean over the batch.

    Args:
        scores: ``(K, B, C)``.
        y: labels ``(B,)``.

    Returns:
        ``(K,)``.
    """
    return torch.stack([F.cross_entropy(z, y) for z in scores])


def ensemble_entropy(scores: Tensor) -> Tensor:
    """H: Shannon entropy of the mean probability, over all classes, in nats.

    Args:
        scores: ``(K, B, C)``.

    Returns:
        A scalar in [0, log C], mean over the batch.
    """
    log_p = log_mean([z.to(_at_least_float32(z)) for z in scores])
    return -(log_p.exp() * log_p).sum(1).mean()


def wrong_scores(scores: Tensor, y: Tensor) -> Tensor:
    """The scores without those of the true class; the order of the others is kept.

    Args:
        scores: ``(K, B, C)``.
        y: labels ``(B,)``: the true class is left out, not the one that is predicted.

    Returns:
        ``(K, B, C − 1)``.
    """
    K, B, C = scores.shape
    classes = torch.arange(C - 1, device=scores.device).expand(B, -1)
    others = classes + (classes >= y[:, None])
    return scores.gather(2, others.expand(K, -1, -1))


def gram(scores: Tensor, y: Tensor) -> Tensor:
    """Cosines between the members' probabilities of the wrong classes: M̃ᵀM̃.

    Args:
        scores: ``(K, B, C)``.
        y: labels ``(B,)``.

    Returns:
        ``(B, K, K)``, float64, ones on the diagonal.
    """
    rows = F.normalize(wrong_scores(scores, y).double().softmax(2), dim=2)
    return torch.einsum("kbc,lbc->bkl", rows, rows)


def log_determinant(cosines: Tensor) -> Tensor:
    """Log ED = log det(G + 1e-6 I), through Cholesky.

    Args:
        cosines: G, ``(B, K, K)``, float64.

    Returns:
        A float64 scalar, mean over the batch; at most about K·1e-6, where rows are orthogonal.
        NaN for scores that are not finite.
    """
    jitter = JITTER * torch.eye(cosines.shape[1], dtype=cosines.dtype, device=cosines.device)
    factor, _ = torch.linalg.cholesky_ex(cosines + jitter)  # no exception: the trainer tells of NaN
    per_row: Tensor = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return per_row.mean()


def mean_cosine(cosines: Tensor) -> Tensor:
    """Mean of G's entries off its diagonal ``(B, K, K)``: 1 where all members agree."""
    B, K, _ = cosines.shape
    return (cosines.sum() - cosines.diagonal(dim1=1, dim2=2).sum()) / (B * K * (K - 1))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
