"""Labelled images that are fetched by row, and data sets made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from phalanx import randomness
from phalanx.data import catalog, readers
from phalanx.errors import DataError
from phalanx.phase import Batch
from phalanx.specs import Task, Threat

if TYPE_CHECKING:
    from phalanx.data.checks import FolderRecord

Rows = Tensor | slice | Sequence[int]
"""Indices in any order, or a slice."""


class Split(ABC):
    """Labelled images that are fetched by row, in any order.

    Attributes:
        shape: ``(C, H, W)`` of every image.
        labels: ``(N,)`` int64.
    """

    shape: tuple[int, int, int]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, rows: Rows) -> Batch:
        """Images ``(n, C, H, W)`` float32 in [0, 1] and labels ``(n,)``, on the CPU.

        Args:
            rows: indices (an int64 tensor or a list) in any order, or a slice.

        Raises:
            DataError: for a boolean mask, which would be read as rows 0 and 1.
        """

    @abstractmethod
    def subset(self, rows: Tensor) -> Split:
        """A split of these rows ``(n,)`` alone, in their order."""

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch, None, None]:
        """`fetch` of each of these rows in turn; a split that decodes may work ahead.

        Whoever leaves before the end closes it (`contextlib.closing`), so that its workers end.
        """
        for rows in batches:
            yield self.fetch(rows)

    def blocks(self, count: int, size: int) -> Generator[tuple[int, Batch], None, None]:
        """The first `count` rows in blocks of `size`, each with its first row; see `stream`."""
        starts = range(0, count, size)
        with closing(self.stream(slice(at, min(at + size, count)) for at in starts)) as batches:
            yield from zip(starts, batches, strict=True)

    @staticmethod
    def from_arrays(x: Any, y: Any, *, classes: int | None = None) -> ArraySplit:
        """A split of one's own images and labels, checked.

        Args:
            x: ``(N, C, H, W)``, floats in [0, 1]; a tensor or a numpy array.
            y: ``(N,)``, integers from 0.
            classes: K, if known: labels must be smaller.

        Raises:
            DataError: with everything that is wrong.
        """
        images, labels = _tensor(x, "images"), _tensor(y, "labels")
        problems = [*_image_problems(images), *_label_problems(labels, classes)]
        if images.ndim and labels.ndim and len(images) != len(labels):
            problems.append(f"{len(images)} images, but {len(labels)} labels")
        if problems:
            raise DataError(f"images and labels cannot be used: {'; '.join(problems)}")
        return ArraySplit(images.detach().to(torch.float32), labels.detach().to(torch.int64))


def _tensor(value: Any, what: str) -> Tensor:
    """A tensor, an array or nested lists as a tensor.

    Raises:
        DataError: if it is none, or its rows are of several lengths.
    """
    try:
        return torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{what} must be a tensor, a numpy array or nested lists of numbers, all rows of one "
            f"length; found {type(value).__name__}: {error}"
        ) from error


def as_index(rows: Rows) -> Tensor | slice:
    """Rows as an int64 tensor or a slice.

    Raises:
        DataError: for a boolean mask.
    """
    if isinstance(rows, slice):
        return rows
    index = torch.as_tensor(rows)
    if index.dtype == torch.bool:
        raise DataError("rows are indices, found a boolean mask; give mask.nonzero()[:, 0]")
    return index.to(torch.long)


class ArraySplit(Split):
    """Labelled images in memory.

    Args:
        images: ``(N, C, H, W)``, integers from 0 to `scale` (uint8), or floats in [0, 1].
        labels: ``(N,)`` int64.
        scale: what an integer of 1.0 would be: 255 of most images, 16 of the digits.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, scale: int = 255) -> None:
        _, C, H, W = images.shape
        self.shape = (C, H, W)
        self.images = images
        self.labels = labels
        self.scale = scale

    def fetch(self, rows: Rows) -> Batch:
        """See `Split`; always copies."""
        rows = as_index(rows)
        images, labels = self.images[rows], self.labels[rows]
        x = images.to(torch.float32, copy=True)
        if not images.is_floating_point():
            x = x.div_(self.scale)
        return Batch(x, labels.clone())

    def subset(self, rows: Tensor) -> ArraySplit:
        """See `Split`."""
        return ArraySplit(self.images[rows], self.labels[rows], scale=self.scale)


