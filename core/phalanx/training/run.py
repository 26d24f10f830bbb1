"""Trains a config into a run folder, from the beginning or from where it was stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from phalanx.config import RunConfig
from phalanx.data import default_root, load_data
from phalanx.errors import ArtifactError
from phalanx.registry import default_registry
from phalanx.runfile import config_hash, read_run
from phalanx.training.artifacts import (
    MANIFEST,
    Run,
    build_model,
    count_parameters,
    open_run,
    read_metrics,
    write_weights,
)
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.files import write_json
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
) -> Run:
    """Train a defense and leave a run folder.

    Args:
        config: a run file's path, its content as a mapping, or a `RunConfig`.
        out: the run folder; made if it is not there.
        resume: go on with the run that `out` holds (or begin, if it holds none).
        data_root: where the data sets are; absent: ``$PHALANX_DATA`` or the user's cache.
        download: fetch the data set if it is not there.
        time_budget: stop at a checkpoint after so many seconds; epochs and schedule stay.
        checkpoint_seconds: least time between two checkpoints.
        restart_phase: with `resume`, begin the running phase anew (its checkpoint is damaged).
        progress: sees batches and epochs.

    Returns:
        The run; `finished` is False if the time budget ended it.

    Raises:
        ConfigError: if the config has problems; all are told at once.
        DataError: if the data set is missing.
        ArtifactError: if `out` holds another run, or a damaged one.
        TrainingError: if the loss is not finite.
        KeyboardInterrupt: after Ctrl-C, when a checkpoint has been written.
    """
    folder = Path(out)
    config = read_run(config)
    digest = config_hash(config)
    _check_folder(folder, resume=resume)
    checkpoints = Checkpoints.open(folder, config_hash=digest, threads=config.training.threads)
    if (folder / MANIFEST).exists():
        return open_run(folder)
    data = load_data(
        config.data.use,
        root=Path(data_root) if data_root else default_root(),
        limit=config.data.limit,
        validation=config.data.validation,
        download=download,
    )
    with _threads(config.training.threads), _interruptible() as interrupted:
        model = build_model(config, data.task)
        phases = planned(config.defense.create(data.task).phases(model), config.training, model)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.model_dump(mode="json"))
        checkpoints.mark()
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
            progress or _Silent(),
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
        facts = {
            "parameters": count_parameters(model),
            "phases": [
                done.model_dump(exclude={"log_bytes"}) for done in checkpoints.state.finished
            ],
        }
        weights = write_weights(folder, model, config, data.task, facts)
        default_registry().notify("phalanx_run_finished", run=observer.run)
    return Run(folder, config, data.task, model, weights, metrics=read_metrics(folder))


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that is none, that holds a run already, or somebody else's files.

    Raises:
        ArtifactError: with what to do.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"--out {folder} is a file; name a folder for the run")
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
    """Turn the first Ctrl-C into a question that is asked after each batch; the second is hard."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
