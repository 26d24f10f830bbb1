"""Networks that are trained in seconds, seeded: what the models of `bench.planted` are made of.

Those of the digits (8 x 8 images, from scikit-learn) have two convolutions; those that stand beside
a published network of MNIST or CIFAR-10, as a source of examples, have two or three.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from phalanx import randomness
from phalanx.attack import attacking
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.data import default_root, load_data
from phalanx.specs import Linf

STEPS = 600
"""Of training on the digits, batches of 64."""
Front = Callable[[Tensor], Tensor]


class KWinners(nn.Module):
    """Keeps the largest activations of each image and sets the others to zero.

    Xiao, Zhong, Zheng, "Enhancing adversarial defense by k-winners-take-all" (ICLR 2020, arXiv
    1905.10510): a discontinuous function.
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Activations ``(N, ...)`` to the same shape."""
        flat = x.flatten(1)
        lowest = flat.topk(max(1, math.ceil(self.share * flat.shape[1])), 1).values[:, -1:]
        return torch.where(flat >= lowest, flat, 0.0).view_as(x)


class Signs(nn.Module):
    """Signs of activations.

    In training it has the gradient of a clipped identity; deployed, it has its own, which is zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activations to -1 or 1."""
        signs = torch.where(x > 0, 1.0, -1.0)
        return _learned(signs, x.clamp(-1.0, 1.0)) if self.training else signs


class Rounded(nn.Module):
    """Non-negative activations rounded to quarters; only in training there is a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Activations to multiples of 1/4."""
        x = x.relu()
        steps = (4.0 * x).round() / 4.0
        return _learned(steps, x) if self.training else steps


class Steep(nn.Module):
    """A saturating function of a steep slope: ``tanh`` or a hard sigmoid.

    In training it has the gradient that it would have with a slope of 2.
    """

    def __init__(self, kind: str, slope: float = 200.0) -> None:
        super().__init__()
        self.kind, self.slope = kind, slope

    def forward(self, x: Tensor) -> Tensor:
        """Activations to [-1, 1], or to [0, 1]."""
        steep = torch.tanh if self.kind == "tanh" else functional.hardsigmoid
        found: Tensor = steep(self.slope * x)
        return _learned(found, steep(2.0 * x)) if self.training else found


def _learned(value: Tensor, differentiable: Tensor) -> Tensor:
    """The value, with another tensor's gradient."""
    return differentiable + (value - differentiable).detach()


@dataclass(frozen=True)
class Shape:
    """How a small network is built.

    Attributes:
        width: channels of the first convolution, twice as many of the second.
        pool: ``max`` or ``average``.
        activation: of the hidden layers.
        normalised: batch normalisation behind each convolution.
        channels: of the images that it takes.
        side: of these.
        hidden: a multilayer perceptron with a hidden layer of so many instead.
    """

    width: int = 16
    pool: str = "max"
    activation: Callable[[], nn.Module] = nn.ReLU
    normalised: bool = False
    channels: int = 1
    side: int = 8
    hidden: int = 0

    def build(self) -> nn.Sequential:
        """The untrained network."""
        if self.hidden:
            size = self.channels * self.side**2
            layers = [nn.Flatten(), nn.Linear(size, self.hidden), self.activation()]
            return nn.Sequential(*layers, nn.Linear(self.hidden, 10))
        pool = nn.MaxPool2d if self.pool == "max" else nn.AvgPool2d
        layers = []
        sizes = (self.channels, self.width, 2 * self.width)
        for before, after in pairwise(sizes):
            layers.append(nn.Conv2d(before, after, 3, padding=1))
            layers += [nn.BatchNorm2d(after)] if self.normalised else []
            layers += [self.activation(), pool(2)]
        flat = sizes[-1] * (self.side // 4) ** 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 10))


PLAIN = Shape()


@cache
def trained(
    shape: Shape = PLAIN,
    seed: int = 0,
    *,
    data: str = "digits",
    steps: int = STEPS,
    front: Front | None = None,
    eps: float = 0.0,
    noise: float = 0.0,
    temperature: float = 1.0,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """A trained network, in evaluation mode, its parameters frozen; one for all who ask alike.

    Args:
        shape: of the network.
        seed: of weights, batches and noise.
        data: whose training images.
        steps: of Adam, at batches of 64 (128 of larger data sets).
        front: done to images first, in training; the network that comes back is without it.
        eps: L-inf radius of adversarial training with 5 steps of PGD; 0: none.
        noise: standard deviation of noise on images in training.
        temperature: that logits are divided by in training.
        teacher: whose softened answers are learned instead of labels (distillation).
    """
    images = load_data(data, root=default_root()).train
    batch = 64 if data == "digits" else 128
    with randomness.seeded("bench", "trained", data, seed):
        network = shape.build()
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        order = torch.randint(len(images), (steps, batch))
        attack = PGD(PGDConfig(threat=Linf(eps), steps=5, step=eps / 3)) if eps else None
        for step, rows in enumerate(order):
            given = images.fetch(rows)
            x, y = given.x, given.y
            x = x + noise * torch.randn_like(x) if noise else x
            if attack is not None:
                stream = randomness.generator("bench", "trained", seed, step)
                with attacking(network):
                    x = attack(network, x, y, generator=stream)
            x = x if front is None else front(x)
            loss = _loss(network.train()(x) / temperature, x, y, temperature, teacher)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimiser.step()
    return network.eval().requires_grad_(False)  # noqa: FBT003  # torch's way


def _loss(
    scores: Tensor, x: Tensor, y: Tensor, temperature: float, teacher: nn.Module | None
) -> Tensor:
    """Cross-entropy with labels, or with a teacher's probabilities at this temperature."""
    if teacher is None:
        return functional.cross_entropy(scores, y)
    with torch.no_grad():
        soft = (teacher(x) / temperature).softmax(1)
    return functional.cross_entropy(scores, soft)


def rounded_weights(network: nn.Module, levels: int = 16) -> nn.Module:
    """A copy whose weights are rounded to so many levels of each tensor's largest: sound."""
    found = copy.deepcopy(network)
    with torch.no_grad():
        for weight in found.parameters():
            unit = weight.abs().max() / levels
            weight.copy_((weight / unit).round() * unit)
    return found


def of_the_batch(network: nn.Module) -> nn.Module:
    """A copy whose batch normalisation goes by each batch's own statistics."""
    found = copy.deepcopy(network)
    for part in found.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = None
    return found
