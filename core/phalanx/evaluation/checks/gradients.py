"""Checks of gradients: whether there are any, whether they are true, who of several has them.

A stochastic model is given as a callable of one fixed draw whose stream begins anew at each call.
Sources: zero gradients: Croce and Hein (ICML 2020, arXiv 2003.01690) and Pintor et al., "Indicators
of attack failure" (NeurIPS 2022, arXiv 2106.09947), whose unstable predictions `unstable` are;
dominating members: MORA (Yu et al., NeurIPS 2022, arXiv 2211.08008).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from phalanx.attack import Scores
from phalanx.attacks.ascent import input_gradient
from phalanx.attacks.balls import finite, per_row, random_start
from phalanx.attacks.losses import LabelLoss, cross_entropy, margin
from phalanx.evaluation.checks.shares import lower_end, share_status, status_above, too_few
from phalanx.evaluation.checks.table import made, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check
from phalanx.specs import L1, L2, Linf

NOISE = 1e-3
"""Standard deviation of the noise at which `grad_fd` looks: it breaks exact ties of max-pooling."""
STEP = 1e-3
"""h of the central differences."""
DIRECTIONS = 16
DRAWS = 100
BATCH = 256
"""Images whose graph is held at once, unless less memory is there."""
DOMINANT = 0.9
"""Share of the members' gradient norms above which one member dominates."""
_MACHINE = (torch.cuda.OutOfMemoryError, MemoryError)  # say nothing of the model


