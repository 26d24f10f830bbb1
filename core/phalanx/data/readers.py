"""Reads known data sets from disk as integers, by torchvision's and scikit-learn's loaders.

MNIST's and Fashion-MNIST's raw files are checked by MD5 here, those of CIFAR and SVHN by
torchvision, before anything in them is believed. Only CIFAR's are pickles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx import randomness
from phalanx.data.catalog import DataInfo
from phalanx.errors import DataError

Part = tuple[Tensor, Tensor]
"""Images ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""


@dataclass(frozen=True)
class Splits:
    """Training set and test set; a pixel of `scale` is 1.0."""

    parts: tuple[Part, Part]
    scale: int = 255


def read(known: DataInfo, *, root: Path | None, download: bool) -> Splits:
    """The data set's two parts.

    Raises:
        DataError: if files are missing or damaged: where they were looked for, how to get them.
    """
    if not known.files:
        return _read_digits(known)
    if root is None:
        raise DataError(
            f"data set {known.name!r} needs a folder: give root= (on the command line --data-root "
            "or PHALANX_DATA)"
        )
    try:
        if download:
            _download(known, root)
        _require_files(known, root)
        parts = (
            _READERS[known.name](known, root, "train"),
            _READERS[known.name](known, root, "test"),
        )
    except DataError:
        raise
    except Exception as error:  # torchvision raises RuntimeError, AssertionError, ValueError, …
        raise _damaged(known, root, f"{type(error).__name__}: {error}") from error
    for (images, labels), size in zip(parts, (known.train_size, known.test_size), strict=True):
        if images.shape != (size, *known.shape) or labels.shape != (size,):
            raise _damaged(known, root, f"images {tuple(images.shape)}, labels {len(labels)}")
    return Splits(parts)


def _require_files(known: DataInfo, root: Path) -> None:
    missing = [file for file in known.files if not (root / file).is_file()]
    if missing:
        raise DataError(
            f"data set {known.name!r} is not in {root}: missing {', '.join(missing)}. Add "
            "--download (download=True) to fetch it, or name the folder that has it by --data-root "
            "or PHALANX_DATA (root=)"
        )


def _damaged(known: DataInfo, root: Path, what: str) -> DataError:
    return DataError(
        f"data set {known.name!r} in {root} is damaged ({what}). Delete "
        f"{root / Path(known.files[0]).parts[0]} and fetch it again, by --download (download=True)"
    )


def _download(known: DataInfo, root: Path) -> None:
    """Fetch what is missing; torchvision checks the archives' MD5."""
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        if known.name == "svhn":
            for split in ("train", "test"):
                datasets.SVHN(root, split=split, download=True)
            return
        kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}.get(
            known.name, known.name.upper()
        )
        getattr(datasets, kind)(root, download=True)
    except Exception as error:  # network, disk and torchvision's own
        raise DataError(
            f"data set {known.name!r} could not be downloaded to {root}: {error}. Put its files "
            f"({', '.join(known.files)}) there by hand"
        ) from error


def _read_idx(known: DataInfo, root: Path, part: str) -> Part:
    """MNIST's format; read directly, so that torchvision's old cached tensors are never loaded."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    first = 0 if part == "train" else 2
    paths = [root / file for file in known.files[first : first + 2]]
    for path, md5 in zip(paths, known.md5[first : first + 2], strict=True):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            raise _damaged(known, root, f"{path.name} has MD5 {found}, not {md5}")
    images: Tensor = read_image_file(str(paths[0]))
    return images.unsqueeze(1), read_label_file(str(paths[1]))


def _read_cifar(known: DataInfo, root: Path, part: str) -> Part:
    from torchvision import datasets

    kind: Any = getattr(datasets, known.name.upper())
    loaded = kind(root, train=part == "train")
    images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(loaded.targets)


def _read_svhn(known: DataInfo, root: Path, part: str) -> Part:
    from torchvision import datasets

    loaded = datasets.SVHN(root, split=part)
    images = torch.from_numpy(loaded.data).contiguous()
    return images, torch.from_numpy(loaded.labels).to(torch.int64)


_READERS = {
    "mnist": _read_idx,
    "fashion_mnist": _read_idx,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "svhn": _read_svhn,
}
"""Data set's name -> (what is known of it, root, "train" or "test") -> images and labels."""


def _read_digits(known: DataInfo) -> Splits:
    """scikit-learn's digits; 27 or 28 % of each class are the test set.

    Which ones is a hash of the image's index, so no version of a library can move an image of
    the test set to the training set.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(loaded.target).to(torch.int64)
    test = _stratified(labels.tolist(), known.test_size)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[test] = True
    return Splits(((images[~chosen], labels[~chosen]), (images[chosen], labels[chosen])), scale=16)


def _stratified(labels: list[int], count: int) -> list[int]:
    """`count` indices with each label's share as in `labels`, by largest remainders."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    shares = {label: count * len(group) / len(labels) for label, group in groups.items()}
    quota = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    return [
        index
        for label, group in groups.items()
        for index in sorted(group, key=lambda i: (randomness.key("digits", "test", i), i))[
            : quota[label]
        ]
    ]
