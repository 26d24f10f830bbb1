"""torch's own data sets and loaders as labelled images that are fetched by row.

A map-style data set is read on demand, row by row, whatever its size. What has no fixed order (a
shuffling loader, an iterable data set) is read once and kept in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    default_collate,
)

from phalanx import randomness
from phalanx.data.items import checked, described, name_of, refuse_label
from phalanx.data.sets import ArraySplit, Rows, Split, as_index
from phalanx.errors import DataError
from phalanx.phase import Batch

KEPT_BYTES = 2**31
"""Images that are read once, without a limit, may take so much memory as float32: 2 GiB."""
VERIFIED = 16
"""Rows that are read at the beginning, to hold a data set's own list of labels against."""

_log = logging.getLogger(__name__)


def split_of(data: Dataset[Any] | DataLoader[Any], limit: int | None = None) -> Split:
    """A torch data set or loader of (image, label) as labelled images.

    Images are float tensors or arrays ``(C, H, W)`` in [0, 1], or PIL images; labels are integers
    from 0. A loader that neither shuffles nor collates in its own way stands for its data set;
    any other, and an iterable data set, is read once, with torch's, numpy's and Python's global
    generators seeded, so that the same images come out each time.

    Args:
        data: what gives the images.
        limit: first N images; absent: all.

    Raises:
        DataError: if it does not hold such images, or has to be kept in memory and does not fit.
    """
    if isinstance(data, DataLoader):
        count = _count_in_order(data)
        if count is None:
            return _read_once(data, _batches(data), limit)
        data, limit = data.dataset, count if limit is None else min(limit, count)
    if isinstance(data, IterableDataset):
        return _read_once(data, ([item] for item in data), limit)
    if not isinstance(data, Sized):
        raise DataError(f"{name_of(data)} has no length; give it __len__, or make it iterable")
    count = len(data) if limit is None else min(limit, len(data))
    return DatasetSplit(data, torch.arange(count))


class DatasetSplit(Split):
    """Rows of a map-style data set, read and checked when they are fetched.

    Labels are taken from the data set's ``targets``, ``labels`` or ``tensors[1]`` where these
    agree with what it gives out, else from one pass over it. Every row that is fetched is held
    against its label.

    Args:
        dataset: gives (image, label) for an index.
        rows: ``(N,)`` of its indices.

    Raises:
        DataError: if a row is not what it should be, or is another each time it is read.
    """

    def __init__(self, dataset: Dataset[Any], rows: Tensor) -> None:
        self._dataset = dataset
        self._rows = rows
        self.labels = torch.zeros(0, dtype=torch.long)
        self.shape = (0, 0, 0)
        if not len(rows):
            return
        first = [self._item(place) for place in rows[:VERIFIED].tolist()]
        image, _ = first[0]
        C, H, W = image.shape
        self.shape = (C, H, W)
        again, _ = self._item(int(rows[0]), reading=1)
        if not torch.equal(image, again):
            raise DataError(
                f"{name_of(dataset)}: row {int(rows[0])} is another image each time it is read; "
                "take random augmentation out of its transform, an evaluation reads it many times"
            )
        found = torch.tensor([label for _, label in first])
        known = _labels(dataset, rows)
        if known is None or not torch.equal(known[: len(found)], found):
            _log.warning("%s: reading all %d rows once for labels", name_of(dataset), len(rows))
            known = torch.tensor([self._item(place)[1] for place in rows.tolist()])
        wrong = (known < 0).nonzero()
        if len(wrong):
            refuse_label(dataset, int(rows[int(wrong[0])]), int(known[int(wrong[0])]))
        self.labels = known

    def fetch(self, rows: Rows) -> Batch:
        """See `Split`; reads the rows from the data set.

        Raises:
            DataError: at the first row whose image or label is not what it should be.
        """
        index = as_index(rows)
        places, labels = self._rows[index], self.labels[index]
        images = []
        for place, label in zip(places.tolist(), labels.tolist(), strict=True):
            image, found = self._item(place)
            if tuple(image.shape) != self.shape:
                raise DataError(
                    f"{name_of(self._dataset)}: row {place} is an image {tuple(image.shape)}, the "
                    f"first one is {self.shape}; resize and crop them to one shape"
                )
            if found != label:
                raise DataError(
                    f"{name_of(self._dataset)}: row {place} has label {found}, but label {label} "
                    "in its list of labels; an evaluation needs the same label at each reading"
                )
            images.append(image)
        stacked = torch.stack(images) if images else torch.zeros(0, *self.shape)
        return Batch(stacked, labels.clone())

    def subset(self, rows: Tensor) -> DatasetSplit:
        """See `Split`."""
        part = DatasetSplit.__new__(DatasetSplit)
        index = as_index(rows)
        part._dataset, part._rows = self._dataset, self._rows[index]
        part.labels, part.shape = self.labels[index], self.shape
        return part

    def _item(self, place: int, *, reading: int = 0) -> tuple[Tensor, int]:
        """One checked row; a data set's own draws are seeded, and leave no trace."""
        try:
            with randomness.seeded("dataset", place, reading):
                item = self._dataset[place]
        except Exception as error:  # somebody's data set raises anything
            raise _unreadable(self._dataset, place, error) from error
        return checked(self._dataset, place, item)


