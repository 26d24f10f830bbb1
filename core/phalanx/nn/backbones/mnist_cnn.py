"""The network of advertorch's MNIST examples, whose trained weights are public.

Ding, Wang, Jin, "advertorch v0.1", arXiv 1902.07623 (there ``LeNet5``, as in TensorFlow's and
Madry's MNIST challenge). Its state dict loads as it is: ``conv1 conv2 linear1 linear2``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.nn.backbones.base import Network, backbone, check_size


class MnistCNN(Network):
    """conv 3x3 (w), ReLU, max-pool, conv 3x3 (2w), ReLU, max-pool, linear 200, ReLU, linear.

    Args:
        num_classes: K.
        in_chans: channels of a 28x28 image.
        width: w, filters of the first convolution.
    """

    classifier_name = "linear2"

    def __init__(self, *, num_classes: int = 10, in_chans: int = 1, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.linear1 = nn.Linear(2 * width * 7 * 7, 200)
        self._finish(200, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, 28, 28)`` to maps ``(N, 2w, 7, 7)``."""
        check_size(x, (28, 28), "mnist_cnn")
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 2)

    def pool(self, x: Tensor) -> Tensor:
        """Maps to features ``(N, 200)``, through the first linear layer."""
        return F.relu(self.linear1(x.flatten(1)))


@backbone
def mnist_cnn(**params: Any) -> Network:
    """`MnistCNN`, 648,000 weights."""
    return MnistCNN(**params)
