"""Whether adversarial examples kept to the rules: ball, box, finiteness."""

from __future__ import annotations

from phalanx.attacks.balls import excess as excess
from phalanx.evaluation.checks.table import made
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check, Status


def budget(
    violations: int, n: int, *, excess: float | None = None, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Whether examples kept to ball and box and were finite; one that did not breaks no image.

    Args:
        violations: examples that did not, over all attacks.
        n: examples.
        excess: the largest `excess` of them, in pixel units; None where it was not kept.
        thresholds: of the excess; without it any violation fails.
    """
    limits = thresholds.budget
    status: Status
    if excess is None:
        status = "fail" if violations else "pass"
    else:
        status = limits.status(excess)
    by = "" if excess is None else f", by at most {excess:.2g}"
    return made(
        "budget",
        status,
        f"{violations} of {n} examples left ball or box or were not finite{by}; such an image "
        "does not count as broken."
        if violations
        else f"All {n} examples are finite and in ball and box.",
        value=excess,
        count=violations,
        n=n,
        threshold=limits.words(),
    )
