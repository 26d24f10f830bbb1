"""What lies in a folder: its layout, its classes and its image files."""

import os
import sys

import pytest
from torchvision.datasets import ImageFolder

from phalanx.data.listing import Names, check_classes, evaluation_part, training_parts
from phalanx.errors import DataError


def names(part):
    return list(part.names)


# ---------------------------------------------------------------- names


def test_names_are_kept_as_they_are():
    given = ["a/1.jpg", "", "ü/ 2 .png", os.fsdecode(b"b/\xff.jpg")]
    kept = Names(given)
    assert list(kept) == given
    assert (len(kept), kept[2]) == (4, "ü/ 2 .png")


def test_digests_tell_names_apart():
    assert Names(["ab", "c"]).digest() != Names(["a", "bc"]).digest()
    assert Names(["a", "b"]).digest() != Names(["b", "a"]).digest()
    assert Names(["a"]).digest() == Names(["a"]).digest()


def test_names_take_little_memory():
    many = Names(f"class-{n % 10}/{n:08d}.jpg" for n in range(10_000))
    assert len(many._blob) + many._ends.itemsize * len(many._ends) < 40 * 10_000


# ---------------------------------------------------------------- layout


def test_the_order_of_training_images_is_torchvisions(tmp_path, photos):
    root = photos.write(tmp_path, classes=("bee", "Ant", "élan x"), count=4)
    (root / "train" / "bee" / "deep").mkdir()
    (root / "train" / "bee" / "0.png").rename(root / "train" / "bee" / "deep" / "9.PNG")
    part = training_parts(root)["train"]
    theirs = ImageFolder(root / "train")
    assert list(part.classes) == theirs.classes
    ours = {part.path(row): int(part.labels[row]) for row in range(len(part.names))}
    assert ours == dict(theirs.samples)
    assert part.labels.tolist() == sorted(part.labels.tolist())


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val"), {"train": "train", "test": "val"}),
        (("train", "valid"), {"train": "train", "test": "valid"}),
        (("train", "val", "test"), {"train": "train", "validation": "val", "test": "test"}),
    ],
)
def test_parts(tmp_path, photos, parts, expected):
    found = training_parts(photos.write(tmp_path, parts=parts))
    assert {name: part.root.name for name, part in found.items()} == expected


@pytest.mark.parametrize(("parts", "used"), [(("train", "val", "test"), "test"), (("val",), "val")])
def test_what_is_evaluated_on(tmp_path, photos, parts, used):
    assert evaluation_part(photos.write(tmp_path, parts=parts)).root == tmp_path / used


def test_a_folder_of_classes_alone_can_be_evaluated_on(tmp_path, photos):
    part = evaluation_part(photos.write(tmp_path, parts=(".",)))
    assert part.classes == ("ant", "bee")
    assert sorted(names(part)) == [f"{name}/{n}.png" for name in ("ant", "bee") for n in range(3)]


def test_test_images_are_in_a_fixed_random_order(tmp_path, photos):
    few = names(evaluation_part(photos.write(tmp_path / "few", count=20)))
    many = names(evaluation_part(photos.write(tmp_path / "many", count=30)))
    assert few != sorted(few)
    assert {name.split("/")[0] for name in few[:8]} == {"ant", "bee"}
    assert few == [name for name in many if name in few], "other files move none"


def test_a_flat_folder_cannot_be_trained_on(tmp_path, photos):
    photos.write(tmp_path, parts=(".",))
    with pytest.raises(DataError) as error:
        training_parts(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has no folder train, so it cannot be trained on; lay it out as "
        f"{tmp_path}/train/<class>/*.jpg and {tmp_path}/test/<class>/*.jpg (or val)"
    )


def test_a_folder_without_a_test_part_cannot_be_trained_on(tmp_path, photos):
    photos.write(tmp_path, parts=("train",))
    with pytest.raises(DataError, match="has no folder test or val, so it cannot be trained on"):
        training_parts(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"the folder of photos .*nowhere does not exist; name it"):
        training_parts(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; name it by --data-root"):
        evaluation_part(tmp_path / "file")


# ---------------------------------------------------------------- classes


def test_one_class_is_too_few(tmp_path, photos):
    photos.write(tmp_path, classes=("ant",))
    with pytest.raises(DataError, match="needs at least two class folders, found only 'ant'"):
        training_parts(tmp_path)


def test_a_class_without_images(tmp_path, photos):
    photos.write(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"train has no images of class 'cat'; add some \(files"):
        training_parts(tmp_path)


def test_parts_of_different_classes(tmp_path, photos):
    photos.write(tmp_path, parts=("train",), classes=("ant", "bee", "cat"))
    photos.write(tmp_path, parts=("test",), classes=("ant", "bees", "cat"))
    with pytest.raises(DataError) as error:
        training_parts(tmp_path)
    test, train = tmp_path / "test", tmp_path / "train"
    assert str(error.value) == (
        f"the classes differ: {test} has 'bees', which {train} lacks; {test} lacks 'bee' of "
        f"{train}. Give every part the same class folders"
    )


def test_many_strange_classes_are_counted(tmp_path, photos):
    part = evaluation_part(photos.write(tmp_path, classes=[f"c{n}" for n in range(9)], count=1))
    with pytest.raises(DataError, match="has 'c0', 'c1', 'c2', 'c3', 'c4' and 4 more, which"):
        check_classes(part, ("ant",), of="the model")


# ---------------------------------------------------------------- files


def test_other_files_are_left_aside(tmp_path, photos):
    photos.write(tmp_path)
    before = names(training_parts(tmp_path)["train"])
    ant = tmp_path / "train" / "ant"
    for strange in ("Thumbs.db", ".DS_Store", "notes.txt", "._1.png", "0.png.json"):
        (ant / strange).write_text("")
    (tmp_path / "train" / ".git").mkdir()
    (tmp_path / "train" / "readme.md").write_text("")
    if hasattr(os, "mkfifo"):
        os.mkfifo(ant / "pipe.png")  # opening it would wait for ever
    assert names(training_parts(tmp_path)["train"]) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links(tmp_path, photos):
    """A link to a folder is followed, but not in a circle; a broken one is a file that is none."""
    photos.write(tmp_path)
    ant, elsewhere = tmp_path / "train" / "ant", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "train" / "bee" / "0.png").rename(elsewhere / "far.png")
    (ant / "more").symlink_to(elsewhere)
    (ant / "circle").symlink_to(ant)
    (ant / "self").symlink_to("self")
    (ant / "gone.png").symlink_to("nowhere.png")
    assert names(training_parts(tmp_path)["train"]) == [
        "ant/0.png", "ant/1.png", "ant/2.png", "ant/gone.png", "ant/more/far.png",
        "bee/1.png", "bee/2.png",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_listed(tmp_path, photos, monkeypatch):
    photos.write(tmp_path)
    real = os.scandir

    def denied(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="train/bee cannot be listed: Permission denied"):
        training_parts(tmp_path)