def _image_problems(images: Tensor) -> list[str]:
    problems = []
    if images.ndim != 4:
        problems.append(f"images must be (N, C, H, W), found shape {tuple(images.shape)}")
    if not images.is_floating_point():
        problems.append(f"images must be floats in [0, 1], found {images.dtype}; divide by 255")
    elif images.numel() and not torch.isfinite(images).all():
        problems.append("images must be finite, found NaN or infinity")
    elif images.numel() and (images.min() < 0 or images.max() > 1):
        found = f"{float(images.min()):.4g} to {float(images.max()):.4g}"
        looks_like_bytes = images.min() >= 0 and 2 < images.max() <= 255
        hint = "undo the normalisation, it belongs in the model"
        hint = "divide by 255" if looks_like_bytes else hint
        problems.append(f"images must be in [0, 1], found {found}; {hint}")
    return problems


def _label_problems(labels: Tensor, classes: int | None) -> list[str]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return [f"labels must be integers, found {labels.dtype}"]
    labels = labels.to(torch.int64)  # torch knows no order of unsigned ones
    if labels.ndim != 1:
        return [f"labels must be (N,), found shape {tuple(labels.shape)}; one-hot: argmax(1)"]
    if labels.numel() and labels.min() < 0:
        return [f"labels must be from 0, found {int(labels.min())}"]
    if classes is not None and labels.numel() and labels.max() >= classes:
        return [f"labels must be below {classes}, found {int(labels.max())}"]
    return []


@dataclass(frozen=True)
class Data:
    """A data set, ready for training and evaluation.

    Attributes:
        task: what is to be classified; its `train_size` is that of `train`.
        train: what is trained on, after `validation` and a limit are taken away.
        validation: held out of the training set, perhaps empty.
        test: chooses nothing.
        threat: what attackers may change unless a run says otherwise.
        folder: what was found in a folder of photos; None of any other data.
    """

    task: Task
    train: Split
    validation: Split
    test: Split
    threat: Threat | None = None
    folder: FolderRecord | None = None


def load_data(
    name: str,
    *,
    root: Path | None = None,
    limit: int | None = None,
    validation: float = 0.0,
    download: bool = False,
) -> Data:
    """A known data set, in memory.

    The held-out share and the limit's subset are random but fixed: they depend on the data set's
    name alone, not on a run's seed, and the validation images not on the limit.

    Args:
        name: one of `phalanx.data.names`.
        root: the folder with the data sets, laid out as torchvision's; ``digits`` needs none.
        limit: train on so many images.
        validation: share of the training set to hold out, in [0, 1).
        download: fetch the files if they are not there.

    Raises:
        DataError: if the data set is unknown, missing or damaged, or has not enough images.
    """
    known = catalog.info(name)
    splits = readers.read(known, root=root, download=download)
    train, test = (
        ArraySplit(images, labels, scale=splits.scale) for images, labels in splits.parts
    )
    held_out, used = divide(known.name, len(train), limit=limit, validation=validation)
    task = Task(
        name=known.name,
        shape=known.shape,
        classes=known.classes,
        train_size=len(used),
        mean=known.mean,
        std=known.std,
        class_names=known.class_names,
    )
    whole = len(used) == len(train)
    return Data(
        task=task,
        train=train if whole else train.subset(used),
        validation=train.subset(held_out),
        test=test,
        threat=known.threat,
    )


def divide(
    name: str,
    count: int,
    *,
    limit: int | None = None,
    validation: float = 0.0,
    shown: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows to hold out and rows to train on, each ascending.

    Args:
        name: keys the draw.
        count: of all rows.
        limit: rows to train on; absent: all that are left.
        validation: share to hold out.
        shown: what messages call the data; absent: `name`.

    Raises:
        DataError: if there are not enough rows.
    """
    shown = shown or name
    if not 0 <= validation < 1:
        raise DataError(f"validation is a share in [0, 1), found {validation}")
    order = torch.randperm(count, generator=randomness.generator("data", name, "rows"))
    held_out = round(validation * count)
    left = count - held_out
    if held_out and not left:
        raise DataError(
            f"validation = {validation} holds out all {count} images of {shown} and leaves none to "
            "train on; choose a smaller share"
        )
    if limit is not None and not 1 <= limit <= left:
        raise DataError(
            f"limit = {limit}, but {shown} has {left} images to train on; choose 1 to {left}"
        )
    used = order[held_out : held_out + (left if limit is None else limit)]
    return order[:held_out].sort().values, used.sort().values
