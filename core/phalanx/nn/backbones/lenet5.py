"""LeNet-5 in the form that papers on adversarial defenses use for MNIST.

LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998, as
listed by Jasser & Garibay, arXiv 2111.10272: conv 6@5x5, conv 16@5x5, conv 120@5x5, linear.

Deviation: those papers leave activations and pooling open (1998: tanh and trained averages);
    here ReLU and max-pool. Every filter sees all maps, and the last layer is linear, not RBF.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.nn.backbones.base import Network, backbone, check_size


class LeNet5(Network):
    """Images padded to 32x32; conv 5x5 (w), pool, conv 5x5 (8w/3), pool, conv 5x5 (20w), linear.

    Args:
        num_classes: K.
        in_chans: channels of a 28x28 image.
        width: w, filters of the first convolution.
    """

    classifier_name = "fc"

    def __init__(self, *, num_classes: int = 10, in_chans: int = 1, width: int = 6) -> None:
        super().__init__()
        middle = round(width * 16 / 6)
        self.conv1 = nn.Conv2d(in_chans, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, middle, 5)
        self.conv3 = nn.Conv2d(middle, 20 * width, 5)
        self._finish(20 * width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, 28, 28)`` to maps ``(N, 20w, 1, 1)``."""
        check_size(x, (28, 28), "lenet5")
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.conv3(x))


@backbone
def lenet5(**params: Any) -> Network:
    """`LeNet5`, 52,000 weights."""
    return LeNet5(**params)
