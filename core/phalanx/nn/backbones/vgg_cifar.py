"""VGG-16 with batch normalisation for small images: one linear layer after the convolutions.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, arXiv 1409.1556, configuration D.

Deviation: the two hidden linear layers are left out, as papers on CIFAR do.
Deviation: max-pools round up, which changes nothing at 32x32 and lets 28x28 and 8x8 through.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from phalanx.nn.backbones.base import Network, backbone

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Filters of each convolution, in units of the width; a max-pool ends each stage."""


class VGG(Network):
    """Thirteen 3x3 convolutions with batch normalisation and ReLU, five max-pools, mean, linear.

    Args:
        num_classes: K.
        in_chans: channels of an image.
        width: filters of the first convolution.
    """

    classifier_name = "classifier"

    def __init__(self, *, num_classes: int = 10, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes_in = in_chans
        for stage in STAGES:
            for factor in stage:
                planes = factor * width
                convolution = nn.Conv2d(planes_in, planes, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(planes), nn.ReLU()]
                planes_in = planes
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self._finish(planes_in, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to maps ``(N, 8w, ceil(H/32), ceil(W/32))``."""
        maps: Tensor = self.features(x)
        return maps


@backbone
def vgg16_bn_cifar(**params: Any) -> Network:
    """`VGG`, 14.7 million weights."""
    return VGG(**params)
