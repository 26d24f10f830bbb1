"""Small functions whose gradients, randomness and state are known."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Generator, Tensor, nn

SIDE = 4


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    """n images and labels that a `Linear` net gets right."""
    x = torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return x, Linear()(x).argmax(1)


class Linear(nn.Module):
    """Three classes, linear in the pixels."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, 3, generator=generator))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.weight)


class Quantised(Linear):
    """Rounds its input: gradient zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((8 * x).round() / 8)


class StraightThrough(Linear):
    """Rounds its input and pretends that it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + ((8 * x).round() / 8 - x).detach())


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no backward for you")


class NoBackward(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Raises.apply(x))


class Detached(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()).detach()


class Noisy(Linear):
    """Adds noise from torch's, numpy's or Python's global generator."""

    def __init__(self, source: str, size: float = 0.1) -> None:
        super().__init__()
        self.source, self.size = source, size

    def noise(self) -> float:
        return {
            "torch": lambda: float(torch.randn(())),
            "numpy": np.random.randn,
            "python": random.random,
        }[self.source]()

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores + self.size * self.noise() * torch.tensor([1.0, 0.0, -1.0])


class Rewound(Noisy):
    """Noise of a global generator that it sets back after each call."""

    def forward(self, x: Tensor) -> Tensor:
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            return super().forward(x)
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


class Counts(Linear):
    """Answers otherwise at every call, without any randomness."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls * torch.tensor([0.01, 0.0, 0.0])


class Normed(nn.Module):
    """Batch normalisation before a linear layer; `train()` leaves it on batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Purifies(Linear):
    """Takes gradient steps on its input before it answers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        def energy(images: Tensor) -> Tensor:
            return super(Purifies, self).forward(images).square().sum()

        if self.how == "func":
            slope = torch.func.grad(energy)(x)
        else:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                if self.how == "grad":
                    (slope,) = torch.autograd.grad(energy(leaf), leaf)
                else:
                    energy(leaf).backward(inputs=[leaf])
                    slope = leaf.grad
        return super().forward(x - 0.01 * slope)


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def bits(right: int, n: int) -> Tensor:
    """n outcomes of which the first are right."""
    return (torch.arange(n) < right).double()
