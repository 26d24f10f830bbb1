"""Public trained weights load into our backbones and reach their published accuracy."""

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import phalanx.nn
from phalanx.data import load_data

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        not (os.environ.get("PHALANX_DATA") and os.environ.get("PHALANX_WEIGHTS")),
        reason="PHALANX_DATA or PHALANX_WEIGHTS is not set",
    ),
]

IMAGENET = phalanx.nn.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("backbone", "weights", "normalize", "data", "right"),
    [
        ("mnist_cnn", "mnist_lenet_clean", nn.Identity(), "mnist", 9889),
        ("mnist_cnn", "mnist_lenet_adversarial", nn.Identity(), "mnist", 9864),
        ("resnet20_cifar", "cifar10_resnet20", IMAGENET, "cifar10", 9173),
    ],
)
def test_published_accuracy(backbone, weights, normalize, data, right):
    network = timm.create_model(backbone, num_classes=10)
    network.load_state_dict(
        load_file(Path(os.environ["PHALANX_WEIGHTS"]) / f"{weights}.safetensors"), strict=True
    )
    member = phalanx.nn.Member(network, normalize).eval()
    test = load_data(data, root=Path(os.environ["PHALANX_DATA"])).test
    found = 0
    with torch.no_grad():
        for start in range(0, len(test), 500):
            batch = test.fetch(slice(start, start + 500))
            found += int((member(batch.x).argmax(1) == batch.y).sum())
    assert abs(found - right) <= 2  # images on the fence, by the order of a sum
