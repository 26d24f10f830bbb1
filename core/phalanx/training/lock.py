"""One process at a time in a run folder.

The lock is the system's (``flock``) on a hidden file in the folder, so it ends with its process,
however that ends. A system or a file system without such locks goes without.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phalanx.errors import OutputError
from phalanx.storage import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

LOCK = ".lock"
"""The file's name; it holds the number of the process."""

_SECONDS = 5.0
"""How long to wait for a lock whose owner was killed: its decoding workers, which inherited it, end
a moment after it."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` if it is not there, and keep other processes out of it inside.

    Folders made here are removed again if they are still empty at the end.

    Raises:
        OutputError: if another process trains in it.
        StorageError: if the folder cannot be made or written.
    """
    with writing(folder):
        made = _make(folder)
    try:
        with writing(folder / LOCK):
            handle = _take(folder / LOCK)
        try:
            yield
        finally:
            with suppress(OSError):  # a disk that has gone read-only keeps a harmless file
                (folder / LOCK).unlink()
            os.close(handle)
    finally:
        with suppress(OSError):  # not empty: results lie there
            for one in made:
                one.rmdir()


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from what `path` stands for inside; the file is removed afterwards.

    Raises:
        OutputError: at once, if another process has it.
        StorageError: if the file cannot be made.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(path, wait=0.0)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _make(folder: Path) -> list[Path]:
    """Make the folder and those above it; the ones that were not there, the innermost first."""
    made = []
    place = folder
    while not place.exists():
        made.append(place)
        place = place.parent
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _take(path: Path, *, wait: float = _SECONDS) -> int:
    """The locked file's handle."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, path, wait)
            if _is_still(handle, path):
                with suppress(OSError):  # a full disk: the number is for messages only
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it between our opening and our locking it


def _lock(handle: int, path: Path, wait: float) -> None:
    if fcntl is None:
        return
    late = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            if _is_gone(owner) and time.monotonic() < late:
                time.sleep(0.02)
                continue
            by = f"process {owner}" if owner else "another process"
            raise OutputError(
                f"{path.parent} is being trained by {by}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return


def _is_gone(owner: str) -> bool:
    """Whether a process has ended, as far as this machine can tell."""
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # of another user; no number yet
        return False
    return False


def _is_still(handle: int, path: Path) -> bool:
    """Whether the path still names the file that was locked."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
