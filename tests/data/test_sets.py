import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from phalanx.data import Split, load_data
from phalanx.data.sets import ArraySplit
from phalanx.errors import DataError

TEST_IMAGES_MD5 = "1ee12d068df4463324d59ab8ee622457"
"""If this changes, old runs are tested on images that they were trained on."""


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


# ---------------------------------------------------------------- digits


def test_digits(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1297, 0, 500)
    assert digits.task.shape == (1, 8, 8)
    assert digits.task.train_size == 1297
    assert digits.task.class_names == tuple("0123456789")
    assert str(digits.threat) == "linf:0.1"


def test_digits_are_stratified(digits):
    train = digits.train.labels.bincount()
    test = digits.test.labels.bincount()
    share = 500 * (train + test) / 1797
    assert ((test - share).abs() < 1).all()


def test_digits_are_split_once_and_for_all(digits):
    """Every image is in one part; which one does not change with a library's version."""
    from sklearn.datasets import load_digits

    source = torch.from_numpy(load_digits().images / 16).float().flatten(1)
    both = torch.cat([part.fetch(slice(None)).x.flatten(1) for part in (digits.train, digits.test)])
    assert torch.equal(both.sum(0), source.sum(0))
    assert len(torch.unique(both, dim=0)) == len(torch.unique(source, dim=0))
    assert hashlib.md5(digits.test.images.numpy().tobytes()).hexdigest() == TEST_IMAGES_MD5


def test_digits_constants(digits):
    pixels = digits.train.fetch(slice(None)).x.double()
    assert abs(float(pixels.mean()) - digits.task.mean[0]) < 5e-5
    assert abs(float(pixels.std(correction=0)) - digits.task.std[0]) < 5e-5
    assert (pixels.min(), pixels.max()) == (0, 1)


# ---------------------------------------------------------------- limit and validation


def rows_of(part, whole):
    """Indices in `whole` of the images of `part`; digits has no two equal images with one label."""
    index = {bytes(image.numpy().tobytes()): row for row, image in enumerate(whole.images)}
    return [index[image.numpy().tobytes()] for image in part.images]


def test_limit_and_validation_are_disjoint_and_fixed(digits):
    data = load_data("digits", limit=300, validation=0.2)
    again = load_data("digits", limit=300, validation=0.2)
    train, held_out = rows_of(data.train, digits.train), rows_of(data.validation, digits.train)
    assert (len(train), len(held_out)) == (300, round(0.2 * 1297))
    assert not set(train) & set(held_out)
    assert data.task.train_size == 300
    assert torch.equal(data.train.images, again.train.images)
    assert torch.equal(data.test.images, digits.test.images)


def test_validation_does_not_move_with_the_limit():
    few, many = (load_data("digits", limit=n, validation=0.1) for n in (100, 900))
    assert torch.equal(few.validation.images, many.validation.images)
    assert set(rows_of(few.train, many.train)) <= set(range(900))


def test_a_limit_is_a_random_subset(digits):
    rows = torch.tensor(rows_of(load_data("digits", limit=200).train, digits.train))
    assert len(rows) == 200
    assert rows.max() > 1000
    assert (rows.diff() > 0).all()


def test_global_random_state_stays():
    before = torch.get_rng_state()
    load_data("digits", limit=10, validation=0.5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 1298}, "limit = 1298, but digits has 1297 images to train on; choose 1 to 1297"),
        ({"limit": 0}, "limit = 0, but digits has 1297 images to train on; choose 1 to 1297"),
        (
            {"limit": 700, "validation": 0.5},
            "limit = 700, but digits has 649 images to train on; choose 1 to 649",
        ),
        (
            {"validation": 0.9999},
            "validation = 0.9999 holds out all 1297 images of digits and leaves none to train on; "
            "choose a smaller share",
        ),
        ({"validation": 1.0}, "validation is a share in [0, 1), found 1.0"),
    ],
)
def test_shares_that_do_not_fit(arguments, message):
    with pytest.raises(DataError) as error:
        load_data("digits", **arguments)
    assert str(error.value) == message


# ---------------------------------------------------------------- fetch


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.integers(0, 1296), max_size=20))
def test_any_rows_in_any_order(rows):
    train = load_data_once().train
    batch = train.fetch(rows)
    assert batch.x.shape == (len(rows), 1, 8, 8)
    assert (batch.x.dtype, batch.y.dtype) == (torch.float32, torch.int64)
    for x, y, row in zip(batch.x, batch.y, rows, strict=True):
        assert torch.equal(x, train.images[row] / 16)
        assert y == train.labels[row]
    assert torch.equal(train.fetch(torch.tensor(rows, dtype=torch.long)).x, batch.x)


