"""A folder of photos as data: rows in any order, streamed, in memory that does not grow."""

import gc
import tracemalloc

import pytest
import torch
from torch import Tensor

from phalanx.data.folder import PIECE, Reading, load_evaluation_folder, load_folder
from phalanx.errors import DataError
from phalanx.specs import Preprocessing

WHOLE = Preprocessing(size=(8, 8), crop_mode="squash", interpolation="nearest")


def reading(**more):
    more.setdefault("workers", 0)
    return Reading(WHOLE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), **more)


@pytest.fixture(scope="module")
def root(tmp_path_factory, photos):
    return photos.write(tmp_path_factory.mktemp("photos") / "insects", count=25)


def colours(split, photos, part):
    """What each row must look like, ``(N, 3)`` in [0, 1]."""
    found = []
    for row in split.rows.tolist():
        name, file = split.part.names[row].split("/")
        label, number = ("ant", "bee").index(name), int(file.removesuffix(".png"))
        found.append(photos.colour(part, label, number))
    return torch.tensor(found) / 255


def test_task(root):
    data = load_folder(root, reading())
    task = data.task
    assert (task.name, task.shape, task.classes, task.train_size) == ("insects", (3, 8, 8), 2, 50)
    assert (task.class_names, task.preprocessing) == (("ant", "bee"), WHOLE)
    assert data.threat is None
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 0, 50)


def test_any_rows_in_any_order(root, photos):
    train = load_folder(root, reading()).train
    expected = colours(train, photos, "train")
    rows = torch.tensor([44, 3, 3, 0])
    for asked in (rows, rows.tolist()):
        batch = train.fetch(asked)
        assert (batch.x.shape, batch.x.dtype) == ((4, 3, 8, 8), torch.float32)
        assert torch.equal(batch.x[:, :, 0, 0], expected[rows])
        assert torch.equal(batch.x, expected[rows][:, :, None, None].expand_as(batch.x))
        assert batch.y.tolist() == [1, 0, 0, 0]
    assert len(train.fetch([])) == 0
    assert torch.equal(train.fetch(slice(40, 60)).x, train.fetch(torch.arange(40, 50)).x)
    with pytest.raises(DataError, match="boolean mask"):
        train.fetch(torch.ones(50, dtype=torch.bool))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_what_fetch_gives(root, workers):
    """Batches that are longer than a piece, as long, shorter, and empty."""
    train = load_folder(root, reading(workers=workers)).train
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    asked = [order[:PIECE], order[PIECE : 2 * PIECE + 5], order[:0], slice(0, 3), [7]]
    found = list(train.stream(asked))
    assert len(found) == len(asked)
    for batch, rows in zip(found, asked, strict=True):
        assert torch.equal(batch.x, train.fetch(rows).x)
        assert torch.equal(batch.y, train.fetch(rows).y)


def test_subsets_share_the_names(root):
    train = load_folder(root, reading()).train
    part = train.subset(torch.tensor([40, 2])).subset(torch.tensor([1, 0, 0]))
    assert torch.equal(part.fetch(slice(None)).x, train.fetch([2, 40, 40]).x)
    assert part.labels.tolist() == [0, 1, 1]
    assert part.part is train.part


def test_limit_and_validation_share(root):
    data = load_folder(root, reading(), limit=20, validation=0.2)
    assert (len(data.train), len(data.validation), data.task.train_size) == (20, 10, 20)
    assert not set(data.train.rows.tolist()) & set(data.validation.rows.tolist())
    assert set(data.train.labels.tolist()) == {0, 1}
    with pytest.raises(DataError, match=r"limit = 51, but .*insects has 50 images to train on"):
        load_folder(root, reading(), limit=51)


def test_a_validation_folder_is_the_validation_part(tmp_path, photos):
    photos.write(tmp_path, parts=("train", "val", "test"))
    data = load_folder(tmp_path, reading())
    assert data.validation.part.root == tmp_path / "val"
    with pytest.raises(DataError, match=r"val is the validation part already; leave \[data\] val"):
        load_folder(tmp_path, reading(), validation=0.5)


