"""Files are whole or absent, whatever the disk does; folders are refused before work begins."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from phalanx import storage
from phalanx.errors import OutputError, StorageError


def refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full (quota)"),
        (errno.EROFS, "the disk is mounted read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_reasons_in_words(number, reason):
    assert storage.reason_of(OSError(number, os.strerror(number))) == reason


@pytest.mark.parametrize("step", ["fsync", "replace", "mkstemp"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "state.json"
    storage.write_atomically(path, b"old")
    home = {"fsync": os, "replace": Path, "mkstemp": tempfile}[step]
    monkeypatch.setattr(home, step, refuse(errno.ENOSPC))
    with pytest.raises(StorageError) as caught:
        storage.write_atomically(path, b"new")
    assert str(caught.value) == f"{path} cannot be written: the disk is full"
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_what_is_kept_is_added_by_who_knows_it():
    with pytest.raises(StorageError) as caught, storage.keeping("cells are kept"):
        raise StorageError("x cannot be written: the disk is full", "an inner word")
    assert str(caught.value) == "x cannot be written: the disk is full; cells are kept"
    assert caught.value.exit_code == 1


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log"
    storage.append_line(path, "one")
    storage.append_line(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"

    class Small:
        """A file on a disk that takes three bytes more."""

        def __init__(self, file):
            self.file, self.left = file, 3

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def truncate(self, size):
            return self.file.truncate(size)

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "full")
            part = data[: self.left]
            self.left -= len(part)
            return self.file.write(part)

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *given, **more: Small(opened(*given, **more)))
    with pytest.raises(StorageError, match="log cannot be written: the disk is full"):
        storage.append_line(path, "three")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"


def test_what_a_killed_process_left_is_removed(tmp_path):
    old = tmp_path / ".state.json.abc.part"
    young = tmp_path / ".cell.def.part"
    other = tmp_path / ".hidden"
    for path in (old, young, other):
        path.touch()
    os.utime(old, (0, 0))
    storage.remove_parts(tmp_path, older_than=3600)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name}
    storage.remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
    storage.remove_parts(tmp_path / "nothing")


def test_unfinished_files_are_named_as_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed on the spot
    with pytest.raises(StorageError):
        storage.write_atomically(tmp_path / "x.json", b"{}")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    storage.remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestCheckOutput:
    def test_a_good_place_leaves_nothing_behind(self, tmp_path):
        storage.check_output(tmp_path)
        storage.check_output(tmp_path / "a" / "b")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("number", "kind", "text"),
        [
            (
                errno.EROFS,
                OutputError,
                "--out {} cannot be written: the disk is mounted read-only; name a folder that "
                "can be written",
            ),
            (
                errno.EACCES,
                OutputError,
                "--out {} cannot be written: no permission; name a folder that can be written",
            ),
            (
                errno.ENOSPC,
                StorageError,
                "--out {} cannot be written: the disk is full; make space on it, or name a folder "
                "elsewhere",
            ),
        ],
    )
    def test_a_place_that_cannot_be_written(self, tmp_path, monkeypatch, number, kind, text):
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse(number))
        with pytest.raises(kind) as caught:
            storage.check_output(tmp_path / "r")
        assert str(caught.value) == text.format(tmp_path / "r")

    def test_a_file_is_no_folder(self, tmp_path):
        file = tmp_path / "taken"
        file.touch()
        with pytest.raises(OutputError) as caught:
            storage.check_output(file)
        assert str(caught.value) == f"--out {file} is a file; name a folder for the results"
        with pytest.raises(OutputError) as caught:
            storage.check_output(file / "sub", "out")
        assert str(caught.value) == (
            f"out {file} is a file, so {file / 'sub'} cannot be made; name a folder for the results"
        )

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
    def test_a_name_that_is_none(self, tmp_path, name):
        with pytest.raises(OutputError):
            storage.check_output(tmp_path / name)
