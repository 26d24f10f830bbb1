"""Curvature of the loss along a perturbation: eq. (2) of arXiv 2310.18477.

``λ(x, δ) = ‖∇ℓ(x+δ) − ∇ℓ(x)‖₂ / ‖δ‖₂``, ℓ the cross-entropy of one image, gradients to the image.
Where δ is small it is ‖H δ‖/‖δ‖, H the Hessian. The paper's theory bounds it by λ̃ over data and
members; here it is a diagnostic: a defense whose loss bends sharply along an attack's path may hide
its gradient rather than withstand.

    found = curvature(model, x, y, attack=attack, generator=phalanx.api.generator(0))
    print(found.mean, found.largest)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from phalanx.api import Attack, DefendedModel, attacking, craft

SMALLEST = 1e-12
"""‖δ‖₂ below which a row has no curvature."""


@dataclass(frozen=True)
class Curvature:
    """Curvatures of images.

    Attributes:
        values: ``(N,)``, NaN where δ is zero.
        mean, median, high, largest: of the rows with a δ; `high` is the 95th percentile, `largest`
            the paper's λ̃ on these images. NaN where there are none, and where a gradient is NaN:
            a model without a gradient is not one without curvature.
        skipped: rows without a δ.
    """

    values: Tensor
    mean: float
    median: float
    high: float
    largest: float
    skipped: int

    @classmethod
    def of(cls, values: Tensor, still: Tensor) -> Curvature:
        """The summary of curvatures.

        Args:
            values: ``(N,)``.
            still: which rows ``(N,)`` have no δ.
        """
        kept, skipped = values[~still].double(), int(still.sum())
        if not len(kept):
            nothing = float("nan")
            return cls(values, nothing, nothing, nothing, nothing, skipped)
        quantiles = torch.quantile(kept, kept.new_tensor([0.5, 0.95, 1.0]))
        median, high, largest = quantiles.tolist()
        return cls(values, float(kept.mean()), median, high, largest, skipped)


def input_gradients(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """∇ℓ: each image's gradient of its own cross-entropy.

    Args:
        model: images to scores ``(N, K)``, row by row.
        x: ``(N, …)``.
        y: labels ``(N,)``.

    Returns:
        As `x`; of the sum, so a row's gradient does not shrink with the batch.
    """
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(model(x), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def curvatures(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """Eq. (2) for each row.

    The caller chooses the mode: batch normalisation in training mode couples the rows.

    Args:
        model: images to scores ``(N, K)``, row by row.
        x: ``(N, …)``.
        y: labels ``(N,)``.
        delta: δ, as `x`.

    Returns:
        λ ``(N,)``, NaN where ‖δ‖₂ is below 1e-12 or a gradient is NaN.
    """
    moved = input_gradients(model, x + delta, y) - input_gradients(model, x, y)
    found = moved.flatten(1).norm(dim=1) / delta.flatten(1).norm(dim=1)
    return torch.where(no_step(delta), torch.nan, found)


def no_step(delta: Tensor) -> Tensor:
    """Rows ``(N,)`` whose ‖δ‖₂ is too small to divide by."""
    return delta.flatten(1).norm(dim=1) < SMALLEST


def curvature(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack[Any],
    generator: Generator,
    batch: int = 256,
) -> Curvature:
    """Curvature of a model's loss from images to their adversarial examples, in evaluation mode.

    Args:
        model: images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``; of an ensemble's members
            each can be asked too. Modes and flags come back.
        x: images.
        y: labels ``(N,)``.
        attack: makes x + δ.
        generator: of its draws.
        batch: images at a time.

    Raises:
        ValueError: for a stochastic model, whose two gradients are of two functions.
    """
    if isinstance(model, DefendedModel) and model.stochastic:
        raise ValueError(
            f"{type(model).__name__} answers at random, so two gradients are of two functions: ask"
            " one of its draws, model.views()['one-draw'].open(seed)"
        )
    found, still = [], []
    for here in torch.arange(len(y), device=x.device).split(batch):
        examples = craft(attack, model, x[here], y[here], generator=generator)
        with attacking(model):
            found.append(curvatures(model, x[here], y[here], examples - x[here]))
        still.append(no_step(examples - x[here]))
    return Curvature.of(torch.cat(found), torch.cat(still))
