"""What both searches share: the blocks that are flipped, the size of a step, how labels decide."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from phalanx.api import L2, Goal, Linf, Threat, ThreatModelError


def blocks(D: int) -> tuple[Tensor, Tensor]:
    """One pass over D coordinates: all of them, two halves, four quarters, … each one alone.

    Level h has blocks of ``ceil(D / 2^h)`` coordinates, the last perhaps shorter; h runs from 0
    to ``ceil(log2 D)``.

    Args:
        D: coordinates of an image.

    Returns:
        First coordinate ``(B,)`` of each block, and the one after its last ``(B,)``.
    """
    starts, ends = [], []
    for level in range((D - 1).bit_length() + 1):
        size = -(-D // 2**level)
        start = torch.arange(0, D, size)
        starts.append(start)
        ends.append((start + size).clamp_max(D))
    return torch.cat(starts), torch.cat(ends)


def radius(threat: Threat) -> float:
    """A ball's eps.

    Raises:
        ThreatModelError: for other threats than L-inf and L2.
    """
    if isinstance(threat, Linf | L2):
        return threat.eps
    raise ThreatModelError(
        f"a search along sign vectors cannot take threat {threat}; it takes linf or l2, such as "
        "linf:8/255"
    )


def step(threat: Threat, D: int) -> float:
    """By how much a sign vector of D coordinates moves each of them within the threat.

    Raises:
        ThreatModelError: for other threats than L-inf and L2.
    """
    return radius(threat) / (math.sqrt(D) if isinstance(threat, L2) else 1.0)


def ballot(scores: Tensor) -> Tensor:
    """One vote a row for the label of its highest score: ``(N, K)`` to ``(N, K)``."""
    return functional.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)


def carried(ballots: Tensor, goal: Goal) -> Tensor:
    """Whether a label that the attacker wants has more votes than any other: ``(N,)``.

    A tie is none. One ballot says what its label says.
    """
    return goal.lead(ballots) > 0.0
