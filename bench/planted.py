"""Classifiers that mask their gradients by construction, and sound ones, for `bench.verdicts`.

Which is which is decided by construction, not by an outcome: a masking model offers no gradient of
what it serves, or a wrong one, or one that says nothing of the function a little further away; or
its answers vary, or depend on batch-mates, and it does not say so. A sound one serves a
differentiable function and declares what it is. Neither kind claims to be robust.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.masks import (
    Adapting,
    Around,
    Averaged,
    MeanScores,
    OneOf,
    OwnStream,
    Purifying,
    SidePath,
    Votes,
    WithoutGraph,
    blockwise,
    blurred,
    enlarged,
    hard,
    hardened,
    keyed,
    median,
    noisy,
    quantised,
    rippled,
    scaled_gradient,
    shifted,
    stretched,
    thermometer,
)
from bench.networks import CASES, load
from bench.trained import (
    KWinners,
    Rounded,
    Shape,
    Signs,
    Steep,
    of_the_batch,
    rounded_weights,
    trained,
)
from phalanx.defense import DefendedModel
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.nn.foreign import wrap
from phalanx.specs import Linf

Kind = Literal["masking", "sound"]
THREATS = {"mnist": Linf(0.3), "digits": Linf(0.2), "cifar10": Linf("0.5/255")}
IMAGES = {"mnist": 200, "digits": 250, "cifar10": 176}
"""First test images of each data set; 149 right ones are needed to exclude a share of 2 %."""


@dataclass(frozen=True)
class Case:
    """A model whose masking is known.

    Attributes:
        name: in tables.
        kind: whether it masks.
        how: by what it masks, or what kind of sound model it is.
        data: whose test images it is attacked on.
        make: the model.
        source: gives the transfer check its examples: the undefended twin of a masking model,
            another network beside a sound one.
    """

    name: str
    kind: Kind
    how: str
    data: str
    make: Callable[[], DefendedModel]
    source: Callable[[], nn.Module]


# ---------------------------------------------------------------- networks


@cache
def published(weights: str) -> nn.Module:
    """A network of ``$PHALANX_WEIGHTS``, by its file's name without ending."""
    case = CASES["cifar10" if weights.startswith("cifar10") else "mnist"]
    return load(replace(case, weights=weights), 1).network


CLEAN, ADVERSARIAL, RESNET = "mnist_lenet_clean", "mnist_lenet_adversarial", "cifar10_resnet20"
_MNIST, _CIFAR = Shape(side=28), Shape(channels=3, side=32, width=32)
_OTHER = Shape(width=12, pool="average")
MEAN, STD = 0.3, 0.4


def clean() -> nn.Module:
    """The published MNIST network, undefended."""
    return published(CLEAN)


def small(seed: int) -> nn.Module:
    """A small network of MNIST."""
    return trained(_MNIST, seed, data="mnist", steps=300)


def plain(seed: int = 0) -> nn.Module:
    """An undefended network of the digits."""
    return trained(seed=seed)


def three() -> list[nn.Module]:
    """Three of these."""
    return [plain(seed) for seed in range(3)]


def normalized(x: Tensor) -> Tensor:
    """Pixels less a mean, over a deviation."""
    return (x - MEAN) / STD


def _planted() -> list[Case]:
    """The five of the published MNIST network."""

    def case(name: str, how: str, make: Callable[[], nn.Module]) -> Case:
        return Case(name, "masking", how, "mnist", lambda: wrap(make()), clean)

    return [
        case("quantised input", "no gradient", lambda: Around(clean(), before=quantised)),
        case("logits x 100", "saturated", lambda: Around(clean(), after=lambda z: 100.0 * z)),
        case(
            "one of two networks",
            "undeclared",
            lambda: OneOf([clean(), published(ADVERSARIAL)]),
        ),
        case("numpy preprocessing", "no gradient", lambda: Around(clean(), before=stretched)),
        case("purifying steps", "gradients inside", lambda: Purifying(clean())),
    ]


