"""The binarization test: an adversarial example is planted, and the attack must find it.

Zimmermann, Brendel, Tramèr, Carlini, "Increasing confidence in adversarial robustness evaluations"
(NeurIPS 2022, arXiv 2206.13991). Per image: points well inside the ball are labelled 0, points on
its sphere 1, and a linear read-out on the defense's frozen features tells them apart, so that the
ball holds an adversarial example. Random points must hardly find it, and the attack must.

Deviation: the read-out is scaled so that both kinds of training points are 1 apart, with the cut
at 99.9 % of the way to the sphere's points; the published code moves the cut likewise, and scales
logits to those of the defense. Deviation: a coordinate that would leave the box is reflected, so
that a point of the sphere stays on it; the published code clips. Detectors, whose points have to
be chosen so that they are not rejected, are not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor, nn

from phalanx.attacks.balls import random_start, within
from phalanx.evaluation.checks.planting import Ball, Features, Place, Readout, fit, sphere
from phalanx.evaluation.checks.shares import share_status
from phalanx.evaluation.checks.table import made, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check
from phalanx.specs import Spec

Evaluation = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Binary scores ``(N, 2)``, an image ``(1, C, H, W)`` and its label ``(1,)`` to an example."""

_BATCH = 256  # points through the features at a time


class BinarizationConfig(Spec):
    """How points are drawn and the read-out is set; the defaults are the published ones."""

    inner: PositiveInt = Field(999, description="Points labelled 0; the image itself is one.")
    boundary: PositiveInt = Field(1, description="Points labelled 1, on the sphere.")
    gap: float = Field(0.05, gt=0.0, lt=1.0, description="Inner points lie within (1 - gap) eps.")
    closeness: float = Field(0.999, ge=0.0, lt=1.0, description="Of the cut to the sphere points.")
    place: Place = Field("corners", description="Of L-inf sphere points.")
    random: PositiveInt = Field(200, description="Random points that must hardly find any.")
    validation: PositiveInt = Field(200, description="Fresh points of each label.")


@dataclass(frozen=True)
class Binarized:
    """What came of it, per image ``(N,)``.

    Attributes:
        separable: whether a linear read-out tells the points apart; the others mean nothing where
            not.
        found: whether the attack found an adversarial example, within ball and box.
        random: whether a random point is one.
        validation: share of fresh points of both kinds on their side, the mean of the two.
        gain: rise of z by the attack over that by the best point of the sphere, minus 1.
        dimension: D.
        points: training points of each image.
    """

    separable: Tensor
    found: Tensor
    random: Tensor
    validation: Tensor
    gain: Tensor
    dimension: int
    points: int


def binarize(
    features: Features,
    attack: Evaluation,
    x: Tensor,
    *,
    threat: Ball,
    generator: Generator,
    config: BinarizationConfig | None = None,
) -> Binarized:
    """Plant an adversarial example for each image, and look for it by attack and at random.

    Args:
        features: differentiable; of a stochastic model on one fixed draw.
        attack: the evaluation's own, within `threat`.
        x: images ``(N, C, H, W)`` in [0, 1].
        threat: a single ball.
        generator: on x's device.
        config: of points and read-out.
    """
    config = config or BinarizationConfig()
    draw = _Points(threat, config, generator)
    rows, dimension = [], 0
    for image in x.split(1):
        inner = _features(features, torch.cat([image, draw.inside(image, config.inner - 1)]))
        outer = _features(features, draw.outside(image, config.boundary, config.place))
        dimension = inner.shape[1]
        fitted = fit(inner, outer, config.closeness)
        if fitted is None:
            rows.append((0.0, 0.0, 0.0, 0.0, 0.0))
            continue
        readout = Readout(features, *fitted)
        low, high = readout.logit(inner[:1]), readout.logit(outer).max()
        label = torch.zeros(1, dtype=torch.long, device=x.device)
        example = attack(readout, image.clone(), label).detach().to(image)
        kept = bool(within(example, image, threat).all())
        reached = readout.logit(_features(features, example)) if kept else low
        tried = readout.logit(_features(features, draw.tried(image)))
        zeros = readout.logit(_features(features, draw.inside(image, config.validation))) <= 0
        fresh = draw.outside(image, config.validation, config.place)
        ones = readout.logit(_features(features, fresh)) > 0
        rows.append(
            (
                1.0,
                float(reached > 0),
                float((tried > 0).any()),
                float((zeros.double().mean() + ones.double().mean()) / 2.0),
                float((reached - low) / (high - low) - 1.0),
            )
        )
    table = torch.tensor(rows, dtype=torch.float64)
    return Binarized(
        separable=table[:, 0] > 0,
        found=table[:, 1] > 0,
        random=table[:, 2] > 0,
        validation=table[:, 3],
        gain=table[:, 4],
        dimension=dimension,
        points=config.inner + config.boundary,
    )


@dataclass(frozen=True)
class _Points:
    """Random points around an image ``(1, C, H, W)``: ``(count, C, H, W)`` each."""

    threat: Ball
    config: BinarizationConfig
    generator: Generator

    def inside(self, image: Tensor, count: int) -> Tensor:
        """In the smaller ball."""
        smaller = type(self.threat)(self.threat.eps * (1.0 - self.config.gap))
        return random_start(image.expand(count, *image.shape[1:]), smaller, self.generator)

    def outside(self, image: Tensor, count: int, place: Place) -> Tensor:
        """On the sphere."""
        rows = image.expand(count, *image.shape[1:])
        return sphere(rows, self.threat, place=place, generator=self.generator)

    def tried(self, image: Tensor) -> Tensor:
        """The random search's: half of them on the surface, half in corners."""
        half = self.config.random // 2
        surface = self.outside(image, self.config.random - half, "surface")
        return torch.cat([surface, self.outside(image, half, "corners")])


def _features(features: Features, points: Tensor) -> Tensor:
    """Features of points: ``(N, D)``."""
    with torch.no_grad():
        return torch.cat([features(part).flatten(1) for part in points.split(_BATCH)])


def binarization(result: Binarized, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Planted examples that the attack does not find; not run where random points find them.

    Args:
        result: of `binarize`.
        thresholds: of the share not found, and of random success.
    """
    limits, n = thresholds.binarization, int(result.separable.sum())
    words = (
        f"{limits.words()}; not run where random points find more than "
        f"{100 * thresholds.binarization_random:g} %"
    )
    if n == 0:
        reason = (
            f"No linear read-out on {result.dimension} features tells {result.points} points "
            "apart: take fewer points."
        )
        return not_run("binarization", reason, n=0, threshold=words)
    random = float(result.random[result.separable].double().mean())
    count = int((~result.found & result.separable).sum())
    said = (
        f"Of {n} planted examples the attack does not find {count}, random points find "
        f"{100 * random:.1f} % (read-out right on "
        f"{100 * float(result.validation[result.separable].mean()):.1f} % of fresh points, mean "
        f"gain {float(result.gain[result.separable].mean()):.2f})"
    )
    easy = random > thresholds.binarization_random
    return made(
        "binarization",
        "not-run"
        if easy
        else share_status(count, n, warn=limits.warn, fail=limits.fail, excluded=None),
        f"{said}: too easy to tell anything; take more inner points." if easy else f"{said}.",
        value=count / n,
        count=count,
        n=n,
        threshold=words,
    )
