"""Two public trained networks and the test images that measurements attack.

The weights lie in ``$PHALANX_WEIGHTS`` and the data sets in ``$PHALANX_DATA``. Both networks see
images in [0, 1] and normalise them themselves.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from phalanx.data import load_data
from phalanx.errors import InputError
from phalanx.nn import Member, Normalize
from phalanx.specs import L2, Linf, Threat


@dataclass(frozen=True)
class Case:
    """A network, its images and the budgets it is attacked with.

    Attributes:
        name: in tables and files.
        backbone: timm's name of it, with `params`.
        weights: file name without its ending.
        data: whose first `count` test images are attacked.
        threats: one each in L-inf and L2.
        batch: images that are attacked at once.
    """

    name: str
    backbone: str
    params: tuple[tuple[str, Any], ...]
    weights: str
    normalize: nn.Module
    data: str
    count: int
    threats: tuple[Threat, ...]
    batch: int


CASES = {
    "mnist": Case(
        name="MNIST network, adversarially trained",
        backbone="mnist_cnn",
        params=(("in_chans", 1),),
        weights="mnist_lenet_adversarial",
        normalize=nn.Identity(),
        data="mnist",
        count=500,
        threats=(Linf(0.3), L2(2.0)),
        batch=100,
    ),
    "cifar10": Case(
        name="CIFAR-10 ResNet-20",
        backbone="resnet20_cifar",
        params=(("shortcut", "pad"),),
        weights="cifar10_resnet20",
        normalize=Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        data="cifar10",
        count=256,
        threats=(Linf("0.5/255"), L2(0.1)),
        batch=128,
    ),
}


class Prepared(nn.Module):
    """A private copy for steps: batch normalisation folded into convolutions, channels last.

    Its scores agree with the network's own to rounding; examples are judged on the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval().requires_grad_(False)  # noqa: FBT003  # torch's way
        self.network = folded(network).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``."""
        scores: Tensor = self.network(_ChannelsLast.apply(x))
        return scores


class _ChannelsLast(torch.autograd.Function):
    """Images to channels last, and gradients back in the order that images came in.

    torchattacks takes a gradient's `view`, which a channels-last tensor refuses.
    """

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


@dataclass(frozen=True)
class Loaded:
    """What is attacked.

    Attributes:
        network: in evaluation mode, parameters frozen.
        prepared: its private copy, for the steps of any library.
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.
    """

    network: nn.Module
    prepared: nn.Module
    x: Tensor
    y: Tensor


def load(case: Case, count: int | None = None) -> Loaded:
    """The network and its first `count` test images.

    Raises:
        InputError: if ``$PHALANX_WEIGHTS`` or ``$PHALANX_DATA`` is not set.
    """
    weights, data = (_folder(name) for name in ("PHALANX_WEIGHTS", "PHALANX_DATA"))
    backbone = timm.create_model(case.backbone, num_classes=10, **dict(case.params))
    backbone.load_state_dict(load_file(weights / f"{case.weights}.safetensors"))
    network = Member(backbone, case.normalize).eval().requires_grad_(False)  # noqa: FBT003
    batch = load_data(case.data, root=data).test.fetch(slice(0, count or case.count))
    return Loaded(network, Prepared(network), batch.x, batch.y)


def folded(network: nn.Module) -> nn.Module:
    """Fold each ``bn<i>`` into the ``conv<i>`` beside it, in place; evaluation mode only."""
    for part in network.modules():
        for name, child in list(part.named_children()):
            convolution = getattr(part, name.replace("bn", "conv"), None)
            if isinstance(child, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
                setattr(part, name.replace("bn", "conv"), fuse_conv_bn_eval(convolution, child))
                setattr(part, name, nn.Identity())
    return network


def _folder(name: str) -> Path:
    value = os.environ.get(name)
    if value is None:
        raise InputError(f"${name} is not set: it names the folder of the networks or of the data")
    return Path(value)
