"""Trains a config into a run folder, from the beginning or from where it was stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from phalanx.config import FOLDER, RunConfig
from phalanx.data.checks import Told
from phalanx.defense import DefendedModel
from phalanx.errors import ArtifactError
from phalanx.phase import Phase
from phalanx.registry import default_registry
from phalanx.runfile import config_hash, read_run
from phalanx.specs import Task
from phalanx.storage import check_output, keeping, remove_parts
from phalanx.training.artifacts import (
    MANIFEST,
    Run,
    count_parameters,
    open_run,
    read_metrics,
    write_weights,
)
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.files import write_json
from phalanx.training.init import starting
from phalanx.training.inputs import ignore, keep_record, training_data
from phalanx.training.lock import locked
from phalanx.training.pinning import pinned, public
from phalanx.training.plan import planned
from phalanx.training.trainer import Progress, Settings, Stopped, Trainer

__all__ = ["Run", "train"]


class _Silent:
    """Shows nothing."""

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        pass

    def batch_finished(self, phase: str) -> None:
        pass

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        pass


def train(
    config: RunConfig | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    resume: bool = False,
    data_root: Path | str | None = None,
    download: bool = False,
    time_budget: float | None = None,
    checkpoint_seconds: float = 60.0,
    restart_phase: bool = False,
    progress: Progress | None = None,
    told: Told | None = None,
) -> Run:
    """Train a defense and leave a run folder.

    Args:
        config: a run file's path, its content as a mapping, or a `RunConfig`.
        out: the run folder; made if it is not there.
        resume: go on with the run that `out` holds (or begin, if it holds none).
        data_root: where the data sets are; absent: ``$PHALANX_DATA`` or the user's cache. Of a
            folder of photos: the folder; absent: the config's ``data.root``.
        download: fetch the data set if it is not there.
        time_budget: stop at a checkpoint after so many seconds; epochs and schedule stay.
        checkpoint_seconds: least time between two checkpoints.
        restart_phase: with `resume`, begin the running phase anew (its checkpoint is damaged).
        progress: sees batches and epochs.
        told: how many files of how many of a folder of photos are checked.

    Returns:
        The run; `finished` is False if the time budget ended it.

    Raises:
        ConfigError: if the config has problems; all are told at once.
        DataError: if the data set is missing.
        ArtifactError: if `out` holds another run, or a damaged one.
        OutputError: if `out` cannot be written, or another process trains there.
        TrainingError: if the loss is not finite.
        StorageError: if the disk is full; what was written before is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    folder = Path(out)
    config = read_run(config)
    if data_root is not None and config.data.use == FOLDER:  # a run remembers where its photos are
        data = config.data.model_copy(update={"root": str(data_root)})
        config = config.model_copy(update={"data": data})
    go = partial(
        _train,
        config,
        folder,
        resume=resume,
        data_root=data_root,
        download=download,
        time_budget=time_budget,
        checkpoint_seconds=checkpoint_seconds,
        restart_phase=restart_phase,
        progress=progress or _Silent(),
        told=told or ignore,
    )
    if _is_finished(folder):  # nothing will be written: it may lie on a read-only disk
        return go()
    check_output(folder)
    kept = f"what {folder} holds is kept: make space, then go on with --resume"
    with keeping(kept), locked(folder):
        remove_parts(folder)
        remove_parts(folder / "phases")
        return go()


