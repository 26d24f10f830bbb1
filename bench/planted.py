"""Classifiers that mask their gradients by construction, and sound ones, for `bench.verdicts`.

What is planted is fixed here, before anything is measured: a masking model offers no gradient of
what it serves, or a wrong one, or one that says nothing of the function a little further away; or
its answers vary, or depend on batch-mates, and it does not say so. A sound one serves a
differentiable function and declares what it is. None of them claims to be robust.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
from phalanx.combine import log_mean
from phalanx.defense import DefendedModel
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.nn.foreign import wrap
from phalanx.specs import Linf

Kind = Literal["masking", "sound"]
THREATS = {"mnist": Linf(0.3), "digits": Linf(0.2), "cifar10": Linf("0.5/255")}
IMAGES = {"mnist": 200, "digits": 250, "cifar10": 176}
"""First test images of each data set; 149 right ones are needed to exclude a share of 2 %."""
_TINY = 1e-12


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


# ---------------------------------------------------------------- images


def quantised(x: Tensor, levels: int = 7) -> Tensor:
    """Pixels rounded to multiples of ``1/levels``: the gradient is zero."""
    return (x * levels).round() / levels


def stretched(x: Tensor) -> Tensor:
    """Each image's range stretched to [0, 1] by numpy, which knows no gradient."""
    images = x.detach().cpu().numpy()
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.clip((images - low) / np.maximum(high - low, 1e-3), 0, 1)).to(x)


def thermometer(x: Tensor, levels: int = 8) -> Tensor:
    """One channel for each level, 1 where the pixel reaches it (Buckman et al., ICLR 2018)."""
    marks = torch.arange(1, levels + 1, device=x.device).view(1, -1, 1, 1) / (levels + 1)
    return (x >= marks).to(x.dtype)