_LOADED = []


def load_data_once():
    if not _LOADED:
        _LOADED.append(load_data("digits"))
    return _LOADED[0]


def test_slices(digits):
    assert torch.equal(digits.test.fetch(slice(3, 9)).x, digits.test.fetch(torch.arange(3, 9)).x)
    assert len(digits.test.fetch(slice(490, 510))) == 10


@pytest.mark.parametrize("rows", [slice(0, 4), [0, 1, 2, 3]])
def test_a_batch_may_be_written_to(rows):
    split = Split.from_arrays(torch.full((4, 1, 2, 2), 0.5), torch.arange(4))
    batch = split.fetch(rows)
    batch.x.zero_()
    batch.y.zero_()
    assert (split.images == 0.5).all()
    assert torch.equal(split.labels, torch.arange(4))


def test_uint8_is_divided_as_torchvision_does():
    from torchvision.transforms.functional import to_tensor

    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    split = ArraySplit(
        torch.from_numpy(image).permute(2, 0, 1)[None], torch.zeros(1, dtype=torch.long)
    )
    assert torch.equal(split.fetch([0]).x[0], to_tensor(image))


# ---------------------------------------------------------------- one's own arrays


def test_from_numpy():
    x = np.random.default_rng(0).random((5, 3, 4, 4))
    split = Split.from_arrays(x, np.arange(5, dtype=np.int32), classes=5)
    batch = split.fetch([4, 0])
    assert batch.x.dtype == torch.float32
    assert batch.y.tolist() == [4, 0]
    torch.testing.assert_close(batch.x, torch.from_numpy(x[[4, 0]]).float())


GOOD = torch.zeros(2, 1, 3, 3)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        (GOOD[0], LABELS[:1], "images must be (N, C, H, W), found shape (1, 3, 3)"),
        (GOOD.byte(), LABELS, "images must be floats in [0, 1], found torch.uint8; divide by 255"),
        (
            GOOD - 2.5,
            LABELS,
            "images must be in [0, 1], found -2.5 to -2.5; undo the normalisation, it belongs in "
            "the model",
        ),
        (GOOD / 0, LABELS, "images must be finite, found NaN or infinity"),
        (GOOD, LABELS.float(), "labels must be integers, found torch.float32"),
        (GOOD, LABELS[None], "labels must be (N,), found shape (1, 2); one-hot: argmax(1)"),
        (GOOD, LABELS - 1, "labels must be from 0, found -1"),
        (GOOD, LABELS + 2, "labels must be below 3, found 3"),
        (GOOD, torch.arange(3), "2 images, but 3 labels"),
    ],
)
def test_bad_arrays(x, y, problem):
    with pytest.raises(DataError) as error:
        Split.from_arrays(x, y, classes=3)
    assert problem in str(error.value)


def test_all_problems_at_once():
    with pytest.raises(DataError) as error:
        Split.from_arrays(GOOD.byte(), LABELS.float())
    assert str(error.value) == (
        "images and labels cannot be used: images must be floats in [0, 1], found torch.uint8; "
        "divide by 255; labels must be integers, found torch.float32"
    )


@pytest.mark.parametrize("mask", [torch.tensor([True, False, True]), [True, False, True]])
def test_a_boolean_mask_is_no_row(mask):
    split = Split.from_arrays(torch.rand(3, 1, 2, 2), torch.arange(3))
    with pytest.raises(DataError, match="found a boolean mask"):
        split.fetch(mask)
    assert len(split.fetch([])) == 0


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([[1.0, 2.0], [3.0]], [0, 1], "images must be a tensor, a numpy array or nested lists of"),
        (torch.rand(2, 1, 2, 2), [[1], [2, 3]], "labels must be a tensor, a numpy array or nested"),
        (None, [0], "found NoneType"),
        (["a"], ["b"], "found list"),
    ],
)
def test_ragged_input_is_a_data_error(x, y, told):
    with pytest.raises(DataError, match=told):
        Split.from_arrays(x, y)


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [(0.0, 255.0, "divide by 255"), (-2.1, 2.6, "undo the normalisation"), (0.0, 1.5, "undo the")],
)
def test_a_wrong_range_says_what_to_do(low, high, hint):
    x = torch.tensor([low, high]).view(2, 1, 1, 1)
    with pytest.raises(DataError, match=hint):
        Split.from_arrays(x, torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16])
def test_labels_of_any_integer_type(dtype):
    split = Split.from_arrays(torch.rand(3, 1, 2, 2), np.array([0, 2, 1], dtype), classes=3)
    assert torch.equal(split.labels, torch.tensor([0, 2, 1]))
