"""Runs phases, one after another, on Lightning Fabric.

A run that is killed at any moment and resumed ends in the same weights, bit for bit on a CPU at
the recorded number of threads: draws are keyed by (seed, phase, epoch, index, purpose), schedules
are functions of progress, and a checkpoint holds tensors and a position, nothing else.

Fabric gives the device and the precision. `Fabric.setup` is not used: it would wrap the model,
and members that a phase calls directly would by-pass its gradient exchange and its autocast.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from phalanx import randomness
from phalanx.attack import attacking
from phalanx.data.sets import Data, Split
from phalanx.defense import DefendedModel
from phalanx.errors import TrainingError
from phalanx.phase import Batch, Phase
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.context import TrainerContext
from phalanx.training.meter import PassMeter
from phalanx.training.plan import prefix


class Progress(Protocol):
    """Sees how a training goes on; every method may do nothing."""

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        """A phase begins or goes on, `done` batches of it behind."""

    def batch_finished(self, phase: str) -> None:
        """A batch is done."""

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        """An epoch is done; `metrics` is its line of metrics.jsonl."""


class Stopped(Exception):
    """The training was asked to stop and has written a checkpoint."""


@dataclass(frozen=True)
class Settings:
    """What a trainer needs besides model, data and phases.

    Attributes:
        seed: the run's seed.
        precision: ``float32`` or ``bfloat16``.
        checkpoint_seconds: least time between two checkpoints of a phase.
        should_stop: asked after each batch.
        restart_phase: forget the running phase's checkpoint.
    """

    seed: int
    precision: str = "float32"
    checkpoint_seconds: float = 60.0
    should_stop: Callable[[], bool] = lambda: False
    restart_phase: bool = False


class Trainer:
    """Trains a model through its phases and keeps a run folder up to date."""

    def __init__(
        self,
        model: DefendedModel,
        data: Data,
        *,
        folder: Path,
        checkpoints: Checkpoints,
        settings: Settings,
        progress: Progress,
    ) -> None:
        precision = "bf16-mixed" if settings.precision == "bfloat16" else "32-true"
        self.fabric = Fabric(accelerator="auto", devices=1, precision=precision)
        self.model = model.to(self.fabric.device)
        self.data = data
        self.log = folder / "metrics.jsonl"
        self.checkpoints = checkpoints
        self.settings = settings
        self.progress = progress

    def run(self, phases: list[Phase]) -> None:
        """Train what is not trained yet.

        Raises:
            Stopped: after a checkpoint, if the settings' `should_stop` said so.
        """
        finished = {done.phase: done for done in self.checkpoints.state.finished}
        if self.settings.restart_phase:
            self.checkpoints.drop_running()
        for phase in phases:
            if phase.name in finished:
                self._load(self.checkpoints.load_slice(finished[phase.name]), phase)
            else:
                self._run_phase(phase)

    # ------------------------------------------------------------ one phase

    def _run_phase(self, phase: Phase) -> None:
        seed = self.settings.seed
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        phase = replace(phase, regularizers=tuple(copy.deepcopy(r) for r in phase.regularizers))
        with randomness.seeded(seed, phase.name, "begin"):
            ctx = TrainerContext(phase, seed=seed, data=self.data.train, device=self.fabric.device)
            self.model.eval()
            phase.module.train()
            phase.begin(ctx)
            for regularizer in phase.regularizers:
                regularizer.to(self.fabric.device).begin(ctx)
            ctx.build_optimizers()
        meter = PassMeter(phase.module)
        sums, examples = self._resume(phase, ctx, meter)
        self.progress.phase_started(
            phase.name,
            epochs=phase.epochs,
            batches=ctx.batches,
            done=ctx.epoch * ctx.batches + ctx.index,
        )
        try:
            self._run_epochs(phase, ctx, meter, sums, examples)
        finally:
            meter.close()
        with randomness.seeded(seed, phase.name, "end"):
            for regularizer in phase.regularizers:
                regularizer.end(ctx)
        for parameter, flag in flags:  # between phases only the model's state travels
            parameter.requires_grad_(flag)
        self.model.eval()
        self.checkpoints.finish(
            phase.name,
            self._slice(phase),
            log_bytes=self._log_size(),
            forwards=meter.forwards,
            backwards=meter.backwards,
            examples=len(self.data.train) * phase.epochs,
        )

    def _run_epochs(
        self,
        phase: Phase,
        ctx: TrainerContext,
        meter: PassMeter,
        sums: dict[str, Tensor],
        examples: int,
    ) -> None:
        saved = started = time.monotonic()
        while ctx.epoch < phase.epochs:
            if ctx.index == 0:
                self._before_epoch(phase, ctx)
            while ctx.index < ctx.batches:
                batch = ctx.batch()
                for name, value in self._step(phase, ctx, batch).items():
                    total = sums.setdefault(name, torch.zeros((), dtype=torch.float64))
                    total += value.cpu().double() * len(batch)
                examples += len(batch)
                ctx.index += 1
                self.progress.batch_finished(phase.name)
                if ctx.index == ctx.batches:
                    break
                now, stop = time.monotonic(), self.settings.should_stop()
                if stop or now - saved >= self.settings.checkpoint_seconds:
                    self._save(phase, ctx, meter, sums, examples)
                    saved = now
                if stop:
                    raise Stopped
            with randomness.seeded(ctx.seed, phase.name, ctx.epoch, "after_epoch"):
                for regularizer in phase.regularizers:
                    regularizer.after_epoch(ctx)
            self._log_epoch(phase, ctx, meter, sums, examples, time.monotonic() - started)
            started = time.monotonic()
            sums.clear()
            ctx.epoch, ctx.index = ctx.epoch + 1, 0
            if ctx.epoch < phase.epochs:
                stop = self.settings.should_stop()
                if stop or time.monotonic() - saved >= self.settings.checkpoint_seconds:
                    self._save(phase, ctx, meter, sums, examples)
                    saved = time.monotonic()
                if stop:
                    raise Stopped

    def _step(self, phase: Phase, ctx: TrainerContext, batch: Batch) -> dict[str, Tensor]:
        place = (ctx.seed, phase.name, ctx.epoch, ctx.index)
        self.model.reseed(*place, "forward")
        try:
            with randomness.seeded(*place, "step"), self.fabric.autocast():
                for transform in phase.transforms:
                    batch = transform(batch, ctx)
                return phase.step(batch, ctx)
        except (RuntimeError, ValueError) as error:  # torch's own: shapes, memory, a batch of one
            raise TrainingError(
                f"phase {phase.name!r} failed at epoch {ctx.epoch + 1}, batch {ctx.index + 1} "
                f"({len(batch)} images): {type(error).__name__}: {error}"
            ) from error

    def _before_epoch(self, phase: Phase, ctx: TrainerContext) -> None:
        with randomness.seeded(ctx.seed, phase.name, ctx.epoch, "epoch"):
            phase.before_epoch(ctx)

    # ------------------------------------------------------------ log and checkpoints

    def _log_epoch(
        self,
        phase: Phase,
        ctx: TrainerContext,
        meter: PassMeter,
        sums: dict[str, Tensor],
        examples: int,
        seconds: float,
    ) -> None:
        count = len(self.data.train)
        line: dict[str, Any] = {
            "phase": phase.name,
            "epoch": ctx.epoch + 1,
            "epochs": phase.epochs,
            **{name: float(total) / count for name, total in sums.items()},
            "forwards_per_example": meter.forwards / examples,
            "backwards_per_example": meter.backwards / examples,
            "seconds": round(seconds, 3),
        }
        if len(self.data.validation):
            before = meter.forwards
            with randomness.seeded(ctx.seed, phase.name, ctx.epoch, "validation"):
                line["validation_accuracy"] = accuracy(self.model, self.data.validation)
            meter.forwards = before
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.progress.epoch_finished(line)

    def _save(
        self,
        phase: Phase,
        ctx: TrainerContext,
        meter: PassMeter,
        sums: dict[str, Tensor],
        examples: int,
    ) -> None:
        tensors = {f"model/{name}": value for name, value in self._slice(phase).items()}
        for place, regularizer in enumerate(phase.regularizers):
            for name, value in regularizer.state_dict().items():
                tensors[f"regularizer/{place}/{name}"] = value
        tensors.update(ctx.state())
        tensors.update({f"metric/{name}": total for name, total in sums.items()})
        self.checkpoints.save(
            tensors,
            phase=phase.name,
            epoch=ctx.epoch,
            index=ctx.index,
            log_bytes=self._log_size(),
            forwards=meter.forwards,
            backwards=meter.backwards,
            examples=examples,
        )

    def _resume(
        self, phase: Phase, ctx: TrainerContext, meter: PassMeter
    ) -> tuple[dict[str, Tensor], int]:
        """Load the phase's checkpoint, if there is one, over what `begin` prepared."""
        found = self.checkpoints.load_running(phase.name)
        if found is None:
            finished = self.checkpoints.state.finished
            self._truncate_log(finished[-1].log_bytes if finished else 0)
            return {}, 0
        position, tensors = found
        ctx.epoch = position.epoch
        if position.index:
            self._before_epoch(phase, ctx)  # as at the epoch's start; the tensors go over it
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "metric": {}, "regularizer": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parts.setdefault(kind, {})[name] = value
        self._load(parts["model"], phase)
        for place, regularizer in enumerate(phase.regularizers):
            start = f"{place}/"
            regularizer.load_state_dict(
                {
                    name.removeprefix(start): value
                    for name, value in parts["regularizer"].items()
                    if name.startswith(start)
                }
            )
        ctx.load_state(tensors)
        ctx.index = position.index
        meter.forwards, meter.backwards = position.forwards, position.backwards
        self._truncate_log(position.log_bytes)
        return parts["metric"], position.examples

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _truncate_log(self, size: int) -> None:
        """Drop the lines of epochs that will be trained again."""
        if self.log.exists():
            with self.log.open("r+b") as file:
                file.truncate(min(size, self._log_size()))

    def _slice(self, phase: Phase) -> dict[str, Tensor]:
        start = prefix(phase.module, self.model)
        return {start + name: value for name, value in phase.module.state_dict().items()}

    def _load(self, tensors: dict[str, Tensor], phase: Phase) -> None:
        start = prefix(phase.module, self.model)
        own = {name.removeprefix(start): value for name, value in tensors.items()}
        try:
            phase.module.load_state_dict(own)
        except RuntimeError as error:
            raise TrainingError(
                f"the stored weights of phase {phase.name!r} do not fit the model: {error}"
            ) from error


def accuracy(model: DefendedModel, split: Split, *, batch_size: int = 500) -> float:
    """Share of the images that the served function classifies correctly."""
    device = next(model.parameters()).device
    served = model.serve(randomness.key("accuracy"))
    right = 0
    with attacking(model), torch.no_grad():
        for start in range(0, len(split), batch_size):
            batch = split.fetch(torch.arange(start, min(start + batch_size, len(split))))
            scores = served(batch.x.to(device))
            right += int((scores.argmax(1).cpu() == batch.y).sum())
    return right / len(split)
