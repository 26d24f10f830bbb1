"""Shares of images that decide a check only when they do so significantly.

The exact interval of a share: C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial
limits illustrated in the case of the binomial" (Biometrika 1934). Paired outcomes: Q. McNemar,
"Note on the sampling error of the difference between correlated proportions or percentages"
(Psychometrika 1947), in its exact form, given the number of images on which two attacks differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phalanx.evaluation.findings import Status

LEVEL = 0.05
"""One-sided: an interval's end is wrong in at most 5 % of all cases."""
EXCLUDED = 0.02
"""The share that a finding of zero must be able to exclude, else a required check has not run."""
_HALVINGS = 60  # of [0, 1]: finer than a float64


def lower_end(count: int, n: int) -> float:
    """Lower end of the exact one-sided 95 % interval of a share.

    The p at which `count` or more of n have probability 5 %, found by halving; exact in float64.

    Args:
        count: how many images were found, 0 to n.
        n: images, at least 1.

    Returns:
        In [0, 1]; 0 for a count of 0.

    Raises:
        ValueError: if count and n are no share.
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"a share is count of n with 0 <= count <= n and n >= 1: {count} of {n}")
    if count == 0:
        return 0.0
    k = torch.arange(count, n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    lo, hi = 0.0, 1.0
    for _ in range(_HALVINGS):
        p = (lo + hi) / 2
        terms = ways + k * math.log(p) + (n - k) * math.log1p(-p)
        if float(terms.logsumexp(0)) < math.log(LEVEL):
            lo = p
        else:
            hi = p
    return lo


def images_needed(share: float) -> int:
    """The fewest images of which a finding of zero excludes a share: 149 for 2 %."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"a share to exclude lies between 0 and 1, found {share}")
    return math.ceil(math.log(LEVEL) / math.log1p(-share))


def net_lower_end(more: int, fewer: int, n: int) -> float:
    """Lower end of the difference of two paired shares, one-sided 95 %.

    ``(2 L − 1) m / n`` with m = more + fewer and L the `lower_end` of more of m: exact given the
    number m of images on which the two differ, as in McNemar's test. It is above 0 exactly where
    that test is significant.

    Args:
        more: images that only the second attack breaks.
        fewer: images that only the first one breaks.
        n: all images.

    Returns:
        In [−1, 1]; 0 where the two break the same images.
    """
    m = more + fewer
    return (2.0 * lower_end(more, m) - 1.0) * m / n if m else 0.0


def too_few(n: int, excluded: float = EXCLUDED) -> str:
    """Why so few images decide nothing, as a sentence's beginning; '' where they are enough."""
    needed = images_needed(excluded)
    if n >= needed:
        return ""
    return f"too few images: {needed} are needed to exclude {100 * excluded:g} %, found {n}"


def status_above(lower: float, *, warn: float | None, fail: float | None) -> Status:
    """``fail`` or ``warn`` where the lower end passes the threshold, else ``pass``."""
    if fail is not None and lower > fail:
        return "fail"
    return "warn" if warn is not None and lower > warn else "pass"


def share_status(
    count: int,
    n: int,
    *,
    warn: float | None,
    fail: float | None,
    excluded: float | None = EXCLUDED,
) -> Status:
    """What a count of n images decides.

    Args:
        count: images that speak against the defense or the attack.
        n: images looked at.
        warn: share above which to warn; None: never.
        fail: share above which to fail; None: never.
        excluded: share that a count of zero must exclude, else ``not-run`` (too few images);
            None: any number of images will do.
    """
    if n < 1 or (excluded is not None and too_few(n, excluded)):
        return "not-run"
    return status_above(lower_end(count, n), warn=warn, fail=fail)


def right(q: Tensor) -> Tensor:
    """Whether an image counts as right in a check: its share q of right draws is above 1/2.

    Args:
        q: shares or bits, ``(N,)``.
    """
    return q.double() > 0.5
