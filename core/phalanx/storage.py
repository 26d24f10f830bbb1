"""Where results go: files that are whole or absent, and what to say when a disk refuses them.

Torch-free. An unfinished file has a hidden name that ends in ``.part``; a process that is killed
leaves it behind, and `remove_parts` takes it away when the folder is opened again.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phalanx.errors import OutputError, StorageError

PART = ".part"
"""Ending of a file that is being written."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def reason_of(error: OSError) -> str:
    """Why the system refused, in words."""
    if error.errno in _FULL:
        quota = " (quota)" if error.errno == errno.EDQUOT else ""
        return f"the disk is full{quota}"
    if error.errno == errno.EROFS:
        return "the disk is mounted read-only"
    if error.errno in _REFUSED:
        return "no permission"
    return error.strerror or type(error).__name__


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system raises while `path` is written into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason_of(error)}") from error


@contextmanager
def keeping(kept: str) -> Iterator[None]:
    """Say in a `StorageError` raised inside what is kept and how to go on."""
    try:
        yield
    except StorageError as error:
        raise StorageError(error.problem, kept) from error.__cause__


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens.

    Raises:
        StorageError: if the disk is full or refuses; the old file stands.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Append a line and its end to a file, or leave the file as it was.

    Raises:
        StorageError: if the disk is full or refuses.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(size)
            raise


def remove_parts(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove what killed processes left unfinished in `folder`.

    Args:
        folder: looked at without its subfolders; it need not be there.
        older_than: seconds; younger files may belong to a process that is still writing.
    """
    if not folder.is_dir():
        return
    now = time.time()
    for path in folder.glob(f".*{PART}"):
        try:
            if now - path.stat().st_mtime >= older_than:
                path.unlink()
        except OSError:  # another process was faster, or the folder is read-only: no harm done
            continue


def check_output(
    folder: Path, option: str = "--out", *, way_out: str = "name a folder that can be written"
) -> None:
    """Refuse a folder for results that cannot be made or written, before anything is computed.

    Nothing is left behind: the test is a nameless file in the folder, or in the nearest folder
    above that is there.

    Args:
        folder: need not be there.
        option: what the user named it by.
        way_out: what to do if there is no permission.

    Raises:
        OutputError: with what to do.
        StorageError: if the disk is full already.
    """
    try:
        place = _nearest(folder)
        if place.is_dir():
            with suppress(FileNotFoundError):
                folder.stat()  # lets the system refuse a name that is too long
            with tempfile.TemporaryFile(dir=place):
                return
    except OSError as error:
        problem = f"{option} {folder} cannot be written: {reason_of(error)}"
        if error.errno in _FULL:
            raise StorageError(problem, "make space on it, or name a folder elsewhere") from error
        raise OutputError(f"{problem}; {way_out}") from error
    except ValueError as error:  # a null character in the name
        raise OutputError(f"{option} {str(folder)!r} is no name of a folder: {error}") from error
    what = f"{option} {place} is {'a file' if place.is_file() else 'no folder'}"
    within = "" if place == folder else f", so {folder} cannot be made"
    raise OutputError(f"{what}{within}; name a folder for the results")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest place above it that is there."""
    place = folder
    while not os.path.lexists(place) and place.parent != place:
        place = place.parent
    return place
