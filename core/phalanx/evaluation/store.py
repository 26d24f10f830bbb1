"""Finished cells on disk: one safetensors file each, named by the cell's content key.

A file is whole or absent, so an interrupted evaluation loses its running cell only, and a repeated
one computes nothing. Nothing is pickled: bits are a tensor, all else JSON in the file's header.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from phalanx.errors import ArtifactError, PhalanxWarning
from phalanx.evaluation.cell import Cell, Outcome
from phalanx.storage import remove_parts
from phalanx.training.files import read_tensors, write_tensors

_BITS = "bits"
_ABANDONED = 3600.0
"""Seconds after which an unfinished file is nobody's: several evaluations may share a folder."""


class CellStore:
    """Outcomes by cell.

    Args:
        folder: where the files are (``DIR/cells``); None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            remove_parts(folder, older_than=_ABANDONED)

    def path(self, cell: Cell) -> Path | None:
        """The cell's file, there or not."""
        return None if self.folder is None else self.folder / f"{cell.key}.safetensors"

    def get(self, cell: Cell) -> Outcome | None:
        """The stored outcome, or None; a damaged file counts as none, with a warning."""
        path = self.path(cell)
        if path is None or not path.exists():
            return None
        try:
            return _read(path, cell)
        except ArtifactError as error:
            warnings.warn(f"{error}; the cell is computed again", PhalanxWarning, stacklevel=2)
            return None

    def put(self, cell: Cell, outcome: Outcome) -> None:
        """Store a finished cell, atomically.

        Raises:
            StorageError: if the disk is full; the cells before are kept.
        """
        path = self.path(cell)
        if path is None:
            return
        facts = {f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name != _BITS}
        header = {
            "cell": json.dumps(asdict(cell), sort_keys=True),
            "outcome": json.dumps(facts, sort_keys=True),
            "sha256": _digest(outcome.bits),
        }
        write_tensors(path, {_BITS: outcome.bits}, header)


def _read(path: Path, cell: Cell) -> Outcome:
    tensors, header = read_tensors(path)
    try:
        bits, facts = tensors[_BITS], json.loads(header["outcome"])
        same = json.loads(header["cell"]) == asdict(cell) and header["sha256"] == _digest(bits)
        if not (same and bits.dtype == torch.uint8 and bits.shape[1:] == (cell.rows,)):
            raise ArtifactError(f"{path} is not what was stored there")
        return Outcome(bits=bits, **facts)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is damaged: {error!r}") from error


def _digest(bits: Tensor) -> str:
    return hashlib.sha256(save({_BITS: bits.contiguous()})).hexdigest()
