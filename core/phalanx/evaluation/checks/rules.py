"""Whether adversarial examples kept to the rules: ball, box, finiteness."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.attacks.balls import norm
from phalanx.evaluation.checks.table import made
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check, Status
from phalanx.specs import L1, L2, Linf, Threat, Union

ROUNDING = 1e-5
"""Share of eps by which rounding may lengthen a perturbation, as `balls.within` allows."""


def excess(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """By how much each example breaks the rules, in pixel units: float64 ``(N,)``.

    The larger of what its norm has above ``eps (1 + 1e-5)`` and what a pixel has outside [0, 1];
    within a union the best part counts; infinite where an entry is not finite.

    Args:
        x_adv: examples ``(N, C, H, W)``.
        x: clean images.
        threat: what was allowed; without a ball only the box counts.
    """
    flat = x_adv.double().flatten(1)
    box = torch.maximum(-flat, flat - 1.0).amax(1).clamp_min(0.0)
    parts = threat.parts if isinstance(threat, Union) else (threat,)
    over = [
        norm(x_adv.double() - x.double(), part) - part.eps * (1.0 + ROUNDING)
        for part in parts
        if isinstance(part, Linf | L2 | L1)
    ]
    if len(over) == len(parts):
        box = torch.maximum(box, torch.stack(over).amin(0).clamp_min(0.0))
    return torch.where(flat.isfinite().all(1), box, torch.inf)


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
