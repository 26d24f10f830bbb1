"""torch's data sets and loaders, read by row or once, and all that can be wrong with them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from phalanx.data import datasets
from phalanx.data.datasets import DatasetSplit, split_of
from phalanx.data.sets import ArraySplit
from phalanx.errors import DataError

X = torch.rand(30, 2, 4, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4


class Items(Dataset):
    """Counts its readings; `change` says what becomes of a row."""

    def __init__(self, change=None, n=30, **attributes):
        self.change = change or {}
        self.n = n
        self.read = []
        self.__dict__.update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        if not 0 <= row < self.n:
            raise IndexError(row)
        self.read.append(row)
        change = self.change.get(row, lambda image, label: (image, label))
        return change(X[row], int(Y[row]))


class Stream(IterableDataset):
    def __init__(self, count=30):
        self.count = count
        self.given = 0

    def __iter__(self):
        for row in range(self.count):
            self.given += 1
            yield X[row % 30], Y[row % 30]


def everything(split):
    return split.fetch(slice(None))


def same(split, rows=slice(None)):
    batch = everything(split)
    return torch.equal(batch.x, X[rows]) and torch.equal(batch.y, Y[rows])


# ---------------------------------------------------------------- by row


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        Items(targets=Y.tolist()),
        Items(labels=Y.numpy()),
        Items(),
        Subset(TensorDataset(X, Y), range(30)),
        ConcatDataset([TensorDataset(X[:7], Y[:7]), TensorDataset(X[7:], Y[7:])]),
        DataLoader(TensorDataset(X, Y), batch_size=7),
        Stream(),
        DataLoader(Stream(), batch_size=7),
        DataLoader(TensorDataset(X, Y), batch_size=7, collate_fn=lambda rows: (
            torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])
        )),
    ],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_every_form_gives_the_same_images(data):
    split = split_of(data)
    assert same(split)
    assert split.shape == (2, 4, 5)
    assert torch.equal(split.labels, Y)
    assert len(split_of(data, 11)) == 11
    assert same(split_of(data, 11), slice(11))
    assert len(split_of(data, 1000)) == 30


def test_rows_are_read_when_they_are_asked_for():
    data = Items(targets=Y)
    split = split_of(data)
    assert len(set(data.read)) == datasets.VERIFIED
    data.read.clear()
    batch = split.fetch([29, 3])
    assert data.read == [29, 3]
    assert torch.equal(batch.x, X[[29, 3]])
    part = split.subset(torch.tensor([5, 1, 7]))
    assert torch.equal(part.labels, Y[[5, 1, 7]])
    assert torch.equal(part.fetch(slice(1, None)).x, X[[1, 7]])
    assert [len(batch) for batch in split.stream([[1], [2, 3]])] == [1, 2]
    assert len(split.fetch([])) == 0


def test_labels_that_cannot_be_trusted_are_read(caplog):
    for known in (None, Y.roll(1), Y[:5], ["cat"] * 30, Y.float()):
        data = Items(targets=known)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert torch.equal(split_of(data).labels, Y)
        assert caplog.messages == ["Items: reading all 30 rows once for labels"]
    caplog.clear()
    split_of(Items(targets=Y))
    assert not caplog.messages


def test_a_limit_reads_no_more_labels():
    data = Items(n=30)
    split_of(data, 20)
    assert max(data.read) == 19


def test_pictures_and_arrays():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    colour = np.stack([grey, grey[::-1], 255 - grey], -1)
    palette = Image.fromarray(colour).quantize(64)
    for image, expected in (
        (Image.fromarray(grey), grey[None] / 255),
        (Image.fromarray(colour), colour.transpose(2, 0, 1) / 255),
        (Image.fromarray(grey > 99), (grey > 99)[None].astype(float)),
        (palette, np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255),
        (colour.transpose(2, 0, 1) / 255, colour.transpose(2, 0, 1) / 255),
    ):
        split = split_of(Items({0: lambda *_, image=image: (image, np.int64(0))}, n=1))
        found = split.fetch([0])
        assert found.x.dtype == torch.float32
        assert np.allclose(found.x[0].numpy(), expected, atol=1e-7)
        assert found.y.tolist() == [0]


def test_global_generators_stay_as_they_were():
    state = torch.get_rng_state()
    split = split_of(DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True))
    everything(split)
    everything(split_of(DataLoader(TensorDataset(X, Y), batch_size=4)))
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- read once


def test_a_shuffling_loader_is_read_once_and_alike():
    def loader():
        return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)

    one, other = (split_of(loader()) for _ in range(2))
    assert isinstance(one, ArraySplit)
    assert torch.equal(one.images, other.images)
    assert not torch.equal(one.images, X)
    order = [int((image == X).flatten(1).all(1).nonzero()) for image in one.images]
    assert sorted(order) == list(range(30))
    assert torch.equal(one.labels, Y[order])
    assert torch.equal(split_of(loader(), 9).images, one.images[:9])


def test_a_limit_stops_the_reading():
    stream = Stream()
    assert len(split_of(stream, 4)) == 4
    assert stream.given <= 5


def test_a_loader_in_order_stands_for_its_data_set():
    data = TensorDataset(X, Y)
    assert isinstance(split_of(DataLoader(data, batch_size=4)), DatasetSplit)
    assert len(split_of(DataLoader(data, batch_size=4, drop_last=True))) == 28
    random = DataLoader(data, batch_size=4, sampler=RandomSampler(data))
    assert isinstance(split_of(random), ArraySplit)
    assert isinstance(split_of(DataLoader(Stream(), batch_size=None)), ArraySplit)


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "KEPT_BYTES", 40 * 4 * 10)
    with pytest.raises(DataError) as caught:
        split_of(Stream(1000))
    assert "more than 10 of (2, 4, 5) exceed 1.49e-06 GiB as float32; give a limit" in str(
        caught.value
    )
    assert len(split_of(Stream(1000), 20)) == 20
    assert len(split_of(TensorDataset(X, Y))) == 30


# ---------------------------------------------------------------- what is wrong


def swap(image=None, label=None):
    return lambda x, y: (x if image is None else image(x), y if label is None else label)


BROKEN = [
    (swap(lambda x: x * 2 - 1), "row 20: images must be in [0, 1], found -"),
    (swap(lambda x: x * float("nan")), "row 20: images must be finite, found NaN or infinity"),
    (
        swap(lambda x: (x * 255).byte()),
        "row 20: images must be floats in [0, 1], found torch.uint8",
    ),
    (swap(lambda x: x[0]), "row 20: images must be (C, H, W), found shape (4, 5)"),
    (swap(lambda x: x[:, :3]), "row 20 is an image (2, 3, 5), the first one is (2, 4, 5)"),
    (
        swap(lambda x: "cat.png"),
        "row 20: an image is a tensor, an array or a PIL image, found 'cat",
    ),
    (swap(lambda x: Image.new("I;16", (5, 4))), "row 20: a PIL image of mode 'I;16' has no 8 bits"),
    (swap(label=1.0), "row 20: a label is an integer from 0, found 1.0"),
    (swap(label=-1), "row 20: a label is an integer from 0, found -1"),
    (swap(label=True), "row 20: a label is an integer from 0, found True"),
    (swap(label=torch.zeros(4)), "row 20: a label is an integer from 0, found Tensor (4,)"),
    (lambda x, y: x, "row 20 is Tensor (2, 4, 5) of torch.float32; each row must be a pair"),
    (lambda x, y: {"image": x, "label": y}, "row 20 is dict of 2; each row must be a pair"),
    (lambda x, y: (x, y) if x.sum() < 0 else 1 / 0, "row 20 cannot be read (ZeroDivisionError: "),
]


@pytest.mark.parametrize(("change", "told"), BROKEN, ids=[told[:60] for _, told in BROKEN])
def test_a_broken_row_is_named(change, told):
    """Whether it is found in the pass over the labels, when it is fetched, or in a loader."""
    with pytest.raises(DataError) as caught:
        everything(split_of(Items({20: change})))
    assert told in str(caught.value)
    with pytest.raises(DataError) as caught:
        everything(split_of(Items({20: change}, targets=Y)))
    assert told in str(caught.value)
    assert caught.value.exit_code == 2
    split_of(Items({20: change}, targets=Y), 20)  # rows that are not used need not be right


def test_a_label_that_changes_is_found():
    split = split_of(Items({20: swap(label=9)}, targets=Y))
    with pytest.raises(DataError, match="row 20 has label 9, but label 0 in its list of labels"):
        everything(split)
    with pytest.raises(DataError, match="row 7: a label is an integer from 0, found -3"):
        split_of(TensorDataset(X, _minus(7)))


def _minus(row):
    labels = Y.clone()
    labels[row] = -3
    return labels


def test_random_augmentation_is_refused():
    jitter = {row: swap(lambda x: x * torch.rand(1)) for row in range(30)}
    with pytest.raises(DataError, match="row 0 is another image each time it is read; take random"):
        split_of(Items(jitter, targets=Y))


def test_loaders_of_something_else():
    with pytest.raises(DataError, match=r"a batch is Tensor \(8, 2, 4, 5\).*; it must be \(images"):
        split_of(DataLoader(TensorDataset(X), batch_size=8, collate_fn=lambda r: X[:8]))
    ragged = Items({20: swap(lambda x: x[:, :3])})
    with pytest.raises(DataError, match=r"cannot be read \(RuntimeError: stack expects"):
        split_of(DataLoader(ragged, batch_size=8, shuffle=True))
    with pytest.raises(DataError, match="Stream gives no images"):
        split_of(Stream(0))
    with pytest.raises(DataError, match="Boundless has no length"):
        split_of(type("Boundless", (Dataset,), {})())
    assert len(split_of(Items(n=0))) == 0
