"""Intervals of an accuracy. The unit is the image, never a bit over draws.

Wilson's score interval: E. B. Wilson, "Probable inference, the law of succession, and statistical
inference" (JASA 1927). Percentile bootstrap: B. Efron, "Bootstrap methods" (Ann. Statist. 1979).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phalanx import randomness

Z95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
REPLICATES = 10_000


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Args:
        successes: how many of the n are right; need not be whole.
        n: number of images, at least 1.

    Returns:
        Bounds in [0, 1]; 0 successes give (0, hi), n successes (lo, 1).
    """
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    lo = 0.0 if successes <= 0 else max(0.0, centre - half)
    hi = 1.0 if successes >= n else min(1.0, centre + half)
    return lo, hi


def bootstrap(values: Tensor, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over images, 10,000 resamples, of the mean of `values`.

    Images of equal value are interchangeable, so a resample is how many images fall on each
    distinct value: multinomial counts, drawn as successive binomials. The same distribution as
    drawing N indices, in memory and time that do not grow with N.

    Args:
        values: one value per image, ``(N,)``.
        seed: the same seed gives the same interval.
    """
    levels, counts = torch.unique(values.double().cpu(), return_counts=True)
    generator = randomness.generator("bootstrap", seed)
    left = torch.full((REPLICATES,), float(len(values)), dtype=torch.float64)
    weight = float(len(values))  # images of this and later levels
    total = torch.zeros(REPLICATES, dtype=torch.float64)
    for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
        share = torch.full_like(left, min(1.0, count / weight))
        drawn = torch.binomial(left, share, generator=generator)
        total += level * drawn
        left, weight = left - drawn, weight - count
    lo, hi = (total / len(values)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(lo), float(hi)


def interval(values: Tensor, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of one value per image.

    Wilson where every value is 0 or 1, else the bootstrap; where all values are equal the
    bootstrap has no width, and the interval is not narrower than Wilson's.

    Args:
        values: ``(N,)`` in [0, 1], N at least 1.
        seed: of the bootstrap.
    """
    n, total = len(values), float(values.double().sum())
    if bool(((values == 0) | (values == 1)).all()):
        return wilson(total, n)
    lo, hi = bootstrap(values, seed)
    if bool((values == values[0]).all()):
        low, high = wilson(total, n)
        lo, hi = min(lo, low), max(hi, high)
    return lo, hi