def _count_in_order(loader: DataLoader[Any]) -> int | None:
    """How many rows of its data set a loader gives, if it gives them in order and as they are."""
    plain = (
        isinstance(loader.sampler, SequentialSampler)
        and loader.batch_size is not None
        and loader.collate_fn is default_collate
        and not isinstance(loader.dataset, IterableDataset)
    )
    if not plain:
        return None
    count = len(loader.sampler)  # type: ignore[arg-type]  # a sequential one has a length
    return count - count % loader.batch_size if loader.drop_last else count  # type: ignore[operator]


def _batches(loader: DataLoader[Any]) -> Iterator[Iterable[Any]]:
    """A loader's batches, each as rows."""
    for batch in loader:
        if loader.batch_size is None and not _has_rows(batch):
            yield [batch]  # it gives single rows
            continue
        if not _has_rows(batch):
            raise DataError(
                f"{name_of(loader)}: a batch is {described(batch)}; it must be (images, labels), "
                "images (B, C, H, W) and labels (B,)"
            )
        yield zip(batch[0], batch[1], strict=True)


def _has_rows(batch: Any) -> bool:
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        return False
    images, labels = (torch.as_tensor(part) if _is_numeric(part) else part for part in batch)
    return (
        isinstance(images, Tensor)
        and isinstance(labels, Tensor)
        and images.ndim == 4
        and labels.ndim == 1
        and len(images) == len(labels)
    )


def _is_numeric(part: Any) -> bool:
    return isinstance(part, np.ndarray) or (
        isinstance(part, list) and all(isinstance(one, int | np.integer) for one in part)
    )


def _read_once(
    source: Dataset[Any] | DataLoader[Any], batches: Iterable[Iterable[Any]], limit: int | None
) -> ArraySplit:
    """The first rows of what has no fixed order, in memory."""
    images: list[Tensor] = []
    labels: list[int] = []
    with randomness.seeded("dataset", "once"):
        for item in _rows(source, batches):
            if limit is not None and len(images) == limit:
                break
            image, label = checked(source, len(images), item)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{name_of(source)}: row {len(images)} is an image {tuple(image.shape)}, the "
                    f"first one is {tuple(images[0].shape)}; resize and crop them to one shape"
                )
            if limit is None and (len(images) + 1) * image.numel() * 4 > KEPT_BYTES:
                raise DataError(
                    f"{name_of(source)} gives its images in no fixed order, so they are kept in "
                    f"memory, and more than {len(images)} of {tuple(image.shape)} exceed "
                    f"{KEPT_BYTES / 2**30:.3g} GiB as float32; give a limit, or the data set "
                    "itself, which is read row by row"
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(f"{name_of(source)} gives no images; an evaluation needs at least one")
    return ArraySplit(torch.stack(images), torch.tensor(labels))


def _rows(
    source: Dataset[Any] | DataLoader[Any], batches: Iterable[Iterable[Any]]
) -> Iterator[Any]:
    """Row after row; what fails in somebody's code is told with the row."""
    place = 0
    try:
        for batch in batches:
            for row in batch:
                yield row
                place += 1
    except DataError:
        raise
    except Exception as error:  # somebody's data set raises anything
        raise _unreadable(source, place, error) from error


def _unreadable(source: Dataset[Any] | DataLoader[Any], place: int, error: Exception) -> DataError:
    return DataError(
        f"{name_of(source)}: row {place} cannot be read ({type(error).__name__}: {error}); mend "
        "the data set, or leave this row out"
    )


def _labels(dataset: Dataset[Any], rows: Tensor) -> Tensor | None:
    """The labels that a data set says it has; None where it says nothing, or something else."""
    if isinstance(dataset, Subset):
        indices = torch.as_tensor(dataset.indices)
        return _labels(dataset.dataset, indices[rows])
    if isinstance(dataset, ConcatDataset):
        every = [_labels(part, torch.arange(len(part))) for part in dataset.datasets]  # type: ignore[arg-type]
        known = [part for part in every if part is not None]
        return torch.cat(known)[rows] if len(known) == len(every) else None
    tensors = getattr(dataset, "tensors", ())
    listed = [getattr(dataset, name, None) for name in ("targets", "labels")]
    listed.append(tensors[1] if isinstance(tensors, tuple) and len(tensors) == 2 else None)
    for given in listed:
        try:
            found = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            continue  # names or boxes, say
        integers = not (found.is_floating_point() or found.dtype == torch.bool)
        if integers and found.ndim == 1 and len(found) == len(dataset):  # type: ignore[arg-type]
            return found[rows].to("cpu", torch.long)
    return None
