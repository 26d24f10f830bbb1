"""Checks that compare attacks, image by image, on one validity subset.

Each takes shares q or bits ``(N,)`` of the same images per attack; an image is right when q > 1/2.
*Base* is what `all_right` makes of the white-box gradient attacks; None where too few of them ran.

Our reading of a gain in points: the images that the second attack breaks and the first does not,
over all images. Adding the second attack to the set would lower `worst` by as much. Where one
attack is no addition to the other (`eot_k`, `monotone`) the images that only the first one breaks
are taken off, and `net_lower_end` decides.

Sources: Athalye et al. (ICML 2018, arXiv 1802.00420); Carlini et al. (2019, arXiv 1902.06705);
Tramèr et al. (NeurIPS 2020, arXiv 2002.08347); AutoAttack (ICML 2020, arXiv 2003.01690); MORA
(NeurIPS 2022, arXiv 2211.08008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from phalanx.evaluation.checks.shares import (
    lower_end,
    net_lower_end,
    right,
    share_status,
    status_above,
    too_few,
)
from phalanx.evaluation.checks.table import made, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Shares, Thresholds
from phalanx.evaluation.findings import Check

NO_BASE = (
    "The base did not run: it takes APGD on cross-entropy with 100 steps and an attack on a "
    "margin loss."
)
NO_SOURCE = (
    "There was no model to transfer from: name one with --surrogate, or evaluate another model in "
    "the same report."
)


def all_right(outcomes: Sequence[Tensor]) -> Tensor:
    """The images that are right under every one of some attacks, at least one: ``(N,)``."""
    return torch.stack([right(q) for q in outcomes]).all(0)


def black_box(
    base: Tensor | None, others: Mapping[str, Tensor], *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that attacks on scores or labels break and the base does not.

    Args:
        base: outcome of the base ``(N,)``; None if it did not run.
        others: name -> outcome of each attack that needs no gradient.
        thresholds: of the share.
    """
    if not others:
        return not_run("black_box", "No attack on scores or labels ran.")
    return _beside_base("black_box", base, others, thresholds.black_box, thresholds.excluded)


