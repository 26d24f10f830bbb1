"""A folder of photos as data: streamed from disk, decoded by workers, in bounded memory.

Nothing of an image is kept: rows are decoded when they are asked for, the same way each time. In
memory are the files' names and labels, some 100 bytes a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from phalanx.data.checks import FolderRecord, Told, check_files, check_unchanged, refused
from phalanx.data.decode import Unreadable, decode
from phalanx.data.listing import Part, PartName, check_classes, evaluation_part, training_parts
from phalanx.data.sets import Data, Rows, Split, as_index, divide
from phalanx.data.workers import worked
from phalanx.errors import DataError
from phalanx.phase import Batch
from phalanx.specs import Preprocessing, Task

PIECE = 16
"""Images that a worker decodes at a time: little shared memory, and an early first batch."""


class FolderSplit(Split):
    """Photos of a folder, decoded when they are asked for.

    Args:
        part: their files.
        preprocessing: how a file becomes an image.
        rows: of the part, in their order; absent: all.
        workers: processes that decode for `stream`; 0 for none.
    """

    def __init__(
        self,
        part: Part,
        preprocessing: Preprocessing,
        *,
        rows: Tensor | None = None,
        workers: int = 0,
    ) -> None:
        self.part = part
        self.preprocessing = preprocessing
        self.rows = torch.arange(len(part.names)) if rows is None else rows
        self.workers = workers
        self.labels = part.labels[self.rows]
        self.shape = (3, *preprocessing.size)

    def fetch(self, rows: Rows) -> Batch:
        """See `Split`; decodes in this process.

        Raises:
            DataError: if a file cannot be read, with its name.
        """
        index = self._index(rows)
        return Batch(_scaled([self._decoded(index.tolist())]), self.labels[index])

    def subset(self, rows: Tensor) -> FolderSplit:
        """See `Split`; the names are shared."""
        return FolderSplit(
            self.part, self.preprocessing, rows=self.rows[rows], workers=self.workers
        )

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch, None, None]:
        """See `Split`; the workers decode a few pieces of a batch ahead.

        Raises:
            DataError: if a file cannot be read, with its name.
        """
        waiting: deque[Tensor] = deque()

        def pieces() -> Generator[list[int], None, None]:
            for rows in batches:
                index = self._index(rows)
                waiting.append(index)
                for first in range(0, max(len(index), 1), PIECE):
                    yield index[first : first + PIECE].tolist()

        found: list[Tensor | Unreadable] = []
        images = 0
        with closing(worked(self._decoded, pieces(), workers=self.workers)) as decoded:
            for piece in decoded:
                found.append(piece)
                images += len(piece) if isinstance(piece, Tensor) else 0
                if images == len(waiting[0]) or isinstance(piece, Unreadable):
                    yield Batch(_scaled(found), self.labels[waiting.popleft()])
                    found, images = [], 0

    def _index(self, rows: Rows) -> Tensor:
        rows = as_index(rows)
        return torch.arange(len(self))[rows] if isinstance(rows, slice) else rows

    def _decoded(self, index: list[int]) -> Tensor | Unreadable:
        """Images ``(n, 3, H, W)`` uint8, or the first file that is none.

        An error is returned and not raised: a worker's exceptions arrive with its traceback as
        their message.
        """
        images = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for place, row in enumerate(index):
            found = decode(self.part.path(int(self.rows[row])), self.preprocessing)
            if isinstance(found, Unreadable):
                return found
            images[place] = found
        return images


def _scaled(pieces: Sequence[Tensor | Unreadable]) -> Tensor:
    """Pieces of a batch as floats in [0, 1]: ``(N, 3, H, W)``."""
    bad = [piece for piece in pieces if isinstance(piece, Unreadable)]
    if bad:
        raise refused(bad)
    images = torch.cat([piece for piece in pieces if isinstance(piece, Tensor)])
    return images.to(torch.float32).div_(255)


@dataclass(frozen=True)
class Reading:
    """How a folder's files are read.

    Attributes:
        preprocessing: how a file becomes an image.
        mean: per channel, for the normalisation inside each member.
        std: likewise.
        workers: processes that decode; 0 for none.
        unreadable: ``refuse`` files that cannot be read, or ``skip`` them.
        told: is told how many files of how many are checked.
    """

    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 2
    unreadable: Literal["refuse", "skip"] = "refuse"
    told: Told = lambda done, files: None

    def check(
        self, parts: Mapping[PartName, Part], known: FolderRecord | None = None
    ) -> FolderRecord:
        """`check_files` as this reading says."""
        skip = self.unreadable == "skip"
        return check_files(parts, skip=skip, workers=self.workers, told=self.told, known=known)


def load_folder(
    root: Path,
    reading: Reading,
    *,
    limit: int | None = None,
    validation: float = 0.0,
    known: FolderRecord | None = None,
) -> Data:
    """A folder of photos to train on.

    Args:
        root: with ``train/<class>/*`` and ``test/<class>/*`` (or ``val``).
        reading: how its files become images.
        limit: train on so many images.
        validation: share of the training images to hold out, where there is no ``val``.
        known: what an earlier call found; files that it checked are not checked again.

    Raises:
        DataError: if the folder is not laid out so, holds unreadable files, has not enough
            images, or is not the folder of `known`.
    """
    parts = training_parts(root)
    if "validation" in parts and validation:
        raise DataError(
            f"{parts['validation'].root} is the validation part already; leave [data] validation "
            "out, or rename that folder"
        )
    if known is not None:
        check_unchanged(root, parts, known)
    trained: dict[PartName, Part] = {n: part for n, part in parts.items() if n != "test"}
    record = reading.check(trained, known)
    splits = _splits(parts, reading, record)
    train = splits["train"]
    held_out, used = divide(
        "folder", len(train), limit=limit, validation=validation, shown=str(root)
    )
    task = _task(root, parts["train"].classes, reading, train_size=len(used))
    return Data(
        task=task,
        train=train.subset(used),
        validation=splits.get("validation", train.subset(held_out)),
        test=splits["test"],
        folder=record,
    )


def load_evaluation_folder(root: Path, reading: Reading, *, classes: Sequence[str] = ()) -> Data:
    """The photos of a folder to evaluate on: its ``test`` or ``val``, else ``<class>/*`` in it.

    They come in a fixed random order, so that the first N are of all classes.

    Args:
        root: the folder.
        reading: how its files become images.
        classes: what the model calls its classes, in its order; absent: the folders' names,
            sorted.

    Raises:
        DataError: if the folder is not laid out so, has other classes, or holds unreadable files.
    """
    part = evaluation_part(root)
    if classes:
        check_classes(part, classes, of="the model")
        order = torch.tensor([tuple(classes).index(name) for name in part.classes])
        part = Part(part.root, tuple(classes), part.names, order[part.labels])
    record = reading.check({"test": part})
    test = _splits({"test": part}, reading, record)["test"]
    nothing = test.subset(torch.empty(0, dtype=torch.long))
    task = _task(root, part.classes, reading, train_size=0)
    return Data(task=task, train=nothing, validation=nothing, test=test, folder=record)


def _task(root: Path, classes: tuple[str, ...], reading: Reading, *, train_size: int) -> Task:
    return Task(
        name=root.resolve().name or "folder",
        shape=(3, *reading.preprocessing.size),
        classes=len(classes),
        train_size=train_size,
        mean=reading.mean,
        std=reading.std,
        class_names=classes,
        preprocessing=reading.preprocessing,
    )


def _splits(
    parts: Mapping[PartName, Part], reading: Reading, record: FolderRecord
) -> dict[PartName, FolderSplit]:
    """Every part's readable rows.

    Raises:
        DataError: if a class has none.
    """
    found = {}
    for name, part in parts.items():
        rows = None
        if name in record.parts and record.parts[name].unreadable:
            skipped = {one.file for one in record.parts[name].unreadable}
            rows = torch.tensor([file not in skipped for file in part.names]).nonzero()[:, 0]
        split = FolderSplit(part, reading.preprocessing, rows=rows, workers=reading.workers)
        left = split.labels.bincount(minlength=len(part.classes))
        if not bool(left.all()):
            lost = part.classes[int((left == 0).nonzero()[0])]
            raise DataError(f"{part.root}: no readable image of class {lost!r} is left; add some")
        found[name] = split
    return found
