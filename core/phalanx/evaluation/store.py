"""Finished blocks on disk: one safetensors file each, named by the block's content key.

A file is whole or absent, so an interrupted evaluation loses its running block only, and a repeated
one computes nothing. Nothing is pickled: bits are a tensor, all else JSON in the file's header.

Several processes may share a folder. Each claims a block before it computes it, by a lock of the
system on a hidden file, which ends with its process however that ends.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from phalanx.errors import ArtifactError, OutputError, PhalanxWarning
from phalanx.evaluation.cell import Block, Outcome
from phalanx.evaluation.scoring import shares
from phalanx.storage import remove_parts
from phalanx.training.files import read_tensors, write_tensors
from phalanx.training.lock import claimed

_BITS = "bits"
SAMPLE = 16
"""Examples of a cell's first block that are kept for a report's pictures, of those that fooled."""
EXAMPLES = "examples"
"""Folder of kept examples, beside that of the blocks."""
SAMPLES = "samples"
"""Likewise, of the few that a report shows."""
_ABANDONED = 3600.0
"""Seconds after which an unfinished file is nobody's: several evaluations may share a folder."""


class BlockStore:
    """Outcomes by block, and the examples of blocks where they are kept.

    Args:
        folder: where the files are (``DIR/cells``); None keeps them in memory.
        keeps_examples: write adversarial images too, to ``DIR/examples``.
    """

    def __init__(self, folder: Path | None, *, keeps_examples: bool = False) -> None:
        self.folder = folder
        self.keeps_examples = keeps_examples and folder is not None
        self._found: dict[str, Outcome] = {}
        self._samples: dict[str, dict[str, Tensor]] = {}
        if folder is not None:
            for place in (folder, folder.parent / EXAMPLES, folder.parent / SAMPLES):
                remove_parts(place, older_than=_ABANDONED)

    def path(self, block: Block) -> Path | None:
        """The block's file, there or not."""
        return None if self.folder is None else self.folder / f"{block.key}.safetensors"

    def get(self, block: Block) -> Outcome | None:
        """The stored outcome, or None; a damaged file counts as none, with a warning."""
        key = block.key
        if key in self._found:
            return self._found[key]
        path = self.path(block)
        if path is None or not path.exists():
            return None
        try:
            self._found[key] = _read(path, block)
        except ArtifactError as error:
            warnings.warn(f"{error}; the block is computed again", PhalanxWarning, stacklevel=2)
            return None
        return self._found[key]

    def put(self, block: Block, outcome: Outcome) -> None:
        """Store a finished block, atomically.

        Raises:
            StorageError: if the disk is full; the blocks before are kept.
        """
        path = self.path(block)
        if path is not None:
            facts = {f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name != _BITS}
            header = {
                "block": json.dumps(asdict(block), sort_keys=True),
                "outcome": json.dumps(facts, sort_keys=True),
                "sha256": digest_of_tensors({_BITS: outcome.bits}),
            }
            write_tensors(path, {_BITS: outcome.bits}, header)
        self._found[block.key] = outcome

    @contextmanager
    def claim(self, block: Block) -> Iterator[bool]:
        """Whether this process may compute a block; nobody else may inside."""
        if self.folder is None:
            yield True
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(claimed(self.folder / f".{block.key}.claim"))
            except OutputError:
                free = False
            else:
                free = True
            yield free

    def keep(self, block: Block, examples: Tensor) -> None:
        """Write a block's adversarial images ``(n, C, H, W)``, if they are to be kept."""
        path = self._examples(block)
        if self.keeps_examples and path is not None:
            rows = torch.arange(block.first, block.first + block.rows)
            tensors = {"images": examples.float(), "rows": rows}
            header = {"block": json.dumps(asdict(block), sort_keys=True)}
            write_tensors(path, tensors, {**header, "sha256": digest_of_tensors(tensors)})

    def lacks_examples(self, block: Block) -> bool:
        """Whether a block's adversarial images are to be kept and are not there."""
        path = self._examples(block)
        return self.keeps_examples and path is not None and not path.exists()

    def sample(self, block: Block, examples: Tensor, bits: Tensor) -> None:
        """Keep the first images of a cell's first block that most draws get wrong, for pictures."""
        if block.first:
            return
        rows = (shares(bits) <= 0.5).nonzero().squeeze(1)[:SAMPLE]
        self._samples[block.key] = {"images": examples[rows].float().clone(), "rows": rows}
        if self.folder is not None:
            path = self.folder.parent / SAMPLES / f"{block.key}.safetensors"
            write_tensors(path, self._samples[block.key])

    def sampled(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Images ``(n, C, H, W)`` that `sample` kept and their rows; None if none, or damaged."""
        if block.key not in self._samples and self.folder is not None:
            path = self.folder.parent / SAMPLES / f"{block.key}.safetensors"
            with suppress(ArtifactError):
                self._samples[block.key] = read_tensors(path)[0]
        found = self._samples.get(block.key, {})
        return (found["images"], found["rows"]) if found.keys() >= {"images", "rows"} else None

    def kept(self, block: Block) -> Tensor | None:
        """A block's adversarial images, if they were kept and are whole."""
        path = self._examples(block)
        if path is None or not path.exists():
            return None
        try:
            tensors, header = read_tensors(path)
        except ArtifactError as error:
            warnings.warn(f"{error}; the examples are made again", PhalanxWarning, stacklevel=2)
            return None
        same = header.get("sha256") == digest_of_tensors(tensors)
        same &= json.loads(header.get("block", "null")) == asdict(block)
        return tensors["images"] if same else None

    def _examples(self, block: Block) -> Path | None:
        if self.folder is None:
            return None
        return self.folder.parent / EXAMPLES / f"{block.key}.safetensors"


def _read(path: Path, block: Block) -> Outcome:
    tensors, header = read_tensors(path)
    try:
        bits, facts = tensors[_BITS], json.loads(header["outcome"])
        same = json.loads(header["block"]) == asdict(block)
        same &= header["sha256"] == digest_of_tensors({_BITS: bits})
        if not (same and bits.dtype == torch.uint8 and bits.shape[1:] == (block.rows,)):
            raise ArtifactError(f"{path} is not what was stored there")
        return Outcome(bits=bits, **facts)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is damaged: {error!r}") from error


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors by name, as headers of blocks and examples have it."""
    return hashlib.sha256(save({k: v.contiguous() for k, v in tensors.items()})).hexdigest()