def _train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    data_root: Path | str | None,
    download: bool,
    time_budget: float | None,
    checkpoint_seconds: float,
    restart_phase: bool,
    progress: Progress,
    told: Told,
) -> Run:
    """See `train`; nobody else writes in `folder` meanwhile."""
    config = pinned(config, folder)
    digest = config_hash(config)
    _check_folder(folder, resume=resume)
    checkpoints = Checkpoints.open(folder, config_hash=digest, threads=config.training.threads)
    if (folder / MANIFEST).exists():
        return open_run(folder)
    root = None if data_root is None else Path(data_root)
    data = training_data(config, folder, root=root, download=download, told=told)
    with _threads(config.training.threads), _interruptible() as interrupted:
        start = starting(config, data.task, checkpoints)
        model, data = start.model, replace(data, task=start.task)
        phases = planned(
            _phases(config, data.task, model),
            config.training,
            model,
            held_out=len(data.validation),
        )
        checkpoints.mark()  # first: a folder with a config alone could not be gone on with
        write_json(folder / "config.json", config.model_dump(mode="json"))
        keep_record(data, folder)
        start.keep(checkpoints)
        started = time.monotonic()

        def should_stop() -> bool:
            late = time_budget is not None and time.monotonic() - started >= time_budget
            return late or interrupted()

        settings = Settings(
            seed=config.seed,
            precision=config.training.precision,
            checkpoint_seconds=checkpoint_seconds,
            should_stop=should_stop,
            restart_phase=restart_phase,
        )
        observer = _Observed(
            progress,
            {
                "defense": config.defense.use,
                "data": config.data.use,
                "config_hash": digest,
                "out": str(folder),
            },
        )
        trainer = Trainer(
            model,
            data,
            folder=folder,
            checkpoints=checkpoints,
            settings=settings,
            progress=observer,
        )
        default_registry().notify("phalanx_run_started", run=observer.run)
        try:
            trainer.run(phases)
        except Stopped:
            if interrupted():
                raise KeyboardInterrupt from None
            return Run(
                folder,
                config,
                data.task,
                model.eval(),
                "",
                finished=False,
                metrics=read_metrics(folder),
            )
        model = model.cpu()
        facts: dict[str, Any] = {
            "parameters": count_parameters(model),
            "phases": [
                done.model_dump(exclude={"log_bytes"}, exclude_none=True)
                for done in checkpoints.state.finished
            ],
            **start.facts,
        }
        if data.folder is not None:
            facts["data"] = data.folder.model_dump(mode="json")
        weights = write_weights(folder, model, public(config), data.task, facts)
        default_registry().notify("phalanx_run_finished", run=observer.run)
    if interrupted():  # in its last batches: the run is finished, and what comes after it is not
        raise KeyboardInterrupt
    return Run(folder, config, data.task, model, weights, metrics=read_metrics(folder))


def _phases(config: RunConfig, task: Task, model: DefendedModel) -> Sequence[Phase]:
    """The defense's own phases.

    Raises:
        PluginContractError: if its code fails, or gives something else.
    """
    use, registry = config.defense, default_registry()
    with registry.blamed(use.kind, use.use, "failed to name its phases"):
        phases = tuple(use.create(task).phases(model))
    wrong = [type(phase).__name__ for phase in phases if not isinstance(phase, Phase)]
    if wrong:
        raise registry.broken(use.kind, use.use, f"phases() gave {wrong[0]}, not a Phase")
    return phases


def _is_finished(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError:  # no name of a folder, which `check_output` tells
        return False


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run already, or somebody else's files.

    Raises:
        ArtifactError: with what to do.
    """
    begun = (folder / "state.json").exists()
    if begun and not resume:
        raise ArtifactError(
            f"{folder} already holds a run; go on with --resume (resume=True), or choose another "
            "--out"
        )
    strange = [name for name in ("config.json", MANIFEST) if (folder / name).exists()]
    if strange and not begun:
        raise ArtifactError(
            f"{folder} has a {strange[0]} but no state.json, so it is no run that can be gone on "
            "with; choose another --out"
        )


class _Observed:
    """Passes progress on, and epochs to the plugins that observe."""

    def __init__(self, progress: Progress, run: Mapping[str, Any]) -> None:
        self.progress = progress
        self.run = run

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        self.progress.phase_started(phase, epochs=epochs, batches=batches, done=done)

    def batch_finished(self, phase: str) -> None:
        self.progress.batch_finished(phase)

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        self.progress.epoch_finished(metrics)
        default_registry().notify("phalanx_epoch_finished", run=self.run, metrics=metrics)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use `count` torch threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question asked after each batch; a second is hard."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    for one in before:
        signal.signal(one, note)
    try:
        yield lambda: pressed
    finally:
        for one, handler in before.items():
            signal.signal(one, handler or signal.SIG_DFL)  # None: not set from Python
