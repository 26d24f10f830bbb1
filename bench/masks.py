"""What is done to images, scores and networks so that they mask: the parts of `bench.planted`.

Also some differentiable things that are done to sound ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_TINY = 1e-12

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

    def __init__(self, network: nn.Module, *, steps: int = 1, size: float = 0.3) -> None:
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
    """Each image is answered by one of the networks, drawn at random."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores = torch.stack([network(x) for network in self.networks])
        drawn = torch.randint(len(self.networks), (len(x),))
        return scores[drawn, torch.arange(len(x))]


class Votes(nn.Module):
    """How often each class wins on noisy copies."""

    def __init__(self, network: nn.Module, *, copies: int = 8, deviation: float = 0.1) -> None:
        super().__init__()
        self.network, self.copies, self.deviation = network, copies, deviation

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to counts ``(N, K)``."""
        copies = (noisy(x, self.deviation) for _ in range(self.copies))
        return torch.stack([hard(self.network(copy)) for copy in copies]).sum(0)


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