def transfer(
    base: Tensor | None, sources: Mapping[str, Tensor], *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that adversarial examples of other models break and the base does not.

    Args:
        base: outcome of the base ``(N,)``; None if it did not run.
        sources: name of the source -> outcome of its examples on this model.
        thresholds: of the share.
    """
    if not sources:
        return not_run("transfer", NO_SOURCE, threshold=thresholds.transfer.words())
    return _beside_base("transfer", base, sources, thresholds.transfer, thresholds.excluded)


def one_step(base: Tensor | None, fgsm: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Images that one step breaks and the base does not."""
    return _beside_base("one_step", base, {"FGSM": fgsm}, thresholds.one_step, None)


def noise_gain(base: Tensor | None, noise: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Images that the best of many uniform points of the ball breaks and the base does not."""
    return _beside_base("noise_gain", base, {"random points": noise}, thresholds.noise_gain, None)


def ensemble_reweight(
    base: Tensor | None, reweighted: Tensor, *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that an attack with members weighed anew breaks and the base does not."""
    others = {"the attack with members weighed anew": reweighted}
    limits = thresholds.ensemble_reweight
    return _beside_base("ensemble_reweight", base, others, limits, thresholds.excluded)


def losses(
    base: Tensor | None, by_loss: Mapping[str, Tensor], *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that the same attack on another loss breaks and the base does not; the worst loss.

    Args:
        base: outcome of the base ``(N,)``; None if it did not run.
        by_loss: name of the loss -> outcome.
        thresholds: of the share.
    """
    if base is None or not by_loss:
        return not_run("losses", NO_BASE if base is None else "No attack on another loss ran.")
    strongest = max(by_loss, key=lambda name: int(_newly(base, by_loss[name]).sum()))
    return _beside_base("losses", base, {strongest: by_loss[strongest]}, thresholds.losses, None)


def converged_steps(
    plain: Tensor | None, doubled: Tensor, *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that twice the steps break and the steps of the base do not."""
    limits, others = thresholds.converged_steps, {"twice the steps": doubled}
    return _beside_base("converged_steps", plain, others, limits, thresholds.excluded)


def converged_restarts(
    plain: Tensor | None, doubled: Tensor, *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Images that twice the restarts break and the restarts of the base do not."""
    limits, others = thresholds.converged_restarts, {"twice the restarts": doubled}
    return _beside_base("converged_restarts", plain, others, limits, None)


def unbounded(q: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Images that are not broken when the ball is the whole box.

    Args:
        q: outcome at the box's diameter (L-inf 1, L2 √d, L1 d), with twice the steps, ``(N,)``.
        thresholds: of the share that is still right.
    """
    count, n = int(right(q).sum()), len(q)
    found = f"{count} of {n} images are still right when the ball is the whole box"
    return _share("unbounded", count, n, thresholds.unbounded, found, thresholds.excluded)


def chance(q: Tensor, classes: int, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Accuracy above chance at an L-inf radius of 0.5, where any image can become grey.

    Args:
        q: outcome at that radius, ``(N,)``.
        classes: K.
        thresholds: of the accuracy above 1/K.
    """
    count, n, limits = int(right(q).sum()), len(q), thresholds.chance
    lower = lower_end(count, n) - 1.0 / classes
    return made(
        "chance",
        status_above(lower, warn=limits.warn, fail=limits.fail),
        f"{count} of {n} images are right at eps = 0.5, where chance is {100 / classes:.3g} %.",
        value=count / n - 1.0 / classes,
        count=count,
        n=n,
        threshold=f"{limits.words()}, of the accuracy above chance",
    )


def eot_k(
    plain: Tensor | None,
    doubled: Tensor,
    frozen: Tensor,
    *,
    clean: Tensor | None = None,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Whether twice the draws gain, and whether the attack succeeds with the randomness frozen.

    Both are differences of success on the same images; images that speak for the one and those
    that speak against it are weighed up, since answers at the boundary fall either way.

    Args:
        plain: outcome of the attack in expectation over K draws, ``(N,)``; None if it did not run.
        doubled: the same with 2K draws.
        frozen: outcome of the attack on one frozen draw, judged on that draw.
        clean: which images that draw gets right without an attack, ``(N,)`` booleans; of the others
            nothing is said of freezing. Absent: all.
        thresholds: `warn` of the gain, `fail` of what is lost with the randomness frozen.
    """
    limits = thresholds.eot_k
    words = (
        f"warns where 2K draws gain above {100 * (limits.warn or 0):g} %, fails where a frozen "
        f"draw loses above {100 * (limits.fail or 0):g} % (lower end of the exact interval)"
    )
    if plain is None:
        return not_run("eot_k", NO_BASE, threshold=words)
    n = len(plain)
    gain, back = int(_newly(plain, doubled).sum()), int(_newly(doubled, plain).sum())
    right = torch.ones(n, dtype=torch.bool) if clean is None else clean
    lost = int((_newly(frozen, plain) & right).sum())
    more = int((_newly(plain, frozen) & right).sum())
    found = (
        f"2K draws break {gain} of {n} images that K do not, and miss {back}; with the randomness "
        f"frozen {lost} are missed and {more} more broken"
    )
    few = too_few(n, thresholds.excluded)
    status = status_above(net_lower_end(lost, more, n), warn=None, fail=limits.fail)
    value, count = (lost - more) / n, lost
    if status == "pass":
        status = status_above(net_lower_end(gain, back, n), warn=limits.warn, fail=None)
        value, count = (gain - back) / n, gain
    return made(
        "eot_k",
        "not-run" if few else status,
        f"{few}. {found}." if few else f"{found}.",
        value=value,
        count=count,
        n=n,
        threshold=words,
    )


def monotone(by_radius: Mapping[float, Tensor], *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Whether a larger radius, attacked afresh, ever has less success; the largest drop.

    Args:
        by_radius: eps -> outcome on the same images, at least two radii.
        thresholds: of the drop between neighbouring radii.
    """
    limits = thresholds.monotone
    if len(by_radius) < 2:
        return not_run("monotone", "It takes at least two radii.", threshold=limits.words())
    radii = sorted(by_radius)
    n = len(by_radius[radii[0]])
    found = []
    for smaller, larger in pairwise(radii):
        near, far = by_radius[smaller], by_radius[larger]
        lost, gained = int(_newly(far, near).sum()), int(_newly(near, far).sum())
        found.append((lost - gained, lost, gained, smaller, larger))
    drop, lost, gained, smaller, larger = max(found)
    return made(
        "monotone",
        status_above(net_lower_end(lost, gained, n), warn=limits.warn, fail=limits.fail),
        f"From eps {smaller:.4g} to {larger:.4g}, {lost} of {n} images are no longer broken and "
        f"{gained} are newly broken.",
        value=max(0, drop) / n,
        count=lost,
        n=n,
        threshold=limits.words(),
    )


def adaptive(own: Tensor | None, rest: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Whether the rest of the attacks is significantly stronger than the adaptive attack.

    Exact one-sided McNemar test. A model that is single, deterministic and differentiable has the
    standard set as its adaptive attack: say `not_applicable`.

    Args:
        own: outcome of the adaptive attack ``(N,)``; None where one is needed and missing.
        rest: outcome of all other attacks together.
        thresholds: level of the test.
    """
    words = f"warns where one-sided McNemar has p <= {thresholds.adaptive:g}"
    if own is None:
        return not_run("adaptive", "The defense names no adaptive attack.", threshold=words)
    n = len(own)
    more, fewer = int(_newly(own, rest).sum()), int(_newly(rest, own).sum())
    p = mcnemar(more, fewer)
    return made(
        "adaptive",
        "warn" if p <= thresholds.adaptive else "pass",
        f"The rest of the attacks breaks {more} of {n} images that the adaptive attack does not, "
        f"which breaks {fewer} that the rest does not (p = {p:.2g}).",
        value=(more - fewer) / n,
        count=more,
        n=n,
        threshold=words,
    )


def mcnemar(more: int, fewer: int) -> float:
    """Exact one-sided p-value: `more` or more of more + fewer fair coins."""
    m = more + fewer
    k = torch.arange(more, m + 1, dtype=torch.float64)
    size = torch.tensor(float(m), dtype=torch.float64)
    ways = torch.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1)
    return min(1.0, float((ways - m * torch.log(torch.tensor(2.0).double())).logsumexp(0).exp()))


def _newly(before: Tensor, after: Tensor) -> Tensor:
    """The images that are right under the first attack and not under the second: ``(N,)``."""
    return right(before) & ~right(after)


def _beside_base(
    check: str,
    base: Tensor | None,
    others: Mapping[str, Tensor],
    limits: Shares,
    excluded: float | None,
) -> Check:
    """The share of images that any of the others breaks and the base does not."""
    if base is None:
        return not_run(check, NO_BASE, threshold=limits.words())
    n = len(base)
    count = int(_newly(base, all_right(list(others.values()))).sum())
    each = {name: int(_newly(base, q).sum()) for name, q in others.items()}
    names = ", ".join(
        name if len(others) == 1 else f"{name} ({number})" for name, number in each.items()
    )
    found = f"{count} of {n} images are broken by {names} and not by the base"
    return _share(check, count, n, limits, found, excluded)


def _share(
    check: str, count: int, n: int, limits: Shares, found: str, excluded: float | None
) -> Check:
    few = "" if excluded is None else too_few(n, excluded)
    return made(
        check,
        share_status(count, n, warn=limits.warn, fail=limits.fail, excluded=excluded),
        f"{few}. {found}." if few else f"{found}.",
        value=count / n if n else None,
        count=count,
        n=n,
        threshold=limits.words(),
    )
