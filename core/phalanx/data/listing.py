"""What lies in a folder of photos: its parts, its classes and its image files.

The layout is that of torchvision's ImageFolder: ``train/<class>/*`` and ``test/<class>/*`` (or
``val``); where both ``test`` and ``val`` are there, ``val`` is the validation part. Classes are
folders sorted by name; images may lie deeper. Other files, hidden ones, and links that lead back
to a folder above them are left aside.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from phalanx import randomness
from phalanx.data.decode import EXTENSIONS
from phalanx.errors import DataError

PartName = Literal["train", "validation", "test"]

_VALIDATION = ("val", "valid", "validation")
_LAYOUT = "lay it out as {root}/train/<class>/*.jpg and {root}/test/<class>/*.jpg (or val)"


class Names:
    """Many file names in little memory: one block of bytes, which forked processes share."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        blob, self._ends = bytearray(), array("q", [0])
        for name in names:
            blob += os.fsencode(name)
            self._ends.append(len(blob))
        self._blob = bytes(blob)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(self._blob[self._ends[row] : self._ends[row + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def digest(self) -> str:
        """SHA-256 of the names in their order."""
        return hashlib.sha256(self._blob + self._ends.tobytes()).hexdigest()


@dataclass(frozen=True)
class Part:
    """The image files of one part of a folder.

    Attributes:
        root: the part's own folder.
        classes: names of its classes.
        names: of the files, relative to `root`.
        labels: ``(N,)`` int64, indices into `classes`.
    """

    root: Path
    classes: tuple[str, ...]
    names: Names
    labels: Tensor

    def path(self, row: int) -> str:
        """Where a file lies."""
        return str(self.root / self.names[row])

    @property
    def digest(self) -> str:
        """SHA-256 of the names of classes and files; contents do not enter."""
        return hashlib.sha256(
            "/".join((*self.classes, self.names.digest())).encode(errors="surrogateescape")
        ).hexdigest()


def training_parts(root: Path) -> dict[PartName, Part]:
    """The parts of a folder to train on, all with the same classes.

    Raises:
        DataError: if the folder is not laid out so, or its parts' classes differ.
    """
    folders = _folders(root)
    if "train" not in folders or "test" not in folders:
        missing = "train" if "train" not in folders else "test or val"
        hint = _LAYOUT.format(root=root)
        raise DataError(f"{root} has no folder {missing}, so it cannot be trained on; {hint}")
    parts: dict[PartName, Part] = {"train": _part(folders["train"], ordered="name")}
    for name in ("validation", "test"):
        if name in folders:
            parts[name] = _part(folders[name], ordered="hash")
            check_classes(parts[name], parts["train"].classes, of=str(folders["train"]))
    return parts


def evaluation_part(root: Path) -> Part:
    """The images of a folder to evaluate on: its ``test`` or ``val``, else ``<class>/*`` in it.

    Raises:
        DataError: if there are no two classes of images.
    """
    return _part(_folders(root).get("test", root), ordered="hash")


def check_classes(part: Part, classes: Sequence[str], *, of: str) -> None:
    """Refuse a part whose classes are not these.

    Raises:
        DataError: with the classes that only one of both has.
    """
    strange = [name for name in part.classes if name not in classes]
    missing = [name for name in classes if name not in part.classes]
    told = [
        *([f"{part.root} has {_few(strange)}, which {of} lacks"] if strange else []),
        *([f"{part.root} lacks {_few(missing)} of {of}"] if missing else []),
    ]
    if told:
        raise DataError(
            f"the classes differ: {'; '.join(told)}. Give every part the same class folders"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more


def _folders(root: Path) -> dict[PartName, Path]:
    """Where each part lies; {} for a folder without parts."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"the folder of photos {root} {what}; name it by --data-root or [data] root"
        )
    found: dict[PartName, Path] = {}
    held_out = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        found["train"] = root / "train"
    if (root / "test").is_dir():
        found["test"] = root / "test"
        if held_out is not None:
            found["validation"] = held_out
    elif held_out is not None:
        found["test"] = held_out
    return found


def _part(folder: Path, *, ordered: Literal["name", "hash"]) -> Part:
    """A part's files, by class and name, or in a fixed random order.

    An evaluation takes the first N images, which by name would be of one class; a hash of the
    name gives an order that stays when files come or go.
    """
    classes = tuple(
        entry.name for entry in _entries(folder) if not _hidden(entry.name) and _is_folder(entry)
    )
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        hint = _LAYOUT.format(root=folder.parent)
        raise DataError(f"{folder} needs at least two class folders, found {found}; {hint}")
    rows: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(classes):
        before = len(rows)
        rows.extend((found, label) for found in _files(folder, name))
        if len(rows) == before:
            empty.append(name)
    if empty:
        raise DataError(
            f"{folder} has no images of class {_few(empty)}; add some (files that end in "
            f"{', '.join(EXTENSIONS)}), or remove the folder"
        )
    if ordered == "hash":
        rows.sort(key=lambda row: (randomness.key("folder", _text(row[0])), row[0]))
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return Part(folder, classes, Names(name for name, _ in rows), labels)


def _text(name: str) -> str:
    """A name that any hash takes; names on disk need not be Unicode."""
    return name.encode(errors="backslashreplace").decode()


def _files(folder: Path, name: str) -> list[str]:
    """Names of the image files below a class folder, relative to `folder`, sorted."""
    found: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(name, frozenset())]
    while waiting:
        relative, above = waiting.pop()
        here = (folder / relative).stat()
        place = (here.st_dev, here.st_ino)
        if place in above:
            continue  # a link that leads back to a folder above it
        for entry in _entries(folder / relative):
            inner = f"{relative}/{entry.name}"
            if _hidden(entry.name):
                continue
            if _is_folder(entry):
                waiting.append((inner, above | {place}))
            elif entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                found.append(inner)
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error


def _hidden(name: str) -> bool:
    """Folders of tools (.git) and macOS's companions of images (._cat.jpg) are no photos."""
    return name.startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A broken link counts, so that it is told as an unreadable file; a pipe does not."""
    return entry.is_symlink() or entry.is_file()
