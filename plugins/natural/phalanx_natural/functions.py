"""Fog, snow and rotation of images in [0, 1]: pure functions of images and of what was drawn.

Cheng, Xu, Li, Zhao, Wang, Lin, Kailkhura, Goldhahn, "More or Less (MoL)", WACV Workshops 2022,
eqs. (2), (3) and section 5.1.1. The paper has no code, and the report that it follows for fog and
snow (Ozdag et al., ORNL 2019) was not to be had.

Images are ``(N, C, H, W)``; results have their shape, type and device, and lie in [0, 1]. All are
differentiable almost everywhere, with finite gradients everywhere.

Deviation: α is of U(0, 0.5), the paper's U(0, 255/2) in units of [0, 1] images; fog's light of 1.2
    means something in [0, 1] only.
Deviation: fog is clipped to [0, 1], which eq. (2) does not say: it reaches 1.08 for white.
Deviation: snow changes the lightness alone and clips it to 1. Eq. (3) names no channel, and eight
    times a hue means nothing.
Deviation: grey images have no hue: their one channel is the lightness.
Deviation: a rotation interpolates bilinearly and fills with 0; the paper says neither.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = 1e-12
"""Largest difference between channels of a pixel that counts as grey: no hue, no saturation."""


def fog(x: Tensor, *, t: float, light: float) -> Tensor:
    """Blend with a constant light: eq. (2), clipped.

    Args:
        x: ``(N, C, H, W)``.
        t: the more, the less fog.
        light: of the fog, in units of [0, 1].
    """
    s = (1.0 + math.tanh(t / 2.0)) / 2.0  # 1 / (1 + e^-t), without overflow
    return (s * x + (1.0 - s) * light).clamp(0.0, 1.0)  # eq. (2)


def snow(
    x: Tensor, alpha: Tensor, *, darkness: float, select: Literal["above", "below"] = "above"
) -> Tensor:
    """Multiply the lightness of the pixels on one side of a threshold: eq. (3).

    Pixels that are not chosen stay exactly as they are.

    Args:
        x: ``(N, 3, H, W)``, or grey ``(N, 1, H, W)``.
        alpha: thresholds, broadcast against ``(N, 1, H, W)``.
        darkness: factor on the lightness.
        select: ``above``: lightness from α upwards, as printed; ``below``: lightness below α.

    Raises:
        ValueError: if the images are neither grey nor RGB.
    """
    channels = x.shape[1]
    if channels not in (1, 3):
        raise ValueError(
            f"snow needs grey or RGB images, (N, 1, H, W) or (N, 3, H, W), found {tuple(x.shape)}"
        )
    hls = rgb_to_hls(x) if channels == 3 else None
    lightness = x if hls is None else hls[:, 1:2]
    chosen = lightness < alpha if select == "below" else lightness >= alpha
    brighter = (lightness * darkness).clamp_max(1.0)
    if hls is not None:
        brighter = hls_to_rgb(torch.cat([hls[:, :1], brighter, hls[:, 2:]], 1))
    return torch.where(chosen, brighter.clamp(0.0, 1.0), x)


def rotate(
    x: Tensor, degrees: Tensor, *, interpolation: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Turn each image counter-clockwise about its centre; the size stays, corners are 0.

    Args:
        x: ``(N, C, H, W)``.
        degrees: an angle for each image, ``(N,)``.
        interpolation: between pixels.
    """
    H, W = x.shape[2:]
    radians = torch.deg2rad(degrees.to(x)).view(-1, 1, 1)
    cosine, sine = radians.cos(), radians.sin()
    down = (torch.arange(H, device=x.device, dtype=x.dtype) - (H - 1) / 2).view(1, H, 1)
    right = (torch.arange(W, device=x.device, dtype=x.dtype) - (W - 1) / 2).view(1, 1, W)
    # Where each pixel comes from, in pixels from the centre, then in grid_sample's [-1, 1]. Not
    # affine_grid: its matrix product would round to half precision under autocast.
    source_right = cosine * right - sine * down
    source_down = sine * right + cosine * down
    grid = torch.stack([2.0 * source_right / W, 2.0 * source_down / H], -1)
    turned = F.grid_sample(x, grid, interpolation, padding_mode="zeros", align_corners=False)
    return turned.to(x.dtype).clamp(0.0, 1.0)


def rgb_to_hls(x: Tensor) -> Tensor:
    """RGB in [0, 1] to hue in [0, 1), lightness and saturation in [0, 1]: both ``(N, 3, H, W)``."""
    red, green, blue = x.unbind(1)
    high, low = x.amax(1), x.amin(1)
    lightness = (high + low) / 2.0
    spread = high - low
    grey = spread <= GREY
    span = torch.where(lightness <= 0.5, high + low, 2.0 - high - low)
    saturation = torch.where(grey, 0.0, spread / torch.where(grey, 1.0, span))
    divisor = torch.where(grey, 1.0, spread)  # of both branches: NaN times 0 would be NaN
    from_red, from_green, from_blue = ((high - part) / divisor for part in (red, green, blue))
    sixths = torch.where(
        red == high,
        from_blue - from_green,
        torch.where(green == high, 2.0 + from_red - from_blue, 4.0 + from_green - from_red),
    )
    hue = torch.where(grey, 0.0, (sixths / 6.0).remainder(1.0))
    return torch.stack([hue, lightness, saturation], 1)


def hls_to_rgb(x: Tensor) -> Tensor:
    """The inverse of `rgb_to_hls`: ``(N, 3, H, W)`` to ``(N, 3, H, W)``."""
    hue, lightness, saturation = x.unbind(1)
    q = lightness + saturation * torch.minimum(lightness, 1.0 - lightness)  # exactly 1 for white
    p = 2.0 * lightness - q
    parts = []
    for shift in (1.0 / 3.0, 0.0, -1.0 / 3.0):  # red, green, blue
        sixths = 6.0 * (hue + shift).remainder(1.0)
        parts.append(p + (q - p) * torch.minimum(sixths, 4.0 - sixths).clamp(0.0, 1.0))
    return torch.stack(parts, 1)
