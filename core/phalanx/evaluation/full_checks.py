"""The checks of tier full: dearer ones, on request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.attack import attacking
from phalanx.attacks.apgd import APGDDLR
from phalanx.attacks.balls import random_start
from phalanx.attacks.config import APGDConfig
from phalanx.evaluation import checks, scoring
from phalanx.evaluation.core_checks import both, doubled, tried
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.findings import Check
from phalanx.specs import L1, L2, Linf

RADII = (0.25, 0.5, 1.0, 2.0)
"""Radii of `monotone`, in units of the threat's."""
NOISE = 1000
"""Random points of the ball."""
PLANTED = 64
"""Images in each of which an adversarial example is planted."""


def full(examined: Examined) -> Iterator[Check]:
    """Checks on request."""
    base = examined.base()

    def by_radius() -> Check:
        found: dict[float, Tensor] = {}
        threat = examined.threat
        if isinstance(threat, Linf | L2 | L1):
            for factor in RADII:
                ball = type(threat)(factor * threat.eps)
                q = both(examined, [("apgd-ce", {"steps": 100})], ball)
                if q is not None:
                    found[ball.eps] = q
        return checks.monotone(found, thresholds=examined.thresholds)

    def by_loss() -> Check:
        found = {}
        for loss in ("ce", "dlr", "margin"):
            outcome = examined.attacked("pgd", {"steps": 100, "loss": loss})
            if outcome is not None:
                found[loss] = scoring.shares(outcome.bits)
        return checks.losses(base, found, thresholds=examined.thresholds)

    def at_chance() -> Check:
        count = examined.measured.counts[examined.subject.name]
        classes = examined.measured.clean[examined.subject.name].outcome(count).classes
        q = both(examined, doubled(examined, 1), Linf(0.5))
        if q is None:
            return checks.not_run("chance", "No gradient attack can run on this model.")
        return checks.chance(q, classes, thresholds=examined.thresholds)

    def restarts() -> Check:
        outcome = examined.attacked("apgd-ce", {"steps": 100, "restarts": 2})
        if outcome is None or base is None:
            return checks.not_run("converged_restarts", "The base did not run.")
        return checks.converged_restarts(
            base, scoring.shares(outcome.bits), thresholds=examined.thresholds
        )

    yield tried("monotone", by_radius)
    yield tried("chance", at_chance)
    yield tried("losses", by_loss)
    yield tried("converged_restarts", restarts)
    yield tried("noise_gain", lambda: _noise(examined, base))
    yield tried("binarization", lambda: examined.kept("binarization", lambda: _planted(examined)))


def _noise(examined: Examined, base: Tensor | None) -> Check:
    """Whether some of many uniform points of the ball is misclassified."""
    threat = examined.threat
    if not isinstance(threat, Linf | L2 | L1):
        return checks.not_run("noise_gain", "There is no ball to draw points from.")
    ball = threat

    def make() -> list[bool]:  # kept without the base, which a richer protocol may lower
        x, y = examined.images()
        stream = examined.generator("noise")
        right = torch.ones(len(x), dtype=torch.bool, device=x.device)
        with attacking(examined.model), torch.no_grad():
            function = examined.opened(examined.main_view)
            for _ in range(NOISE):
                left = right.nonzero().squeeze(1)
                if not len(left):
                    break
                points = random_start(x[left], ball, stream)
                right[left] = function(points).argmax(1) == y[left]
        found: list[bool] = right.tolist()
        return found

    right = torch.tensor(examined.kept_value("noise", make))
    return checks.noise_gain(base, right, thresholds=examined.thresholds)


def _planted(examined: Examined) -> Check:
    """The binarization test, on the features of all members side by side."""
    members: list[Any] = [one for one in examined.model.members if hasattr(one, "features")]
    threat = examined.threat
    if not members or len(members) < len(examined.model.members):
        why = "The model has no members with features in front of a linear layer."
        return checks.not_run("binarization", why)
    if not isinstance(threat, Linf | L2 | L1):
        return checks.not_run("binarization", "There is no ball to plant examples in.")
    x, _ = examined.images(PLANTED)
    attack = APGDDLR(APGDConfig(threat=threat, steps=100))
    stream = examined.generator("binarization")

    def features(images: Tensor) -> Tensor:
        return torch.cat([member.features(images) for member in members], 1)

    def own(scores: nn.Module, image: Tensor, label: Tensor) -> Tensor:
        return attack(scores, image, label, generator=stream)

    with attacking(examined.model):
        planted = checks.binarize(features, own, x, threat=threat, generator=stream)
    return checks.binarization(planted, thresholds=examined.thresholds)
