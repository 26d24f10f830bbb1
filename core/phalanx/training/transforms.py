"""Transforms of a training batch: augmentation, natural perturbations, adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from phalanx.attack import Attack, attacking
from phalanx.attacks.crafting import lighter
from phalanx.perturbation import Perturbation
from phalanx.phase import Batch, PhaseContext


def random_crop(x: Tensor, *, padding: int, generator: Generator) -> Tensor:
    """Pad images ``(N, C, H, W)`` with zeros and cut each back to its size at a random place."""
    count, channels, height, width = x.shape
    padded = F.pad(x, (padding,) * 4)
    top, left = (
        torch.randint(2 * padding + 1, (count, 1), generator=generator, device=x.device)
        for _ in range(2)
    )
    rows = (top + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    columns = (left + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    image = torch.arange(count, device=x.device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
    return padded[image, channel, rows, columns]


def random_flip(x: Tensor, *, generator: Generator) -> Tensor:
    """Mirror each image ``(N, C, H, W)`` left to right with probability 1/2."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(chosen, x.flip(-1), x)


@dataclass(frozen=True)
class Augment:
    """Random crops (padding 4) and flips, as named, in the order given."""

    names: Sequence[Literal["crop", "flip"]]

    def __call__(self, batch: Batch, ctx: PhaseContext) -> Batch:
        """The batch with augmented images."""
        x = batch.x
        for name in self.names:
            generator = ctx.generator("augment", name)
            if name == "crop":
                x = random_crop(x, padding=4, generator=generator)
            else:
                x = random_flip(x, generator=generator)
        return replace(batch, x=x)


@dataclass(frozen=True)
class Natural:
    """A natural perturbation of every image."""

    perturbation: Perturbation[Any]

    def __call__(self, batch: Batch, ctx: PhaseContext) -> Batch:
        """The batch with perturbed images."""
        return replace(batch, x=self.perturbation(batch.x, generator=ctx.generator("natural")))


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples of the phase's target.

    Attributes:
        attack: how they are made.
        mode: ``replace`` the images (Madry, PDD, CLM), replace the first ``half`` of the shuffled
            batch (iGAT), or add a ``twin`` (ADP, GAL).
        batchnorm: mode of the batch normalisation layers while attacking.
    """

    attack: Attack[Any]
    mode: Literal["replace", "half", "twin"] = "replace"
    batchnorm: Literal["eval", "train"] = "eval"

    def __call__(self, batch: Batch, ctx: PhaseContext) -> Batch:
        """The batch with adversarial examples; the phase's module is left as it was."""
        count = len(batch) // 2 if self.mode == "half" else len(batch)
        if count == 0:
            return batch
        x, y = batch.x[:count], batch.y[:count]
        with attacking(ctx.phase.module, self.batchnorm):
            adversarial = self.attack(
                lighter(ctx.phase.target(ctx), x), x, y, generator=ctx.generator("adversarial")
            ).detach()
        if self.mode == "twin":
            return replace(batch, adv=adversarial)
        return replace(batch, x=torch.cat([adversarial, batch.x[count:]]))
