"""Combiners of scores in log space: what a set of classifiers says together.

All take scores ``(N, K)`` whose softmax is each classifier's probability, and give scores whose
softmax is the combined probability, so cross-entropy, DLR and margin losses of the result are
those of the combined classifier, and no confident member turns a gradient into NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_mean(scores: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability: ``log (1/M) Σ_m softmax(z_m)``, by logsumexp.

    Args:
        scores: M tensors ``(N, K)``.

    Returns:
        Log-probabilities ``(N, K)``.
    """
    if len(scores) == 1:
        return scores[0].log_softmax(-1)
    stacked = torch.stack([z.log_softmax(-1) for z in scores])
    return stacked.logsumexp(0) - math.log(len(scores))


def log_max(scores: Sequence[Tensor]) -> Tensor:
    """Log of the largest probability per class: ``max_m log softmax(z_m)``, not normalised.

    Args:
        scores: M tensors ``(N, K)``.

    Returns:
        Scores ``(N, K)``, at most 0; their softmax is the normalised maximum.
    """
    return torch.stack([z.log_softmax(-1) for z in scores]).amax(0)
