"""Unreadable files are found before a training, refused or left out, and remembered."""

import pytest

from phalanx.data.checks import FolderRecord, PartRecord, check_files, check_unchanged
from phalanx.data.decode import Unreadable
from phalanx.data.listing import training_parts
from phalanx.errors import DataError


def check(parts, *, skip=False, workers=0, known=None, told=lambda done, files: None):
    trained = {name: part for name, part in parts.items() if name != "test"}
    return check_files(trained, skip=skip, workers=workers, told=told, known=known)


@pytest.fixture
def folder(tmp_path, photos):
    photos.write(tmp_path, count=4, side=64)
    return tmp_path


def spoil(folder, name="ant/2.png"):
    (folder / "train" / name).write_text("not an image")
    return folder / "train" / name


def test_a_whole_folder(folder):
    seen = []
    record = check(training_parts(folder), told=lambda done, files: seen.append((done, files)))
    assert record.parts["train"].files == 8
    assert record.parts["train"].unreadable == ()
    assert record.text() == ""
    assert seen == [(8, 8)]


def test_an_unreadable_file_is_named_and_refused(folder):
    path = spoil(folder)
    with pytest.raises(DataError) as error:
        check(training_parts(folder))
    assert str(error.value) == (
        f"{path} cannot be read as an image (it is no image of a known format). Put a whole copy "
        "in, remove it, or skip such files with --skip-unreadable ([data] skip_unreadable = true)"
    )
    assert error.value.exit_code == 2


def test_many_are_counted(folder):
    for label in ("ant", "bee"):
        for number in range(4):
            spoil(folder, f"{label}/{number}.png")
    with pytest.raises(DataError, match=r"3\.png cannot .*; and 3 more\. Put whole copies in, rem"):
        check(training_parts(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_recorded(folder, workers):
    spoil(folder)
    record = check(training_parts(folder), skip=True, workers=workers)
    reason = "it is no image of a known format"
    assert record.parts["train"].unreadable == (Unreadable(file="ant/2.png", reason=reason),)
    assert record.text() == f"train: 1 of 8 files: ant/2.png ({reason})"
    assert FolderRecord.model_validate_json(record.model_dump_json()) == record


def test_what_is_checked_is_not_checked_again(folder):
    parts = training_parts(folder)
    record = check(parts, skip=True)
    spoil(folder)
    assert check(parts, skip=True, known=record) == record
    assert check(parts, known=record) == record


def test_files_left_out_later_make_another_run(folder):
    parts = training_parts(folder)
    record = check(parts)
    spoil(folder)
    with pytest.raises(DataError, match=r"began with all its files, and now some would be left ou"):
        check(parts, skip=True, known=record)


def test_a_run_that_left_files_out_goes_on_only_so(folder):
    spoil(folder)
    parts = training_parts(folder)
    record = check(parts, skip=True)
    with pytest.raises(DataError, match=r"ant/2\.png cannot be read as an image"):
        check(parts, known=record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("more", "it had 8 train images, now it has 9. Put the files back to go on"),
        ("fewer", "it had 8 train images, now it has 7. Put"),
        ("renamed", "it had 8 train images, now it has 8, of other names or classes. Put"),
        ("validation", "it had 0 validation images, now it has 8. Put"),
    ],
)
def test_a_changed_folder_is_not_gone_on_with(folder, photos, change, message):
    record = check(training_parts(folder))
    first = folder / "train" / "ant" / "0.png"
    if change == "more":
        (folder / "train" / "ant" / "9.png").write_bytes(first.read_bytes())
    elif change == "fewer":
        first.unlink()
    elif change == "renamed":
        first.rename(first.with_name("9.png"))
    else:
        photos.write(folder, parts=("val",), count=4)
    with pytest.raises(DataError) as error:
        check_unchanged(folder, training_parts(folder), record)
    assert message in str(error.value)
    assert "began" in str(error.value)


def test_other_contents_and_test_images_change_nothing(folder):
    """A whole copy in the place of a damaged file is what a user is asked for."""
    record = check(training_parts(folder))
    first = folder / "train" / "ant" / "0.png"
    first.write_bytes((folder / "train" / "bee" / "0.png").read_bytes())
    (folder / "test" / "ant" / "0.png").unlink()
    check_unchanged(folder, training_parts(folder), record)


def test_a_record_of_many_files_names_some():
    bad = tuple(Unreadable(file=f"{n}.jpg", reason="cut") for n in range(60))
    record = PartRecord(files=99, digest="", checked="whole", unreadable=bad)
    assert record.text().startswith("60 of 99 files: 0.jpg (cut), 1.jpg (cut), ")
    assert record.text().endswith("49.jpg (cut), …")