def grad_bad(
    scores: Scores,
    x: Tensor,
    y: Tensor,
    *,
    loss: LabelLoss,
    name: str,
    batch: int = BATCH,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Share of images whose whole gradient is zero, NaN or infinite: no entry can be followed.

    A backward that raises, or gives no gradient, counts for every image; the reason tells it.

    Args:
        scores: images to scores ``(N, K)``.
        x: images ``(N, C, H, W)``.
        y: labels ``(N,)``.
        loss: what an attack ascends.
        name: its name; the check's id is ``grad_bad:name``.
        batch: images at a time.
        thresholds: of the share.
    """
    check, limits, n = f"grad_bad:{name}", thresholds.grad_bad, len(x)
    try:
        gradient = _gradient(scores, x, y, loss, batch)
    except _MACHINE:
        raise
    except Exception as error:  # somebody's network raises anything
        count = n
        found = f"The backward pass failed ({type(error).__name__}: {error}), so it counts for all"
    else:
        count = int((finite(gradient).flatten(1) == 0).all(1).sum())
        found = f"{count} of {n} images have no usable gradient of the {name} loss"
    few = too_few(n, thresholds.excluded)
    return made(
        check,
        share_status(count, n, warn=limits.warn, fail=limits.fail, excluded=thresholds.excluded),
        f"{few}. {found}." if few else f"{found}.",
        value=count / n if n else None,
        count=count,
        n=n,
        threshold=limits.words(),
    )


def grad_fd(
    scores: Scores,
    x: Tensor,
    y: Tensor,
    *,
    generator: Generator,
    batch: int = BATCH,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Whether autograd's gradient is the slope of the function: the median cosine over images.

    Of the margin loss: cross-entropy in float32 is round-off where it is tiny.

    Args:
        scores: images to scores ``(N, K)``, differentiable.
        x: images ``(N, C, H, W)``.
        y: labels ``(N,)``.
        generator: of noise and directions, on x's device.
        batch: images at a time.
        thresholds: of the median.
    """
    words = f"{thresholds.grad_fd.words()} (median over images)"
    try:
        parts = [
            directional(scores, images, labels, generator=generator)
            for images, labels in zip(x.split(batch), y.split(batch), strict=True)
        ]
        slopes, differences = (torch.cat(both) for both in zip(*parts, strict=True))
    except _MACHINE:
        raise
    except Exception as error:  # somebody's network raises anything; `grad_bad` counts it
        reason = f"There is no gradient to compare ({type(error).__name__}: {error})."
        return not_run("grad_fd", reason, n=len(x), threshold=words)
    value = float(cosine(slopes, differences).quantile(0.5))
    return made(
        "grad_fd",
        thresholds.grad_fd.status(value),
        f"Autograd and central differences along {DIRECTIONS} directions have a median cosine of "
        f"{value:.4f}.",
        value=value,
        n=len(x),
        threshold=words,
    )


def directional(
    scores: Scores, x: Tensor, y: Tensor, *, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Derivatives of the margin loss along 16 unit directions of each image, in two ways.

    Args:
        scores: images to scores ``(N, K)``, differentiable.
        x: images ``(N, C, H, W)``; looked at beside x, by Gaussian noise of 1e-3. Noise and steps
            may leave the box.
        y: labels ``(N,)``.
        generator: of noise and directions, on x's device.

    Returns:
        Autograd's, and central differences with h = 1e-3: float64 ``(N, 16)`` each.
    """

    def loss(images: Tensor) -> Tensor:
        return margin(scores(images), y)

    x = x.detach() + NOISE * torch.empty_like(x).normal_(generator=generator)
    _, gradient = input_gradient(loss, x)
    slopes, differences = [], []
    with torch.no_grad():
        for _ in range(DIRECTIONS):
            along = torch.empty_like(x).normal_(generator=generator)
            along = along / per_row(along.flatten(1).norm(dim=1), x)
            slopes.append((gradient.double() * along.double()).flatten(1).sum(1))
            rise = loss(x + STEP * along).double() - loss(x - STEP * along).double()
            differences.append(rise / (2.0 * STEP))
    return torch.stack(slopes, 1), torch.stack(differences, 1)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of rows ``(N, ...)``: float64 ``(N,)``; 0 where one is zero or not finite."""
    directions = []
    for rows in (one, other):
        flat = rows.detach().double().flatten(1)
        scaled = flat / flat.abs().amax(1, keepdim=True)  # squares of tiny entries underflow
        directions.append(scaled / scaled.norm(dim=1, keepdim=True))
    found: Tensor = (directions[0] * directions[1]).sum(1).nan_to_num(0.0, 0.0, 0.0)
    return found


def grad_deployed(
    estimator: Tensor, deployed: Tensor, *, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Whether an estimator's gradient is that of the deployed function: the median cosine.

    Args:
        estimator: the estimator's gradient of one loss, ``(N, C, H, W)``.
        deployed: autograd's through the deployed forward, of the same loss and images.
        thresholds: of the median; rows of which both gradients are zero agree.
    """
    agree = ((estimator == 0) & (deployed == 0)).flatten(1).all(1)
    value = float(torch.where(agree, 1.0, cosine(estimator, deployed)).quantile(0.5))
    return made(
        "grad_deployed",
        thresholds.grad_deployed.status(value),
        f"The estimator's gradient and that of the deployed function have a median cosine of "
        f"{value:.4f}.",
        value=value,
        n=len(estimator),
        threshold=f"{thresholds.grad_deployed.words()} (median over images)",
    )


def ensemble_dominance(
    members: Sequence[Scores],
    x: Tensor,
    y: Tensor,
    *,
    loss: LabelLoss = cross_entropy,
    batch: int = BATCH,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Share of images of which one member has more than 90 % of the members' gradient norms.

    Args:
        members: images to scores ``(N, K)`` each, at least two.
        x: images ``(N, C, H, W)``.
        y: labels ``(N,)``.
        loss: of each member; images without any gradient are dominated by none.
        batch: images at a time.
        thresholds: of the share.
    """
    limits, n = thresholds.ensemble_dominance, len(x)
    if len(members) < 2:
        return not_run("ensemble_dominance", "One member cannot dominate others.", n=n)
    try:
        norms = torch.stack([_gradient_norms(member, x, y, loss, batch) for member in members])
    except _MACHINE:
        raise
    except Exception as error:  # somebody's network raises anything
        reason = f"A member has no gradient ({type(error).__name__}: {error})."
        return not_run("ensemble_dominance", reason, n=n, threshold=limits.words())
    count = int((norms.amax(0) > DOMINANT * norms.sum(0)).sum())
    return made(
        "ensemble_dominance",
        status_above(lower_end(count, n), warn=limits.warn, fail=limits.fail),
        f"Of {count} of {n} images one of {len(members)} members has more than 90 % of the "
        "gradient.",
        value=count / n,
        count=count,
        n=n,
        threshold=limits.words(),
    )


def _gradient(scores: Scores, x: Tensor, y: Tensor, loss: LabelLoss, batch: int) -> Tensor:
    """Gradients of the images, so many at a time: ``(N, C, H, W)``."""
    found = []
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):

        def objective(z: Tensor, labels: Tensor = labels) -> Tensor:
            return loss(scores(z), labels)

        found.append(input_gradient(objective, images)[1])
    return torch.cat(found)


def _gradient_norms(scores: Scores, x: Tensor, y: Tensor, loss: LabelLoss, batch: int) -> Tensor:
    """Euclidean norm of each image's gradient: float64 ``(N,)``."""
    gradient = _gradient(scores, x, y, loss, batch)
    norms: Tensor = finite(gradient).double().flatten(1).norm(dim=1)
    return norms


def unstable(
    scores: Scores,
    x: Tensor,
    y: Tensor,
    *,
    threat: Linf | L2 | L1,
    generator: Generator,
    draws: int = DRAWS,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Mean relative change of the margin loss under uniform noise of half the threat's radius.

    ``mean |L(x + δ) − L(x)| / |L(x)|``, each image's mean at most 1. Deviation: the paper clips
    the mean over all images; here one image at the boundary cannot decide it. Noise stays in the
    box.

    Args:
        scores: images to scores ``(N, K)``.
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.
        threat: its ball, at half the radius, is drawn from.
        generator: on x's device.
        draws: per image.
        thresholds: of the mean.
    """
    half = type(threat)(threat.eps / 2.0)
    with torch.no_grad():
        before = margin(scores(x), y).double()
        change = torch.zeros_like(before)
        for _ in range(draws):
            change += (margin(scores(random_start(x, half, generator)), y).double() - before).abs()
    relative = (change / draws / before.abs()).clamp_max(1.0)  # 0 / 0 is no change
    value = float(relative.nan_to_num(0.0).mean())
    return made(
        "unstable",
        thresholds.unstable.status(value),
        f"Noise of {draws} draws changes the margin by {100 * value:.1f} % on average.",
        value=value,
        n=len(x),
        threshold=thresholds.unstable.words(),
    )
