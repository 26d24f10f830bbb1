"""The mathematics of group optimisation.

Lee, Lee, Kim, Ro, "Robust Ensemble Model Training via Random Layer Sampling Against Adversarial
Attack", arXiv 2005.10757: eqs. (6) to (8). The interrater agreement of its Table 5 is the core's.

Symbols: K sampled models, B images, C classes; f_k(x) is a model's probability, F(x) their mean.

Deviation: the paper leaves open how squares of classes are put together; here they are summed, and
    the mean is over images alone (a mean over classes too would make the gradient C times smaller,
    and the paper's learning rate would not train).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phalanx.api import log_mean


def group_mse(f: Tensor, labels: Tensor) -> Tensor:
    """MSE(F | x): the squared error of the mean prediction, which training minimises.

    Args:
        f: the sampled models' probabilities ``(K, B, C)``.
        labels: ``(B,)``.

    Returns:
        A scalar in [0, 2].
    """
    return _squares(f.mean(0), labels).mean()


def individual_mse(f: Tensor, labels: Tensor) -> Tensor:
    """Mean over k of MSE(f_k | x): eq. (8), left; arguments and result as in `group_mse`."""
    return _squares(f, labels).mean()


def ambiguity(f: Tensor) -> Tensor:
    """Mean over k of α(f_k | x) = (f_k − F)²: eqs. (6) and (8), right.

    It is `individual_mse` less `group_mse`: eq. (7).

    Args:
        f: the sampled models' probabilities ``(K, B, C)``.

    Returns:
        A scalar, at least 0; the larger, the more diverse.
    """
    return (f - f.mean(0)).square().sum(-1).mean()


def group_nll(scores: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the mean prediction, ``−log F_y``, by logsumexp.

    Args:
        scores: K tensors of logits ``(B, C)``.
        labels: ``(B,)``.

    Returns:
        A scalar; for K = 1 the ordinary cross-entropy.
    """
    return F.nll_loss(log_mean(scores), labels)


def individual_cross_entropy(scores: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean over k of the cross-entropy of f_k; arguments and result as in `group_nll`."""
    return torch.stack([F.cross_entropy(z, labels) for z in scores]).mean()


def _squares(f: Tensor, labels: Tensor) -> Tensor:
    """``Σ_c (y_c − f_c)²``: probabilities ``(…, B, C)`` to ``(…, B)``."""
    y = F.one_hot(labels, f.shape[-1]).to(f.dtype)
    return (f - y).square().sum(-1)
