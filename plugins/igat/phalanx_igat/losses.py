"""The mathematics of iGAT as functions of tensors: eq. (13) to (16) of arXiv 2310.18477.

Symbols: N members, B rows (images), C classes; z are the members' logits ``(N, B, C)``, h = softmax
z their probabilities, y labels ``(B,)``. An owner is the member that an example is given to.

Deviation: the regulariser's class is one of the wrong ones, as in the authors' code; eq. (15) takes
    the largest probability of all classes, so where one member is sure of the true class it would
    push that down. Eq. (15) to the letter is there too (``"paper"``).
Deviation: ``−log(1 − h_c)`` is a difference of two log-sum-exp; the code clips h_c at 0.99, where
    the gradient is zero for exactly the worst answers.
Deviation: the distributed cross-entropy is divided by the number of adversarial rows, not by that
    of each owner's group; the code divides by all rows of the forward pass, which in its script of
    mixed batches (``batch = "half"``) are twice as many.
Deviation: ties of eq. (13) go to the first member.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from phalanx.api import log_max, log_mean

Combiner = Literal["average", "max"]
Rule = Literal["soft", "hard", "random", "opposite"]
Form = Literal["sum", "max", "paper"]


def combined(z: Tensor, combiner: Combiner) -> Tensor:
    """c(h¹, …, h^N): what the ensemble says, as scores whose order is that of its probabilities.

    Args:
        z: ``(N, B, C)``.
        combiner: the mean of the members' probabilities, or the largest of each class.

    Returns:
        ``(B, C)``; of the maximum not normalised.
    """
    return log_mean(list(z)) if combiner == "average" else log_max(list(z))


def is_wrong(z: Tensor, y: Tensor, combiner: Combiner) -> Tensor:
    """δ of eq. (15): which rows ``(B,)`` the ensemble gets wrong; carries no gradient."""
    return combined(_full(z.detach()), combiner).argmax(1) != y


def true_class(z: Tensor, y: Tensor) -> Tensor:
    """Each member's log-probability of the true class, ``(N, B)``, detached."""
    N, _, _ = z.shape
    log_h = _full(z.detach()).log_softmax(2)
    return log_h.gather(2, y.expand(N, -1)[:, :, None]).squeeze(2)


def rank_probabilities(N: int) -> Tensor:
    """Eq. (14) by rank: ``p = 2^(N−r) / (2^N − 1)`` for r = 1 (the surest member) … N, float64."""
    p = 2.0 ** torch.arange(N - 1, -1, -1, dtype=torch.float64)
    return p / p.sum()


def owners(sureness: Tensor, rule: Rule, generator: Generator) -> Tensor:
    """Which member each row is given to.

    Args:
        sureness: each member's (log-)probability of the true class, ``(N, B)``.
        rule: ``hard`` eq. (13), ``soft`` eq. (14), and the two of the paper's ablation.
        generator: of ``soft`` and ``random``, on the rows' device.

    Returns:
        ``(B,)`` in [0, N).
    """
    N, B = sureness.shape
    if rule == "random":
        return torch.randint(N, (B,), generator=generator, device=sureness.device)
    if rule == "opposite":
        return sureness.argsort(dim=0, stable=True)[0]
    ranked = sureness.argsort(dim=0, descending=True, stable=True)  # the surest first
    if rule == "hard":
        return ranked[0]  # eq. (13)
    ends = rank_probabilities(N).to(sureness.device).cumsum(0)
    q = 1.0 - torch.rand(B, generator=generator, device=sureness.device, dtype=ends.dtype)
    rank = torch.searchsorted(ends, q).clamp(max=N - 1)  # eq. (14): a_r < q <= b_r
    return ranked.gather(0, rank[None]).squeeze(0)


def distributed(z: Tensor, y: Tensor, owner: Tensor, keep: Tensor) -> Tensor:
    """The second term of eq. (16) without α: each kept row's cross-entropy on its owner alone.

    Args:
        z: of the adversarial rows, ``(N, B, C)``.
        y: ``(B,)``.
        owner: ``(B,)`` in [0, N).
        keep: which rows are given to anybody, ``(B,)``.

    Returns:
        A scalar, the sum divided by B; a zero with a graph where nothing is kept.
    """
    _, B, _ = z.shape
    given = _full(of_owner(z, owner))
    losses = F.cross_entropy(given, y, reduction="none")
    return (losses * keep).sum() / max(1, B)


def of_owner(z: Tensor, owner: Tensor) -> Tensor:
    """Each row's logits by its owner: ``(N, B, C)`` and ``(B,)`` to ``(B, C)``."""
    rows = torch.arange(len(owner), device=owner.device)
    return z[owner, rows]


def misclassification(z: Tensor, y: Tensor, wrong: Tensor, form: Form) -> Tensor:
    """L_R, eq. (15): presses down the likeliest wrong answer where the ensemble is wrong.

    Args:
        z: ``(N, B, C)``.
        y: ``(B,)``.
        wrong: δ, ``(B,)``.
        form: ``sum`` over the members of each one's likeliest wrong class; ``max``: of the
            likeliest wrong class of all members; ``paper``: of the likeliest class of all members.

    Returns:
        A scalar, the sum over rows divided by B; a zero with a graph where nothing is wrong.
    """
    N, B, C = z.shape
    z = _full(z)
    h = z.detach().log_softmax(2)
    if form != "paper":
        h = h.scatter(2, y.expand(N, -1)[:, :, None], -torch.inf)
    likeliest, c = h.max(2)  # (N, B)
    chosen = torch.ones_like(likeliest, dtype=torch.bool)
    if form != "sum":
        chosen = F.one_hot(likeliest.argmax(0), N).T.bool()
    others = z.masked_fill(F.one_hot(c, C).bool(), -torch.inf)
    losses = z.logsumexp(2) - others.logsumexp(2)  # −log(1 − h_c)
    return (losses * chosen * wrong).sum() / max(1, B)


def owner_right(z: Tensor, y: Tensor, owner: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """How often members are right on what was distributed: its owners, and all alike.

    Args:
        z: of the adversarial rows, ``(N, B, C)``.
        y: ``(B,)``.
        owner: ``(B,)`` in [0, N).
        keep: which rows were given to anybody, ``(B,)``.

    Returns:
        Of the kept rows, the share on which the owner is right, and the share on which a member
        drawn uniformly would be; 0 and 0 where nothing is kept.
    """
    right = (z.detach().argmax(2) == y).float()
    count = keep.sum().clamp(min=1)
    own = right.gather(0, owner[None]).squeeze(0)
    return (own * keep).sum() / count, (right.mean(0) * keep).sum() / count


def _full(z: Tensor) -> Tensor:
    """In float32 at least, so that half precision loses no probability."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