def test_unreadable_files_are_left_out(tmp_path, photos):
    photos.write(tmp_path, count=4)
    (tmp_path / "train" / "bee" / "1.png").write_text("no image")
    (tmp_path / "test" / "ant" / "0.png").write_text("no image")
    data = load_folder(tmp_path, reading(unreadable="skip"))
    assert len(data.train) == 7
    assert torch.equal(
        data.train.fetch(slice(None)).x[:, :, 0, 0], colours(data.train, photos, "train")
    )
    found = load_evaluation_folder(tmp_path, reading(unreadable="skip"))
    assert len(found.test) == 7
    assert found.folder.text() == "test: 1 of 8 files: ant/0.png (it is no image of a known format)"
    with pytest.raises(DataError, match=r"test/ant/0\.png cannot be read as an image"):
        load_evaluation_folder(tmp_path, reading())


def test_a_class_of_unreadable_files_alone(tmp_path, photos):
    photos.write(tmp_path)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="train: no readable image of class 'bee' is left; add som"):
        load_folder(tmp_path, reading(unreadable="skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_bad_later_is_named(tmp_path, photos, workers):
    photos.write(tmp_path)
    train = load_folder(tmp_path, reading(workers=workers)).train
    path = tmp_path / "train" / "ant" / "1.png"
    path.write_text("no image")
    stream = train.stream([[0], [1], [2]])
    assert len(next(stream)) == 1
    with pytest.raises(DataError) as error:
        next(stream)
    assert str(error.value).startswith(f"{path} cannot be read as an image (it is no image of a")
    assert "Traceback" not in str(error.value)


# ---------------------------------------------------------------- evaluation


def test_a_models_classes_keep_their_order(tmp_path, photos):
    photos.write(tmp_path, parts=("test",))
    plain = load_evaluation_folder(tmp_path, reading())
    turned = load_evaluation_folder(tmp_path, reading(), classes=("bee", "ant"))
    assert turned.task.class_names == ("bee", "ant")
    assert torch.equal(turned.test.labels, 1 - plain.test.labels)
    assert torch.equal(turned.test.fetch([0]).x, plain.test.fetch([0]).x)
    with pytest.raises(DataError, match=r"lacks 'cat' of the model\. Give every part the same cla"):
        load_evaluation_folder(tmp_path, reading(), classes=("ant", "bee", "cat"))


def test_equal_files_of_two_classes_keep_their_labels(root, photos):
    test = load_evaluation_folder(root, reading()).test
    batch = test.fetch(slice(None))
    assert torch.equal(batch.x[:, :, 0, 0], colours(test, photos, "test"))
    assert batch.y.tolist() == [
        ("ant", "bee").index(name.split("/")[0]) for name in test.part.names
    ]


# ---------------------------------------------------------------- memory


def nbytes(thing):
    """Of a tensor of images; 0 of anything else."""
    return thing.nbytes if type(thing) is Tensor and thing.ndim == 4 else 0


def peak_of_an_epoch(root):
    train = load_folder(root, reading()).train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    images = 0
    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if nbytes(thing)}
    tracemalloc.start()
    for batch in train.stream(order[at : at + 8] for at in range(0, len(order), 8)):
        images += len(batch)
        if images in (24, 120, 240):  # looking at every object takes time
            new = (nbytes(thing) for thing in gc.get_objects() if id(thing) not in before)
            assert sum(new) <= 3 * batch.x.nbytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return images, peak


def test_nothing_grows_with_the_folder(tmp_path, photos):
    """No image is kept: neither tensors nor Python's memory of an epoch grow with its length."""
    photos.write(tmp_path / "few", count=12)
    photos.write(tmp_path / "many", count=120)
    peak_of_an_epoch(tmp_path / "few")  # what is imported and cached at first
    few, many = (peak_of_an_epoch(tmp_path / name) for name in ("few", "many"))
    assert (few[0], many[0]) == (24, 240)
    assert many[1] <= 1.1 * few[1] + 10_000
