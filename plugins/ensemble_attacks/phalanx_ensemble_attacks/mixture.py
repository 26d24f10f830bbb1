"""MORA's loss: an ensemble's scores mixed with those of its members, each weighed anew.

Paper: Yu, Gao and Xu, "MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing
Attack" (NeurIPS 2022, arXiv 2211.08008). Symbols: n members with logits z_k, p_k = softmax(τ z_k),
q = (1/n) Σ p_k, label y, the ensemble's best wrong class j, share β of the members.

The derivative of log q_j − log q_y with respect to member k's logit of class j is
``p_kj (p_ky / q_y + (1 − p_kj) / q_j) / n``. It vanishes for a saturated member, whose gradient the
average therefore hides. MORA computes it from softened probabilities and takes it as the weight of
the member's own logits, so that all members are pulled at the same time.

Deviation: weights are the derivative itself. The authors' code uses −q_j and −p_kj wherever the
    ensemble is right, which makes them something else, and divides n terms by n + 1.
Deviation: q is of the softened probabilities as p_k are; the code mixes softened p_k with the q of
    logits that are only scaled.
Deviation: j is the best wrong class of the ensemble itself; the code takes it from other scores.
Deviation: the members alone are weighed; the code adds the ensemble to them as one more.
Deviation: weights are normalised in log space. The code adds 1e-8 to their sum, so that they fade
    where all members are saturated, and has no number for them once q_j underflows.
Deviation: τ is 0.2 for averaged logits too, where the authors' script sets 0 (equal weights).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from phalanx.api import Combined, log_mean, margin

TEMPERATURE = {"probabilities": 0.2, "logits": 0.2, "votes": 0.8}
"""τ by what is averaged: the authors' scripts, but for logits, where they set 0."""
LARGEST = 10.0
"""Largest margin of a member after scaling."""
_TINY = 1e-12


def gap(scores: Tensor) -> Tensor:
    """How far the best class leads: scores ``(..., K)`` to ``(...,)``, at least 1e-12; detached."""
    top = scores.detach().topk(2, -1).values
    return (top[..., 0] - top[..., 1]).clamp_min(_TINY)


def ensemble_scores(parts: Combined) -> Tensor:
    """The scores whose loss is ascended: ``(n, N, K)`` to ``(N, K)``, differentiable.

    The log of the mean probability, or the mean logits. Votes have no gradient: in their place
    stands the log of the mean probability of logits that each member's margin scales to 1, as in
    the authors' code, so that members count alike however confident they are.
    """
    z = parts.logits
    match parts.rule:
        case "probabilities":
            return log_mean(z.unbind())
        case "logits":
            return z.mean(0)
        case "votes":
            return log_mean((z / gap(z)[..., None]).unbind())


def decision_scores(parts: Combined, scores: Tensor) -> Tensor:
    """The scores that the ensemble decides by, detached: ``(N, K)``.

    `scores` themselves, of `ensemble_scores`, but for votes: each class's share of them, and less
    than half a vote by the scores, which ranks classes with as many votes.
    """
    if parts.rule != "votes":
        return scores.detach()
    n, _, K = parts.logits.shape
    shares = functional.one_hot(parts.logits.argmax(-1), K).to(scores).mean(0)
    return shares + scores.detach().softmax(-1) / (2.0 * n)


def standing(parts: Combined, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the best wrong class leads, and whether the ensemble is fooled: ``(N,)`` each.

    Classes with as many votes fool nobody: which of them is served is not said.

    Args:
        parts: what is averaged.
        scores: of `ensemble_scores`.
        y: labels ``(N,)``.
    """
    lead = margin(decision_scores(parts, scores), y)
    least = 0.5 / len(parts.logits) if parts.rule == "votes" else 0.0
    return lead, lead > least


def log_derivative(z: Tensor, y: Tensor, j: Tensor, *, tau: float) -> Tensor:
    """Log of ``∂(log q_j − log q_y) / ∂(τ z_kj)``, always positive: ``(n, N)``.

    Args:
        z: members' logits ``(n, N, K)``.
        y: labels ``(N,)``.
        j: another class of each row, ``(N,)``.
        tau: τ, at least 0.
    """
    log_p = (tau * z).log_softmax(-1)
    log_q = log_mean((tau * z).unbind())
    p_y, p_j = _of(log_p, y), _of(log_p, j)
    q_y, q_j = _of(log_q, y), _of(log_q, j)
    other = torch.log1p(-p_j.exp().clamp_max(1.0))
    return p_j + torch.logaddexp(p_y - q_y, other - q_j) - math.log(len(z))


def member_weights(
    z: Tensor, y: Tensor, j: Tensor, *, tau: float, keep: Tensor | None = None
) -> Tensor:
    """The members' weights, of sum 1 over those kept: ``(n, N)``; all 0 where none is.

    Args:
        z: members' logits ``(n, N, K)``.
        y: labels ``(N,)``.
        j: the ensemble's best wrong classes ``(N,)``.
        tau: τ.
        keep: which members count, ``(n, N)`` booleans; absent: all.
    """
    log_w = log_derivative(z, y, j, tau=tau)
    if keep is not None:
        log_w = log_w.masked_fill(~keep, -torch.inf)
    limits = torch.finfo(log_w.dtype)
    w = (log_w - log_w.amax(0).clamp_min(limits.min)).exp()
    return w / w.sum(0).clamp_min(limits.tiny)


def mixture(parts: Combined, scores: Tensor, y: Tensor, *, beta: float, tau: float) -> Tensor:
    """MORA's combined logits z*, whose cross-entropy is ascended: ``(N, K)``.

    ``(1 − β) log q / gap(log q) + β Σ_k w_k z_k / c``, w over the members that are still right (for
    averaged logits: all), c such that no member's margin exceeds 10. Weights, c and gap carry no
    gradient.

    Args:
        parts: what is averaged, differentiable.
        scores: of `ensemble_scores`.
        y: labels ``(N,)``.
        beta: β in [0, 1].
        tau: τ.
    """
    z = parts.logits
    with torch.no_grad():
        rivals = decision_scores(parts, scores).scatter(1, y[:, None], -torch.inf)
        keep = None if parts.rule == "logits" else z.argmax(-1) == y
        w = member_weights(z, y, rivals.argmax(1), tau=tau, keep=keep)
        c = (gap(z).amax(0) / LARGEST).clamp_min(1.0)
    members = ((w / c)[..., None] * z).sum(0)
    return (1.0 - beta) * scores / gap(scores)[:, None] + beta * members


def _of(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores ``(..., N, K)`` of each row's label: ``(..., N)``."""
    index = labels.expand(scores.shape[:-1])[..., None]
    return scores.gather(-1, index).squeeze(-1)
