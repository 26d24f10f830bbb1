"""The data sets that Phalanx knows: what they are and where they come from; torch-free.

Means and standard deviations are those of all pixels of the training set, per channel, in [0, 1].
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from phalanx.errors import DataError
from phalanx.specs import Linf, Spec, Threat


class DataInfo(Spec):
    """A data set of images; sizes before a limit or a validation share.

    Attributes:
        shape: (C, H, W) of an image.
        threat: what attackers may change unless a run says otherwise.
        files: what must lie in the data root, relative to it; none: comes with scikit-learn.
        md5: of each file, in the same order; empty where torchvision checks itself.
        source: who made it, and where it comes from.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    test_size: int
    threat: Linf
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    md5: tuple[str, ...] = ()
    source: str


_DIGITS = tuple("0123456789")
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_NAMES.split())

_KNOWN = (
    DataInfo(
        name="digits",
        shape=(1, 8, 8),
        classes=10,
        mean=(0.3061,),
        std=(0.3767,),
        train_size=1297,
        test_size=500,
        threat=Linf(0.1),
        class_names=_DIGITS,
        source="E. Alpaydin, C. Kaynak, UCI 1998: handwritten digits; part of scikit-learn",
    ),
    DataInfo(
        name="mnist",
        shape=(1, 28, 28),
        classes=10,
        mean=(0.1307,),
        std=(0.3081,),
        train_size=60000,
        test_size=10000,
        threat=Linf(0.3),
        class_names=_DIGITS,
        files=tuple(f"MNIST/raw/{name}" for name in _IDX),
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        source="Y. LeCun, C. Cortes, C. J. C. Burges: handwritten digits",
    ),
    DataInfo(
        name="fashion_mnist",
        shape=(1, 28, 28),
        classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        train_size=60000,
        test_size=10000,
        threat=Linf(0.1),
        class_names=_FASHION,
        files=tuple(f"FashionMNIST/raw/{name}" for name in _IDX),
        md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        source="H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747",
    ),
    DataInfo(
        name="cifar10",
        shape=(3, 32, 32),
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        train_size=50000,
        test_size=10000,
        threat=Linf("8/255"),
        class_names=_CIFAR10,
        files=(
            *(f"cifar-10-batches-py/data_batch_{part}" for part in range(1, 6)),
            "cifar-10-batches-py/test_batch",
            "cifar-10-batches-py/batches.meta",
        ),
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    ),
    DataInfo(
        name="cifar100",
        shape=(3, 32, 32),
        classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        train_size=50000,
        test_size=10000,
        threat=Linf("8/255"),
        class_names=_CIFAR100,
        files=tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    ),
    DataInfo(
        name="svhn",
        shape=(3, 32, 32),
        classes=10,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        train_size=73257,
        test_size=26032,
        threat=Linf("8/255"),
        class_names=_DIGITS,
        files=("train_32x32.mat", "test_32x32.mat"),
        source="Y. Netzer et al., Reading Digits in Natural Images, 2011",
    ),
)


def names() -> Sequence[str]:
    """The names that `info` knows."""
    return tuple(known.name for known in _KNOWN)


def info(name: str) -> DataInfo:
    """What is known of a data set.

    Raises:
        DataError: if there is none of that name; names near ones.
    """
    for known in _KNOWN:
        if known.name == name:
            return known
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"no data set is called {name!r}; {hint}known: {', '.join(names())}")


def default_threat(name: str) -> Threat | None:
    """The data set's default threat; None if it is unknown."""
    return info(name).threat if name in names() else None


def default_root() -> Path:
    """Where data sets are if nobody says: ``$PHALANX_DATA``, else ``~/.cache/phalanx/data``.

    For the entry points (the CLI, `phalanx.train`, `phalanx.evaluate`); `load_data` asks nobody.
    """
    given = os.environ.get("PHALANX_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "phalanx" / "data"
