"""Which files of a folder of photos cannot be read, and what a run remembers of the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

from phalanx.data.decode import Unreadable, check_header, check_whole
from phalanx.data.listing import Part, PartName
from phalanx.data.workers import worked
from phalanx.errors import DataError
from phalanx.specs import Spec

_PIECE = 64
"""Files that a worker looks at, at a time."""
_NAMED = 5
"""Unreadable files that a message names."""
_LISTED = 50
"""Unreadable files that a report names."""
_TRAINED: tuple[PartName, ...] = ("train", "validation")
"""Parts that decide a run's weights."""

Depth = Literal["headers", "whole"]
Told = Callable[[int, int], None]


class PartRecord(Spec):
    """What a check of one part's files came to.

    Attributes:
        files: how many image files there are, the unreadable among them.
        digest: SHA-256 of the names of classes and files.
        checked: ``headers``, or ``whole`` where every file was decoded.
        unreadable: names relative to the folder, each with its reason.
    """

    files: int
    digest: str
    checked: Depth
    unreadable: tuple[Unreadable, ...] = ()

    def text(self) -> str:
        """The unreadable files in words; '' if there are none."""
        if not self.unreadable:
            return ""
        named = ", ".join(f"{one.file} ({one.reason})" for one in self.unreadable[:_LISTED])
        more = ", …" if len(self.unreadable) > _LISTED else ""
        return f"{len(self.unreadable)} of {self.files} files: {named}{more}"


class FolderRecord(Spec):
    """What a folder held: kept by a run, so that it is never gone on with on another one."""

    parts: dict[PartName, PartRecord]

    def text(self) -> str:
        """The files that were left out, part by part; '' if there are none."""
        texts = {name: part.text() for name, part in self.parts.items()}
        return "; ".join(f"{name}: {text}" for name, text in texts.items() if text)


def refused(files: Sequence[Unreadable]) -> DataError:
    """The error that names files that cannot be read."""
    named = [f"{one.file} cannot be read as an image ({one.reason})" for one in files[:_NAMED]]
    more = f"; and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    them, such, copy = ("it", "such files", "a whole copy")
    if len(files) > 1:
        them, such, copy = "them", "them", "whole copies"
    return DataError(
        f"{'; '.join(named)}{more}. Put {copy} in, remove {them}, or skip {such} with "
        "--skip-unreadable ([data] skip_unreadable = true)"
    )


def check_unchanged(root: Path, parts: Mapping[PartName, Part], known: FolderRecord) -> None:
    """Refuse other training images than those of a record: its rows would name others.

    Raises:
        DataError: with what has changed.
    """
    for name in _TRAINED:
        here, then = parts.get(name), known.parts.get(name)
        if (here and here.digest) != (then and then.digest):
            before = 0 if then is None else then.files
            now = 0 if here is None else len(here.names)
            renamed = ", of other names or classes" if before == now else ""
            raise DataError(
                f"{root} has changed since the run began: it had {before} {name} images, now it "
                f"has {now}{renamed}. Put the files back to go on, or begin a new run in another "
                "folder (--out)"
            )


def check_files(
    parts: Mapping[PartName, Part],
    *,
    skip: bool,
    workers: int,
    told: Told,
    known: FolderRecord | None = None,
) -> FolderRecord:
    """Look at every file: at its beginning and end, or, to skip unreadable ones, at all of it.

    Args:
        parts: of a folder.
        skip: unreadable files are left out and recorded, instead of refused.
        workers: processes that look; 0 for none.
        told: how many files of how many are done.
        known: what an earlier check found; its parts are not looked at again.

    Raises:
        DataError: naming unreadable files, if they are not to be skipped; or if they are not those
            that `known` leaves out.
    """
    depth: Depth = "whole" if skip else "headers"
    found: dict[PartName, PartRecord] = {}
    for name, part in parts.items():
        before = known.parts.get(name) if known is not None else None
        record = before
        if record is None or record.digest != part.digest or (skip and record.checked != depth):
            record = PartRecord(
                files=len(part.names),
                digest=part.digest,
                checked=depth,
                unreadable=_unreadable(part, depth, workers=workers, told=told),
            )
        if record.unreadable and not skip:
            raise refused(
                [
                    Unreadable(file=str(part.root / one.file), reason=one.reason)
                    for one in record.unreadable
                ]
            )
        if before is not None and name in _TRAINED and _left_out(before) != _left_out(record):
            raise DataError(
                f"{part.root}: the run began with all its files, and now some would be left out "
                f"({record.text()}), which makes it another run. Put whole copies in and go on "
                "without --skip-unreadable, or begin a new run in another folder (--out)"
            )
        found[name] = record
    return FolderRecord(parts=found)


def _left_out(record: PartRecord) -> set[str]:
    return {one.file for one in record.unreadable}


def _unreadable(part: Part, depth: Depth, *, workers: int, told: Told) -> tuple[Unreadable, ...]:
    """The files of a part that cannot be read, by their names in it."""
    count = len(part.names)
    bad: list[Unreadable] = []
    done = 0
    pieces = (list(range(at, min(at + _PIECE, count))) for at in range(0, count, _PIECE))
    with closing(worked(partial(_look_at, part, depth), pieces, workers=workers)) as looked:
        for found in looked:
            bad += found
            done = min(done + _PIECE, count)
            told(done, count)
    return tuple(bad)


def _look_at(part: Part, depth: Depth, rows: list[int]) -> list[Unreadable]:
    look = check_whole if depth == "whole" else check_header
    found = ((row, look(part.path(row))) for row in rows)
    return [Unreadable(file=part.names[row], reason=one.reason) for row, one in found if one]
