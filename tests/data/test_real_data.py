"""The real data sets, as restored or downloaded to ``$PHALANX_DATA``."""

import os
from pathlib import Path

import pytest
import torch

from phalanx.data import catalog, load_data

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("PHALANX_DATA"), reason="PHALANX_DATA is not set"),
]

ROOT = Path(os.environ.get("PHALANX_DATA", ""))
NAMES = [
    name
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn")
    if name in ("mnist", "cifar10")  # what the tests' own set-up restores
    or all((ROOT / file).exists() for file in catalog.info(name).files)
]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    return catalog.info(request.param), load_data(request.param, root=ROOT)


def test_sizes(loaded):
    known, data = loaded
    assert (len(data.train), len(data.test)) == (known.train_size, known.test_size)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.is_contiguous()
    assert len(data.test.labels.unique()) == known.classes


def test_constants(loaded):
    known, data = loaded
    for channel, (mean, std) in enumerate(zip(known.mean, known.std, strict=True)):
        counts = data.train.images[:, channel].flatten().bincount(minlength=256).double()
        values = torch.arange(256).double() / 255
        share = counts / counts.sum()
        found = (share * values).sum()
        assert abs(float(found) - mean) < 6e-5
        assert abs(float((share * (values - found) ** 2).sum().sqrt()) - std) < 6e-5


def test_the_first_images(loaded):
    """Labels as the data sets' makers published them, in their order."""
    known, data = loaded
    published = {
        "mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
        "fashion_mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
        "cifar10": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
        "cifar100": [49, 33, 72, 51, 71, 92, 15, 14, 23, 0],
        "svhn": [5, 2, 1, 0, 6, 1, 9, 1, 1, 8],
    }
    assert data.test.labels[:10].tolist() == published[known.name]


def test_class_names(loaded):
    known, _ = loaded
    if known.name.startswith("cifar"):
        from torchvision import datasets

        real = getattr(datasets, known.name.upper())(ROOT, train=False).classes
        assert list(known.class_names) == real
