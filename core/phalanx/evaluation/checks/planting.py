"""What the binarization test plants: points on a sphere, and a linear read-out of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from phalanx.attacks.balls import norm, per_row
from phalanx.specs import L1, L2, Linf

Ball = Linf | L2 | L1
Place = Literal["surface", "corners"]
Features = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` to the features before the last layer; flattened to ``(N, D)``."""
_ITERATIONS = 200  # of the fit
_DECAY = 1e-6  # weight decay of the fit, whose loss has no minimum on separable points


class Readout(nn.Module):
    """Binary scores (−z, z) with ``z = w·features(x) − cut``; positive z is adversarial.

    Attributes:
        rowwise: attacks may leave out rows that are fooled.
    """

    rowwise = True

    def __init__(self, features: Features, weight: Tensor, cut: Tensor) -> None:
        super().__init__()
        self._features = features
        self.register_buffer("weight", weight)
        self.register_buffer("cut", cut)

    def logit(self, features: Tensor) -> Tensor:
        """The value z of features ``(N, D)``, in float64."""
        return features.double() @ self.get_buffer("weight") - self.get_buffer("cut")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, 2)``."""
        features = self._features(x).flatten(1)
        z = self.logit(features).to(features.dtype)
        return torch.stack([-z, z], 1)


def sphere(x: Tensor, threat: Ball, *, place: Place, generator: Generator) -> Tensor:
    """A random point on each row's sphere and in the box.

    Args:
        x: images ``(N, C, H, W)`` in [0, 1].
        threat: the ball.
        place: of L-inf: ``corners``, or anywhere on the ``surface``.
        generator: on x's device.
    """
    uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    sign = torch.where(uniform < 0.5, -1.0, 1.0)
    match threat:
        case Linf():
            delta = sign if place == "corners" else 2.0 * uniform - 1.0
        case L2():
            delta = torch.empty_like(x).normal_(generator=generator)
        case L1():
            delta = sign * torch.empty_like(x).exponential_(generator=generator)
    delta = delta * per_row(threat.eps / norm(delta, threat), x)
    outside = (x + delta < 0.0) | (x + delta > 1.0)
    return (x + torch.where(outside, -delta, delta)).clamp(0.0, 1.0)


def fit(inner: Tensor, boundary: Tensor, closeness: float) -> tuple[Tensor, Tensor] | None:
    """A linear read-out between two sets of features, by logistic regression.

    Each set weighs one half. Scaled so that the sets are 1 apart; the cut is at `closeness` of
    the way from the inner to the boundary points.

    Args:
        inner: ``(A, D)``.
        boundary: ``(B, D)``.
        closeness: in [0, 1).

    Returns:
        Weight ``(D,)`` and cut, float64; None where no such read-out was found.
    """
    features = torch.cat([inner, boundary]).detach().double()
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-12)
    rows = (features - mean) / scale
    label = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    label[len(inner) :] = 1.0
    half = torch.where(label == 1.0, 0.5 / len(boundary), 0.5 / len(inner))
    weight = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = rows @ weight[:-1] + weight[-1]
        value = functional.binary_cross_entropy_with_logits(z, label, half, reduction="sum")
        value = value + _DECAY * weight[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    direction = weight.detach()[:-1] / scale
    z = features @ direction
    top, bottom = z[: len(inner)].max(), z[len(inner) :].min()
    apart = bottom - top
    if not bool(apart > 0):
        return None
    return direction / apart, (top + closeness * apart) / apart