def _masking() -> list[Case]:
    """Others, on the digits."""

    def case(
        name: str,
        how: str,
        make: Callable[[], nn.Module],
        *,
        stochastic: bool = False,
        twin: Callable[[], nn.Module] = plain,
    ) -> Case:
        return Case(
            name, "masking", how, "digits", lambda: wrap(make(), stochastic=stochastic), twin
        )

    def own(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: trained(Shape(activation=activation))

    def before(done: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
        return lambda: Around(plain(), before=done)

    def after(done: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
        return lambda: Around(plain(), after=done)

    def thermometer_network() -> nn.Module:
        return Around(trained(Shape(channels=8), front=thermometer), before=thermometer)

    def distilled() -> nn.Module:
        return trained(seed=1, temperature=50.0, teacher=trained(temperature=50.0))

    return [
        case("thermometer code", "no gradient", thermometer_network),
        case("rounded activations", "no gradient", own(Rounded)),
        case("signs as activations", "no gradient", own(Signs)),
        case("block quantisation", "no gradient", before(blockwise)),
        case("median filter, detached", "no gradient", before(median)),
        case("gradient set to zero", "no gradient", before(partial(scaled_gradient, factor=0.0))),
        case("rounded scores", "no gradient", after(torch.round)),
        case("labels alone", "no gradient", after(hard)),
        case("no_grad in forward", "no gradient", lambda: WithoutGraph(plain())),
        case("steep hard sigmoids", "saturated", own(partial(Steep, "sigmoid"))),
        case("steep tanh", "saturated", own(partial(Steep, "tanh"))),
        case("hardened probabilities", "saturated", after(hardened)),
        case("hardened ensemble", "saturated", lambda: Averaged(three(), (100.0,) * 3)),
        case("distillation at 50", "saturated", distilled),
        case("gradient reversed", "wrong", before(partial(scaled_gradient, factor=-1.0))),
        case("gradient of a side path", "wrong", lambda: SidePath(plain(), plain(3))),
        case("one member dominates", "wrong", lambda: Averaged(three(), (100.0, 0.1, 0.1))),
        case("noise keyed by the image", "rough", before(keyed)),
        case("rippled pixels", "rough", before(rippled)),
        case("k winners", "rough", own(KWinners)),
        case("noise", "undeclared", before(noisy)),
        case("random shifts", "undeclared", before(shifted)),
        case("dropped pixels", "undeclared", before(partial(functional.dropout, p=0.1))),
        case("a stream of its own", "undeclared", lambda: OwnStream(plain())),
        case("one of three networks", "undeclared", lambda: OneOf(three())),
        case("votes of noisy copies", "undeclared", lambda: Votes(plain())),
        case(
            "batch statistics",
            "batch-mates",
            lambda: of_the_batch(_normalised()),
            twin=_normalised,
        ),
        case("adapting to the batch", "gradients inside", lambda: Adapting(plain())),
        case(
            "declared noise, quantised",
            "no gradient",
            before(lambda x: quantised(noisy(x))),
            stochastic=True,
        ),
    ]


def _normalised() -> nn.Module:
    return trained(Shape(normalised=True))


def _sound_of_digits() -> list[Case]:
    """Differentiable functions that declare what they are."""

    def case(name: str, how: str, make: Callable[[], DefendedModel]) -> Case:
        return Case(name, "sound", how, "digits", make, lambda: trained(_OTHER, 9))

    def alone(name: str, make: Callable[[], nn.Module]) -> Case:
        return case(name, "single", lambda: wrap(make()))

    def around(name: str, **done: Callable[[Tensor], Tensor]) -> Case:
        return alone(name, lambda: Around(plain(), **done))

    def random(name: str, before: Callable[[Tensor], Tensor]) -> Case:
        return case(
            name, "stochastic", lambda: wrap(Around(plain(), before=before), stochastic=True)
        )

    def members(count: int, **settings: Any) -> list[nn.Module]:
        return [trained(seed=seed, **settings) for seed in range(count)]

    def mean_scores() -> DefendedModel:
        module = MeanScores(three())
        return wrap(module, members=list(module.networks))

    return [
        alone("undefended", plain),
        alone("average pooling", lambda: trained(Shape(pool="average"))),
        alone("perceptron", lambda: trained(Shape(hidden=128))),
        alone("softplus", lambda: trained(Shape(activation=nn.Softplus))),
        alone("tanh", lambda: trained(Shape(activation=nn.Tanh))),
        alone("batch normalisation", _normalised),
        alone("rounded weights", lambda: rounded_weights(plain())),
        alone("adversarially trained", lambda: trained(eps=0.2, steps=1500)),
        alone("trained with noise", lambda: trained(noise=0.2)),
        alone("enlarged", lambda: Around(trained(Shape(side=16), front=enlarged), before=enlarged)),
        around("blurred", before=blurred),
        around("temperature 1/2", after=lambda z: 2.0 * z),
        around("temperature 2", after=lambda z: z / 2.0),
        around("log-probabilities", after=lambda z: z.log_softmax(1)),
        case(
            "normalised images",
            "single",
            lambda: wrap(trained(front=normalized), mean=[MEAN], std=[STD]),
        ),
        case("ensemble of two", "ensemble", lambda: MeanEnsemble(members(2))),
        case("ensemble of three", "ensemble", lambda: MeanEnsemble(members(3))),
        case(
            "ensemble, adversarially trained",
            "ensemble",
            lambda: MeanEnsemble(members(3, eps=0.2, steps=1500)),
        ),
        case("mean of scores", "ensemble", mean_scores),
        random("declared noise", noisy),
        random("declared dropped pixels", partial(functional.dropout, p=0.1)),
        case("population of three", "stochastic", lambda: Population(members(3))),
    ]


def _sound_of_images() -> list[Case]:
    """Published networks, and an ensemble with one of them."""

    def case(name: str, how: str, data: str, make: Callable[[], DefendedModel]) -> Case:
        source = partial(trained, _CIFAR, 9, data=data) if data == "cifar10" else partial(small, 9)
        return Case(name, "sound", how, data, make, source)

    return [
        case("undefended", "single", "mnist", lambda: wrap(clean())),
        case("adversarially trained", "single", "mnist", lambda: wrap(published(ADVERSARIAL))),
        case(
            "ensemble of three",
            "ensemble",
            "mnist",
            lambda: MeanEnsemble([clean(), small(1), small(2)]),
        ),
        case("ResNet-20", "single", "cifar10", lambda: wrap(published(RESNET))),
    ]


CASES_BY_KIND: dict[Kind, list[Case]] = {
    "masking": [*_planted(), *_masking()],
    "sound": [*_sound_of_images(), *_sound_of_digits()],
}
PLANTED = tuple(case for cases in CASES_BY_KIND.values() for case in cases)
"""Every model, the masking ones first."""
