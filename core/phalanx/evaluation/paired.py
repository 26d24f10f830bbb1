"""Two defenses on the same images: how far apart they are, and whether that could be chance.

Outcomes are paired image by image, so images that both get right, or both wrong, say nothing of
the difference. The unit is the image, as in `phalanx.evaluation.statistics`.

Exact test of 0/1 outcomes: Q. McNemar, "Note on the sampling error of the difference between
correlated proportions or percentages" (Psychometrika 1947), by the binomial distribution instead
of its normal limit. Interval of 0/1 outcomes: T. Tango, "Equivalence test and confidence interval
for the difference in proportions for the paired-sample design" (Statist. Med. 1998), the score
interval. Other outcomes: the sign-flip permutation test (R. A. Fisher, "The design of experiments",
1935), whose p-value of drawn flips counts the data as one flip (B. Phipson and G. K. Smyth,
"Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 2010), and the percentile
bootstrap. Several comparisons: S. Holm, "A simple sequentially rejective multiple test procedure"
(Scand. J. Statist. 1979).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from phalanx import randomness
from phalanx.evaluation.statistics import Z95, bootstrap

FLIPS = 10_000
"""Sign flips that are drawn where not all are counted."""
COUNTED = 13
"""Differences up to which all sign flips are counted: 2^13 are fewer than `FLIPS`."""
_DECIMALS = 12
"""Differences of shares are rounded to these: 0.95 − 0.90 and 0.10 − 0.05 are one value."""
_HALVINGS = 60  # of an interval no longer than 2: to the last bit of a float64


class Paired(NamedTuple):
    """A comparison of two defenses.

    Attributes:
        difference: the first one's mean less the second one's, in [-1, 1].
        ci95: its 95 % interval.
        p_value: two-sided, of no difference; in (0, 1].
        test: which test that is.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    test: Literal["mcnemar", "sign-flip"]


def compare(first_q: Tensor, second_q: Tensor, *, seed: int) -> Paired:
    """Compare two defenses image by image.

    Where all outcomes are 0 or 1: exact McNemar and Tango's score interval. Else: sign flips, and
    the bootstrap over images; where all differences are equal the bootstrap has no width, and the
    interval is not narrower than Tango's of as large a difference. The exact test is a little more
    careful than the score interval, which may leave out 0 where p is slightly above .05.

    Args:
        first_q: share of right draws of each image, ``(N,)`` in [0, 1].
        second_q: the other defense's, of the same images in the same order.
        seed: of the flips and the bootstrap.

    Raises:
        ValueError: if these are not as many shares, at least one, in [0, 1].
    """
    first, second = _checked(first_q, second_q)
    difference = (first - second).round(decimals=_DECIMALS)
    mean, n = float(difference.mean()), len(difference)
    if _is_binary(first) and _is_binary(second):
        more, fewer = _discordant(first, second)
        return Paired(mean, tango(more, fewer, n), mcnemar(first, second), "mcnemar")
    lo, hi = bootstrap(difference, seed)
    if bool((difference == difference[0]).all()):
        low, high = tango(n * max(mean, 0.0), n * max(-mean, 0.0), n)
        lo, hi = min(lo, low), max(hi, high)
    return Paired(mean, (lo, hi), sign_flip(difference, seed=seed), "sign-flip")


# ---------------------------------------------------------------- 0/1 outcomes


def mcnemar(first: Tensor, second: Tensor) -> float:
    """McNemar's exact two-sided p-value: of the images that only one gets right, half to each.

    Args:
        first: whether each image is right, ``(N,)`` of 0 and 1 or booleans.
        second: the same of the other defense.

    Returns:
        In (0, 1]; 1 where both are right on the same images. A p-value below the smallest normal
        float64 is given as that.

    Raises:
        ValueError: if they are not as many, at least one, all 0 or 1.
    """
    first, second = _checked(first, second)
    if not (_is_binary(first) and _is_binary(second)):
        raise ValueError(
            "McNemar's test is of outcomes that are 0 or 1, found others: use sign_flip of the "
            "differences, or compare, which chooses"
        )
    more, fewer = _discordant(first, second)
    m = more + fewer
    term = tail = 1  # binomial coefficients as whole numbers, so nothing is rounded until the end
    for k in range(1, min(more, fewer) + 1):
        term = term * (m - k + 1) // k
        tail += term
    p = 2 * tail / (1 << m)
    return min(1.0, max(p, sys.float_info.min))


