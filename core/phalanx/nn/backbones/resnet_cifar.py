"""The ImageNet ResNets with a stem for small images: ResNet-18, -34 and -50.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
table 1, with what papers on CIFAR changed: a 3x3 stem of stride 1 and no max-pool. The weights'
names are torchvision's; in a bottleneck the 3x3 convolution has the stride, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.nn.backbones.base import Network, backbone


class Block(nn.Module):
    """A residual block: `residual` plus the input, brought to its shape where that differs."""

    expansion: ClassVar[int] = 1

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self._add_layers(planes_in, planes, stride)
        planes_out = planes * self.expansion
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or planes_in != planes_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(planes_in, planes_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(planes_out),
            )

    def _add_layers(self, planes_in: int, planes: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def residual(self, x: Tensor) -> Tensor:
        """Two 3x3 convolutions with batch normalisation."""
        x = F.relu(self.bn1(self.conv1(x)))
        maps: Tensor = self.bn2(self.conv2(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C', ceil(H/stride), ceil(W/stride))``."""
        return F.relu(self.residual(x) + self.downsample(x))


class Bottleneck(Block):
    """1x1 down, 3x3, 1x1 up to four times the planes."""

    expansion = 4

    def _add_layers(self, planes_in: int, planes: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(planes_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def residual(self, x: Tensor) -> Tensor:
        """Three convolutions with batch normalisation."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        maps: Tensor = self.bn3(self.conv3(x))
        return maps


class ResNet(Network):
    """Stem 3x3, four stages of width w, 2w, 4w, 8w, mean, linear.

    Args:
        block: the residual block.
        depths: blocks of each stage.
        num_classes: K.
        in_chans: channels of an image.
        width: w, filters of the stem.
    """

    classifier_name = "fc"

    def __init__(
        self,
        block: type[Block],
        depths: Sequence[int],
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        planes_in = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks = []
            for index in range(depth):
                blocks.append(block(planes_in, planes, 2 if stage and not index else 1))
                planes_in = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self._finish(planes_in, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to maps ``(N, D, ceil(H/8), ceil(W/8))``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x


@backbone
def resnet18_cifar(**params: Any) -> Network:
    """`ResNet` of 8 blocks, 11.2 million weights."""
    return ResNet(Block, (2, 2, 2, 2), **params)


@backbone
def resnet34_cifar(**params: Any) -> Network:
    """`ResNet` of 16 blocks, 21.3 million weights."""
    return ResNet(Block, (3, 4, 6, 3), **params)


@backbone
def resnet50_cifar(**params: Any) -> Network:
    """`ResNet` of 16 bottlenecks, 23.5 million weights."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **params)
