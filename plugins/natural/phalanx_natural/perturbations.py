"""Fog, snow and rotation as perturbations: what is drawn, and what is done with it.

The formulas, and every deviation from the paper, stand in `phalanx_natural.functions`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from phalanx.api import Perturbation
from phalanx_natural.config import FogConfig, RotationConfig, SnowConfig
from phalanx_natural.functions import fog, rotate, snow


class Fog(Perturbation[FogConfig]):
    """A blend with a constant light; the same for all images and pixels."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """See `Perturbation`; draws nothing."""
        del generator
        return fog(x, t=self.config.t, light=self.config.light)


class Snow(Perturbation[SnowConfig]):
    """Pixels from a drawn lightness upwards become much lighter, most of them white."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """See `Perturbation`; draws a threshold for each image, or for each pixel."""
        N, _, H, W = x.shape
        places = (N, 1, 1, 1) if self.config.per == "image" else (N, 1, H, W)
        low, high = self.config.alpha
        alpha = low + (high - low) * _uniform(places, x, generator)
        return snow(x, alpha, darkness=self.config.darkness, select=self.config.select)


class Rotation(Perturbation[RotationConfig]):
    """A turn about the centre."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """See `Perturbation`; draws an angle for each image."""
        degrees = self.config.max_angle * (2.0 * _uniform((len(x),), x, generator) - 1.0)
        return rotate(x, degrees, interpolation=self.config.interpolation)


def _uniform(shape: tuple[int, ...], x: Tensor, generator: Generator) -> Tensor:
    """Of U(0, 1), where the generator is, then where the images are."""
    return torch.rand(shape, generator=generator, device=generator.device).to(x)
