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

from phalanx.errors import ArtifactError, TrainingError
from phalanx.specs import Spec
from phalanx.training.files import (
    has_nan,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)


class Initial(Spec):
    """What a run with a warm start began with: the whole model, kept in the run folder."""

    file: str
    sha256: str


class Best(Spec):
    """The best epoch so far of the phase that runs, counted from 1: its part of the model."""

    phase: str
    epoch: int
    value: float
    file: str
    sha256: str


class Selected(Spec):
    """Which epoch of a finished phase was kept, and what that gained on the held-out images."""

    by: str
    best: float
    epoch: int
    last: float
    gap: float


class Slice(Spec):
    """A finished phase: its part of the model, and what it cost."""

    phase: str
    file: str
    sha256: str
    log_bytes: int
    forwards: int
    backwards: int
    examples: int
    selected: Selected | None = None


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
    best: Best | None = None
    initial: Initial | None = None


class Checkpoints:
    """Reads and writes the state of one run folder."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder = folder
        self.state = state
        self._newer: Best | None = None  # than that of the state, which the next checkpoint names

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

    def begin(self, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
        """Keep what the run begins with: the sources may move, the run can still be gone on with.

        Args:
            tensors: the whole model's.
            header: what else a resume needs to know.
        """
        file = "phases/00-init.safetensors"
        digest = write_tensors(self.folder / file, tensors, header)
        self._replace(initial=Initial(file=file, sha256=digest))

    def load_initial(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What `begin` kept; None if the run has not begun so.

        Raises:
            ArtifactError: if it is missing or damaged.
        """
        kept = self.state.initial
        return None if kept is None else read_tensors(self.folder / kept.file, kept.sha256)

    def save(self, tensors: Mapping[str, Tensor], **position: Any) -> None:
        """Write a checkpoint of the running phase and drop the one before.

        Raises:
            TrainingError: if a weight is not finite; the checkpoint before stands.
            StorageError: if the disk is full; the checkpoint before stands.
        """
        _check_finite(tensors, str(position["phase"]))
        file = _other("checkpoint", self.state.running)
        digest = write_tensors(self.folder / file, tensors)
        best = self.best_of(str(position["phase"]))
        self._replace(running=Position(file=file, sha256=digest, **position), best=best)
        self._newer = None
        self._remove_unnamed()

    def keep_best(
        self, tensors: Mapping[str, Tensor], *, phase: str, epoch: int, value: float
    ) -> None:
        """Write the best epoch so far of the running phase.

        The state names it from the next checkpoint on, and the one before until then: an epoch
        that is trained again knows no later one. Errors as `save`.
        """
        _check_finite(tensors, phase)
        file = _other("best", self.state.best)
        digest = write_tensors(self.folder / file, tensors)
        self._newer = Best(phase=phase, epoch=epoch, value=value, file=file, sha256=digest)

    def best_of(self, phase: str) -> Best | None:
        """The best epoch so far of a phase, if one is kept."""
        best = self._newer or self.state.best
        return best if best is not None and best.phase == phase else None

    def load_best(self, best: Best) -> dict[str, Tensor]:
        """The weights of the best epoch.

        Raises:
            ArtifactError: if they are missing or damaged, with the way out.
        """
        try:
            return read_tensors(self.folder / best.file, best.sha256)[0]
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {_anew(best.phase)}") from error

    def finish(
        self,
        phase: str,
        tensors: Mapping[str, Tensor],
        *,
        selected: Selected | None = None,
        **cost: int,
    ) -> None:
        """Write a finished phase's slice; what is kept of its run is dropped. Errors as `save`."""
        _check_finite(tensors, phase)
        file = f"phases/{len(self.state.finished) + 1:02d}-{phase.replace('/', '-')}.safetensors"
        digest = write_tensors(self.folder / file, tensors, pack=True)
        done = Slice(phase=phase, file=file, sha256=digest, selected=selected, **cost)
        self._forget(finished=(*self.state.finished, done))

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
            raise ArtifactError(f"{error}; {_anew(phase)}") from error
        return position, tensors

    def drop_running(self) -> None:
        """Forget the running phase's checkpoint and its best epoch."""
        self._forget()

    def load_slice(self, done: Slice) -> dict[str, Tensor]:
        """A finished phase's part of the model.

        Raises:
            ArtifactError: if it is missing or damaged.
        """
        tensors, _ = read_tensors(self.folder / done.file, done.sha256)
        return tensors

    def _forget(self, **changes: Any) -> None:
        """The state without what is kept of the running phase, and the files of it removed."""
        self._replace(running=None, best=None, **changes)
        self._newer = None
        self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        """Remove what the running phase left behind, but for what the state names."""
        named = {one.file for one in (self.state.running, self.state.best) if one is not None}
        for file in (
            f"{kind}-{flip}.safetensors" for kind in ("checkpoint", "best") for flip in "ab"
        ):
            if file not in named:
                (self.folder / file).unlink(missing_ok=True)

    def _replace(self, **changes: Any) -> None:
        state = self.state.model_copy(update=changes)
        write_json(self.folder / "state.json", state.model_dump(mode="json"))
        self.state = state


def _other(kind: str, old: Position | Best | None) -> str:
    """The one of two files that does not hold what the state names."""
    flip = "b" if old is not None and old.file == f"{kind}-a.safetensors" else "a"
    return f"{kind}-{flip}.safetensors"


def _anew(phase: str) -> str:
    return (
        "or run `phalanx train … --resume --restart-phase`, which begins phase "
        f"{phase!r} anew from the phases that are finished"
    )


def _check_finite(tensors: Mapping[str, Tensor], phase: str) -> None:
    """Refuse to keep weights that are NaN, which a finite loss can still leave behind."""
    logged = "metric/"  # sums for the log, where a share of nothing may be NaN
    broken = [k for k, value in tensors.items() if not k.startswith(logged) and has_nan(value)]
    if broken:
        raise TrainingError(
            f"phase {phase!r} has diverged: {len(broken)} of its tensors hold NaN, such as "
            f"{broken[0]}; the checkpoint before is kept. Train into another --out with a lower "
            "training.optimizer lr, or a clip_grad"
        )