def blockwise(x: Tensor, side: int = 4, step: float = 0.5) -> Tensor:
    """Coefficients of the cosine transform of each block rounded to multiples of `step`."""
    N, C, H, W = x.shape
    at = torch.arange(side, dtype=x.dtype, device=x.device)
    basis = torch.cos(math.pi * (2.0 * at + 1.0) * at[:, None] / (2.0 * side))
    basis = basis * math.sqrt(2.0 / side)
    basis[0] = basis[0] / math.sqrt(2.0)
    blocks = x.view(N, C, H // side, side, W // side, side).transpose(3, 4)
    rounded = (basis @ blocks @ basis.T / step).round() * step
    return (basis.T @ rounded @ basis).transpose(3, 4).reshape(N, C, H, W).clamp(0.0, 1.0)


def median(x: Tensor) -> Tensor:
    """The median of each 3 x 3 window, cut off from the graph."""
    with torch.no_grad():
        windows = functional.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
        return windows.flatten(-2).median(-1).values


def shifted(x: Tensor) -> Tensor:
    """Each batch moved by up to one pixel in both directions, at random."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(x, (down, right), (2, 3))


def noisy(x: Tensor, deviation: float = 0.1) -> Tensor:
    """Gaussian noise from torch's global generator."""
    return x + deviation * torch.randn_like(x)


def keyed(x: Tensor, deviation: float = 0.1) -> Tensor:
    """A pattern that each image chooses by its sum: one function, with no neighbourhoods."""
    key = (1e4 * x.detach().double().flatten(1).sum(1)).sin()
    at = torch.arange(1, x[0].numel() + 1, dtype=torch.float64, device=x.device)
    pattern = (1e3 * key[:, None] * at).sin().view_as(x)
    return x + deviation * math.sqrt(2.0) * pattern.to(x.dtype)


def rippled(x: Tensor, height: float = 0.05, frequency: float = 400.0) -> Tensor:
    """A ripple on each pixel: a true gradient, of 20 times the slope and either sign."""
    return x + height * (frequency * x).sin()


def blurred(x: Tensor) -> Tensor:
    """The mean of each 3 x 3 window: differentiable."""
    return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def enlarged(x: Tensor) -> Tensor:
    """Twice the size, bilinear: differentiable."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- scores


def hard(scores: Tensor) -> Tensor:
    """1 for the best class, 0 for the others."""
    return functional.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)


def hardened(scores: Tensor) -> Tensor:
    """Probabilities at a temperature of 1/50."""
    return (50.0 * scores).softmax(1)


# ---------------------------------------------------------------- modules


class Around(nn.Module):
    """A network with something done to its images and to its scores.

    Args:
        network: images to scores ``(N, K)``.
        before: done to images.
        after: done to scores.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.network(x if self.before is None else self.before(x))
        return scores if self.after is None else self.after(scores)


class Averaged(nn.Module):
    """The logarithm of the members' mean probability, from below 1e-12 on a constant.

    Args:
        members: images to scores ``(N, K)``.
        factors: what each member's scores are multiplied by.
    """

    def __init__(self, members: Sequence[nn.Module], factors: Sequence[float]) -> None:
        super().__init__()
        self.networks, self.factors = nn.ModuleList(members), list(factors)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        pairs = zip(self.networks, self.factors)
        mean = torch.stack([(c * network(x)).softmax(1) for network, c in pairs]).mean(0)
        return mean.clamp_min(_TINY).log()


class MeanScores(nn.Module):
    """The mean of the members' scores."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        return torch.stack([network(x) for network in self.networks]).mean(0)


class Purifying(nn.Module):
    """Moves images towards what the network takes them for, by gradient steps, and then answers.

    As an anti-adversary layer does (Alfarra et al., AAAI 2022, arXiv 2103.14347); the steps are
    cut off from the graph.
    """

    def __init__(self, network: nn.Module, *, steps: int = 10, size: float = 0.05) -> None:
        super().__init__()
        self.network, self.steps, self.size = network, steps, size

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        moved, label = x.detach(), None
        for _ in range(self.steps):
            with torch.enable_grad():
                image = moved.requires_grad_()
                scores = self.network(image)
                label = scores.argmax(1) if label is None else label
                loss = functional.cross_entropy(scores, label, reduction="sum")
                (slope,) = torch.autograd.grad(loss, image)
            moved = (moved.detach() - self.size * slope.sign()).clamp(0.0, 1.0)
        scores = self.network(x + (moved - x).detach())
        return scores


class Adapting(nn.Module):
    """Shifts its scores against the batch's mean entropy before it answers, for this batch alone.

    In the manner of test-time adaptation (Wang et al., ICLR 2021, arXiv 2006.10726).
    """

    def __init__(self, network: nn.Module, rate: float = 0.5) -> None:
        super().__init__()
        self.network, self.rate = network, rate

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.network(x)
        fixed = scores.detach()

        def entropy(shift: Tensor) -> Tensor:
            logs = (fixed + shift).log_softmax(1)
            return -(logs.exp() * logs).sum(1).mean()

        slope = torch.func.grad(entropy)(torch.zeros_like(fixed[0]))
        return scores - self.rate * slope


class OwnStream(nn.Module):
    """Noise from a generator that the module keeps to itself."""

    def __init__(self, network: nn.Module, deviation: float = 0.1) -> None:
        super().__init__()
        self.network, self.deviation = network, deviation
        self.numbers = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        noise = torch.from_numpy(self.numbers.standard_normal(tuple(x.shape), dtype=np.float32))
        scores: Tensor = self.network(x + self.deviation * noise.to(x))
        return scores


class OneOf(nn.Module):
    """Each batch is answered by one network, drawn at random."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.networks[int(torch.randint(len(self.networks), ()))](x)
        return scores


class Votes(nn.Module):
    """How often each class wins on noisy copies."""

    def __init__(self, network: nn.Module, *, copies: int = 8, deviation: float = 0.1) -> None:
        super().__init__()
        self.network, self.copies, self.deviation = network, copies, deviation

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to counts ``(N, K)``."""
        return sum_of(hard(self.network(noisy(x, self.deviation))) for _ in range(self.copies))


class _Backwards(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradients[0], None


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The images, whose gradient is multiplied by a factor."""
    found: Tensor = _Backwards.apply(x, factor)
    return found


class SidePath(nn.Module):
    """Answers without a graph, plus a millionth of another network, which alone has a gradient."""

    def __init__(self, network: nn.Module, side: nn.Module) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.network(x.detach()) + 1e-6 * self.side(x)
        return scores


class WithoutGraph(nn.Module):
    """Answers under `torch.no_grad`, as a decorated `forward` does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.network(x)
        return scores


def sum_of(parts: Any) -> Tensor:
    """The sum of tensors."""
    return torch.stack(list(parts)).sum(0)


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
        case("undeclared noise", "undeclared", lambda: Around(clean(), before=noisy)),
        case("numpy preprocessing", "no gradient", lambda: Around(clean(), before=stretched)),
        case("purifying steps", "gradients inside", lambda: Purifying(clean())),
    ]


def _masking() -> list[Case]:
    """Others, on the digits."""

    def case(
        name: str, how: str, make: Callable[[], nn.Module], *, stochastic: bool = False
    ) -> Case:
        return Case(
            name, "masking", how, "digits", lambda: wrap(make(), stochastic=stochastic), plain
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
        case("random shifts", "undeclared", before(shifted)),
        case("dropped pixels", "undeclared", before(partial(functional.dropout, p=0.1))),
        case("a stream of its own", "undeclared", lambda: OwnStream(plain())),
        case("one of three networks", "undeclared", lambda: OneOf(three())),
        case("votes of noisy copies", "undeclared", lambda: Votes(plain())),
        case("batch statistics", "batch-mates", lambda: of_the_batch(_normalised())),
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
