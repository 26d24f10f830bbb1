"""What a run leaves on disk while it trains, so that it can be killed at any moment.

``state.json`` is the one file that says where the run stands: the finished phases with their
slices, and the checkpoint of the phase that runs, each with its SHA-256. It is replaced
atomically after the tensors that it names are on disk, so it never names a file that is not whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from phalanx.errors import ArtifactError
from phalanx.specs import Spec
from phalanx.training.files import read_json, read_tensors, write_json, write_tensors


class Slice(Spec):
    """A finished phase: its part of the model, and what it cost."""

    phase: str
    file: str
    sha256: str
    log_bytes: int
    forwards: int
    backwards: int
    examples: int


class Position(Spec):
    """Where the running phase stands: `index` batches of `epoch` are done."""

    phase: str
    epoch: int
    index: int
    file: str
    sha256: str
    log_bytes: int
    forwards: int
    backwards: int
    examples: int


class State(Spec):
    """The whole of ``state.json``."""

    config_hash: str
    threads: int
    finished: tuple[Slice, ...] = ()
    running: Position | None = None


class Checkpoints:
    """Reads and writes the state of one run folder."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder = folder
        self.state = state

    @classmethod
    def open(cls, folder: Path, *, config_hash: str, threads: int) -> Checkpoints:
        """The state of a run folder, or a fresh one where there is none.

        Raises:
            ArtifactError: if the folder holds another config's run, one at another number of
                threads, or is damaged.
        """
        path = folder / "state.json"
        if not path.exists():
            return cls(folder, State(config_hash=config_hash, threads=threads))
        try:
            state = State.model_validate(read_json(path))
        except ValidationError as error:
            raise ArtifactError(
                f"{path} is damaged ({error.error_count()} wrong fields); restore it from a copy"
            ) from error
        if state.config_hash != config_hash:
            raise ArtifactError(
                f"{folder} holds a run of another config ({state.config_hash}; asked for: "
                f"{config_hash}); choose another --out, or train with that run's config.json"
            )
        if state.threads != threads:
            raise ArtifactError(
                f"{folder} was trained with {state.threads} threads, asked for: {threads}; weights "
                f"are reproducible only at the same number: set training.threads={state.threads}"
            )
        return cls(folder, state)

    def mark(self) -> None:
        """Write the state as it is, so that the folder is this run's from its first moment."""
        self._replace()

    def save(self, tensors: Mapping[str, Tensor], **position: Any) -> None:
        """Write a checkpoint of the running phase and drop the one before."""
        old = self.state.running
        flip = "b" if old is not None and old.file == "checkpoint-a.safetensors" else "a"
        file = f"checkpoint-{flip}.safetensors"
        digest = write_tensors(self.folder / file, tensors)
        self._replace(running=Position(file=file, sha256=digest, **position))
        if old is not None and old.file != file:
            (self.folder / old.file).unlink(missing_ok=True)

    def finish(self, phase: str, tensors: Mapping[str, Tensor], **cost: int) -> None:
        """Write a finished phase's slice; the phase's checkpoint is dropped."""
        file = f"phases/{len(self.state.finished) + 1:02d}-{phase.replace('/', '-')}.safetensors"
        digest = write_tensors(self.folder / file, tensors)
        old = self.state.running
        done = Slice(phase=phase, file=file, sha256=digest, **cost)
        self._replace(finished=(*self.state.finished, done), running=None)
        if old is not None:
            (self.folder / old.file).unlink(missing_ok=True)

    def load_running(self, phase: str) -> tuple[Position, dict[str, Tensor]] | None:
        """The checkpoint of `phase`, or None if it has not begun.

        Raises:
            ArtifactError: if the checkpoint is missing or damaged, with the way out.
        """
        position = self.state.running
        if position is None or position.phase != phase:
            return None
        try:
            tensors, _ = read_tensors(self.folder / position.file, position.sha256)
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}; or run `phalanx train … --resume --restart-phase`, which begins phase "
                f"{phase!r} anew from the phases that are finished"
            ) from error
        return position, tensors

    def drop_running(self) -> None:
        """Forget the running phase's checkpoint."""
        self._replace(running=None)

    def load_slice(self, done: Slice) -> dict[str, Tensor]:
        """A finished phase's part of the model.

        Raises:
            ArtifactError: if it is missing or damaged.
        """
        tensors, _ = read_tensors(self.folder / done.file, done.sha256)
        return tensors

    def _replace(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)
        write_json(self.folder / "state.json", self.state.model_dump(mode="json"))
