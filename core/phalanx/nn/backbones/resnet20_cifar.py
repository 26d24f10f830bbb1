"""The ResNet-20 that its paper made for CIFAR-10, with a choice of shortcut.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
section 4.2: three stages of three blocks, widths 16, 32, 64. Where a stage begins, the papers'
codes differ: ``pad`` (the paper's option A: every second pixel, zero channels; as in
akamaster/pytorch_resnet_cifar10, half of the zeros on each side, whose weights load as they are),
``conv`` (a 1x1 convolution), ``conv-bn`` (the same and batch normalisation: option B).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.errors import InputError
from phalanx.nn.backbones.base import Network, backbone

Shortcut = Literal["pad", "conv", "conv-bn"]


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and zero channels on both sides up to the wanted number."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.below = extra // 2
        self.above = extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C + extra, ceil(H/stride), ceil(W/stride))``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.below, self.above))


def make_shortcut(kind: Shortcut, planes_in: int, planes: int, stride: int) -> nn.Module:
    """The way around a block; nothing where shapes stay."""
    if stride == 1 and planes_in == planes:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(stride, planes - planes_in)
    convolution = nn.Conv2d(planes_in, planes, 1, stride=stride, bias=False)
    if kind == "conv":
        return nn.Sequential(convolution)
    return nn.Sequential(convolution, nn.BatchNorm2d(planes))


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut around them."""

    def __init__(self, planes_in: int, planes: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = make_shortcut(shortcut, planes_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, planes, ceil(H/stride), ceil(W/stride))``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(Network):
    """Stem 3x3, three stages of three blocks (w, 2w, 4w), mean, linear.

    Args:
        num_classes: K.
        in_chans: channels of an image.
        width: w, filters of the stem.
        shortcut: where a stage begins: ``pad``, ``conv`` or ``conv-bn``.
    """

    classifier_name = "linear"

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 16,
        shortcut: Shortcut = "pad",
    ) -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise InputError(
                f"shortcut is one of {', '.join(get_args(Shortcut))}; found {shortcut!r}"
            )
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1, shortcut)
        self.layer2 = self._stage(width, 2 * width, 2, shortcut)
        self.layer3 = self._stage(2 * width, 4 * width, 2, shortcut)
        self._finish(4 * width, num_classes)

    @staticmethod
    def _stage(planes_in: int, planes: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        return nn.Sequential(
            Block(planes_in, planes, stride, shortcut),
            Block(planes, planes, 1, shortcut),
            Block(planes, planes, 1, shortcut),
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to maps ``(N, 4w, ceil(H/4), ceil(W/4))``."""
        x = F.relu(self.bn1(self.conv1(x)))
        maps: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps


@backbone
def resnet20_cifar(**params: Any) -> Network:
    """`ResNet20`, 270,000 weights."""
    return ResNet20(**params)