def tango(more: float, fewer: float, n: int) -> tuple[float, float]:
    """Tango's 95 % score interval of the difference of two paired shares, ``(more − fewer) / n``.

    Those differences that a score test, given the best fitting shares with that difference, does
    not reject. It leaves out 0 exactly where McNemar's ``(more − fewer)² / (more + fewer)`` is
    above 1.96².

    Args:
        more: images that only the first gets right; need not be whole.
        fewer: images that only the second gets right.
        n: all images, at least `more` + `fewer` and 1.

    Returns:
        Bounds in [-1, 1], around the difference.
    """
    return _tango_lower(more, fewer, n), -_tango_lower(fewer, more, n)


def _tango_lower(b: float, c: float, n: int) -> float:
    """The Δ at which ``b − c − nΔ`` is 1.96 standard deviations; between −1 and ``(b − c) / n``."""
    lo, hi = -1.0, (b - c) / n
    for _ in range(_HALVINGS):
        delta = (lo + hi) / 2
        room = delta * (1.0 - delta)
        # the largest likelihood of the share that only the second gets right, given Δ
        half = (-b - c + (2 * n - b + c) * delta) / (4 * n)
        q = math.sqrt(max(0.0, half * half + c * room / (2 * n))) - half
        variance = max(0.0, n * (2.0 * q + room))
        if b - c - n * delta > Z95 * math.sqrt(variance):
            lo = delta
        else:
            hi = delta
    return lo


# ---------------------------------------------------------------- other outcomes


def sign_flip(differences: Tensor, *, seed: int) -> float:
    """Two-sided p-value of a mean of 0, if each difference could as well have the other sign.

    Up to 13 differences that are not 0 all flips are counted, which is exact; else 10,000 are
    drawn, and the data themselves are one more. Images of equal absolute difference are
    interchangeable, so a flip is how many of them keep their sign: a binomial draw.

    Args:
        differences: one for each image, ``(N,)``, finite.
        seed: the same seed gives the same flips.

    Returns:
        In (0, 1]; 1 where all differences are 0.

    Raises:
        ValueError: if there is none, or one that is not finite.
    """
    d = differences.detach().double().cpu()
    if d.ndim != 1 or len(d) == 0:
        raise ValueError(
            f"a sign-flip test needs one difference for each image, (N,), found {tuple(d.shape)}"
        )
    if not bool(d.isfinite().all()):
        raise ValueError("a sign-flip test needs finite differences, found NaN or infinity")
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    sizes = d.abs()
    # sums of the same numbers in another order: what is equal may differ by rounding
    observed = float(d.sum().abs()) - 1e-9 * float(sizes.sum())
    if len(d) <= COUNTED:
        patterns = (torch.arange(2 ** len(d))[:, None] >> torch.arange(len(d))) & 1
        sums = (2.0 * patterns.double() - 1.0) @ sizes
        return float((sums.abs() >= observed).double().mean())
    generator = randomness.generator("sign-flip", seed)
    sums = torch.zeros(FLIPS, dtype=torch.float64)
    half = torch.full((FLIPS,), 0.5, dtype=torch.float64)
    levels, counts = torch.unique(sizes, return_counts=True)
    for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
        kept = torch.binomial(torch.full_like(half, count), half, generator=generator)
        sums += level * (2.0 * kept - count)
    return (1 + int((sums.abs() >= observed).sum())) / (1 + FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below .05 where no true null among them all is, in 95 % of cases.

    The smallest of m is multiplied by m, the next by m − 1, and so on; none is below the one
    before it.

    Args:
        p_values: of m comparisons, in [0, 1].

    Returns:
        In the order given, each at least what it was and at most 1.

    Raises:
        ValueError: if one is no probability.
    """
    wrong = [p for p in p_values if not 0.0 <= p <= 1.0]
    if wrong:
        raise ValueError(f"p-values are in [0, 1], found {wrong[0]}")
    m, highest = len(p_values), 0.0
    adjusted = [0.0] * m
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# ---------------------------------------------------------------- parts


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU, or an error that says what is wrong."""
    a, b = (one.detach().double().cpu() for one in (first, second))
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(
            "a comparison is of two defenses on the same images, one outcome (N,) each, found "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    both = torch.cat([a, b])
    if not bool(((both >= 0) & (both <= 1)).all()):  # False for NaN
        raise ValueError("outcomes of images are shares in [0, 1], found others")
    return a, b


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _discordant(first: Tensor, second: Tensor) -> tuple[int, int]:
    """How many images only the first gets right, and how many only the second."""
    return int((first > second).sum()), int((second > first).sum())
