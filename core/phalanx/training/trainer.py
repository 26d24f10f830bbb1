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
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from phalanx import randomness
from phalanx.data.sets import Data
from phalanx.defense import DefendedModel
from phalanx.errors import DataError, PhalanxError, TrainingError
from phalanx.phase import Batch, Phase
from phalanx.storage import append_line, writing
from phalanx.training.averaging import Average
from phalanx.training.checkpoint import Checkpoints, Selected
from phalanx.training.context import TrainerContext
from phalanx.training.meter import PassMeter
from phalanx.training.plan import prefix
from phalanx.training.settings import Progress as Progress, Settings as Settings, Stopped as Stopped
from phalanx.training.validation import CLEAN, ROBUST, validate


@dataclass
class _Work:
    """A phase in training.

    Attributes:
        average: of its weights, where it keeps one.
        sums: of what is logged, over the epoch's images so far.
        examples: images trained on so far.
        selected: the best epoch so far against the last one, where the phase keeps the best.
    """

    phase: Phase
    ctx: TrainerContext
    meter: PassMeter
    average: Average | None
    sums: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0
    selected: Selected | None = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module has its averaged weights inside, if it keeps an average."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield


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
        average = Average(phase.module, decay=phase.ema) if phase.ema else None
        work = _Work(phase, ctx, PassMeter(phase.module), average)
        self._resume(work)
        self.progress.phase_started(
            phase.name,
            epochs=phase.epochs,
            batches=ctx.batches,
            done=ctx.epoch * ctx.batches + ctx.index,
        )
        try:
            self._run_epochs(work)
        finally:
            work.meter.close()
        with randomness.seeded(seed, phase.name, "end"):
            self._settle(work)
            for regularizer in phase.regularizers:
                regularizer.end(ctx)
        for parameter, flag in flags:  # between phases only the model's state travels
            parameter.requires_grad_(flag)
        self.model.eval()
        self.checkpoints.finish(
            phase.name,
            self._slice(phase),
            selected=work.selected,
            log_bytes=self._log_size(),
            forwards=work.meter.forwards,
            backwards=work.meter.backwards,
            examples=len(self.data.train) * phase.epochs,
        )

    def _settle(self, work: _Work) -> None:
        """Give the module the weights that are kept: averaged, or the best epoch's."""
        if work.average is not None:
            work.average.apply()
        best = self.checkpoints.best_of(work.phase.name)
        if work.selected is not None and best is not None:
            self._load(self.checkpoints.load_best(best), work.phase)
        if work.average is not None or work.selected is not None:
            # other weights than those of the last step: a mask made since then holds for them too
            for regularizer in work.phase.regularizers:
                regularizer.after_step(work.ctx)

    def _run_epochs(self, work: _Work) -> None:
        phase, ctx, sums = work.phase, work.ctx, work.sums
        saved = started = time.monotonic()
        while ctx.epoch < phase.epochs:
            with closing(ctx.left()) as batches:
                while ctx.index < ctx.batches:
                    try:
                        batch = next(batches)
                    except DataError:  # a file that cannot be read any more
                        self._save(work)
                        raise
                    if ctx.index == 0:  # not before: a checkpoint at 0 is of before it
                        self._before_epoch(phase, ctx)
                    for name, value in self._step(phase, ctx, batch).items():
                        total = sums.setdefault(name, torch.zeros((), dtype=torch.float64))
                        total += value.cpu().double() * len(batch)
                    if work.average is not None:
                        work.average.update()
                    work.examples += len(batch)
                    ctx.index += 1
                    self.progress.batch_finished(phase.name)
                    if ctx.index == ctx.batches:
                        break
                    now, stop = time.monotonic(), self.settings.should_stop()
                    if stop or now - saved >= self.settings.checkpoint_seconds:
                        self._save(work)
                        saved = now
                    if stop:
                        raise Stopped
            with randomness.seeded(ctx.seed, phase.name, ctx.epoch, "after_epoch"):
                for regularizer in phase.regularizers:
                    regularizer.after_epoch(ctx)
            self._log_epoch(work, time.monotonic() - started)
            started = time.monotonic()
            sums.clear()
            ctx.epoch, ctx.index = ctx.epoch + 1, 0
            if ctx.epoch < phase.epochs:
                stop = self.settings.should_stop()
                if stop or time.monotonic() - saved >= self.settings.checkpoint_seconds:
                    self._save(work)
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
        except PhalanxError:
            raise
        except Exception as error:  # a plugin's and torch's own: shapes, memory, a batch of one
            raise TrainingError(
                f"phase {phase.name!r} failed at epoch {ctx.epoch + 1}, batch {ctx.index + 1} "
                f"({len(batch)} images): {type(error).__name__}: {error}"
            ) from error

    def _before_epoch(self, phase: Phase, ctx: TrainerContext) -> None:
        with randomness.seeded(ctx.seed, phase.name, ctx.epoch, "epoch"):
            phase.before_epoch(ctx)

    # ------------------------------------------------------------ log and checkpoints

    def _log_epoch(self, work: _Work, seconds: float) -> None:
        phase, ctx, meter = work.phase, work.ctx, work.meter
        count = len(self.data.train)
        line: dict[str, Any] = {
            "phase": phase.name,
            "epoch": ctx.epoch + 1,
            "epochs": phase.epochs,
            **{name: float(total) / count for name, total in work.sums.items()},
            "forwards_per_example": meter.forwards / work.examples,
            "backwards_per_example": meter.backwards / work.examples,
            "seconds": round(seconds, 3),
        }
        if len(self.data.validation):
            line |= self._validate(work)
        append_line(self.log, json.dumps(line))
        self.progress.epoch_finished(line)

    def _validate(self, work: _Work) -> dict[str, Any]:
        """The epoch's accuracies on held-out images; the best epoch's weights are kept."""
        phase, meter, number = work.phase, work.meter, work.ctx.epoch + 1
        passes = meter.forwards, meter.backwards
        with work.averaged(), randomness.seeded(work.ctx.seed, phase.name, number, "validation"):
            found = validate(phase, self.model, self.data.validation, seed=work.ctx.seed)
            meter.restore(*passes)
            if phase.select == "last":
                return found
            by = ROBUST if ROBUST in found else CLEAN
            best = self.checkpoints.best_of(phase.name)
            if best is None or found[by] > best.value:  # of equal ones the earlier
                self.checkpoints.keep_best(
                    self._slice(phase), phase=phase.name, epoch=number, value=found[by]
                )
                best = self.checkpoints.best_of(phase.name)
        assert best is not None
        gap = best.value - found[by]
        work.selected = Selected(by=by, best=best.value, epoch=best.epoch, last=found[by], gap=gap)
        return {**found, "best_epoch": best.epoch, "best": best.value, "best_minus_last": gap}

    def _save(self, work: _Work) -> None:
        phase, ctx, meter = work.phase, work.ctx, work.meter
        tensors = {f"model/{name}": value for name, value in self._slice(phase).items()}
        for place, regularizer in enumerate(phase.regularizers):
            for name, value in regularizer.state_dict().items():
                tensors[f"regularizer/{place}/{name}"] = value
        if work.average is not None:
            tensors |= {f"ema/{name}": value for name, value in work.average.state().items()}
        tensors.update(ctx.state())
        tensors.update({f"metric/{name}": total for name, total in work.sums.items()})
        self.checkpoints.save(
            tensors,
            phase=phase.name,
            epoch=ctx.epoch,
            index=ctx.index,
            log_bytes=self._log_size(),
            forwards=meter.forwards,
            backwards=meter.backwards,
            examples=work.examples,
        )

    def _resume(self, work: _Work) -> None:
        """Load the phase's checkpoint, if there is one, over what `begin` prepared."""
        phase, ctx, meter = work.phase, work.ctx, work.meter
        found = self.checkpoints.load_running(phase.name)
        if found is None:
            finished = self.checkpoints.state.finished
            self._truncate_log(finished[-1].log_bytes if finished else 0)
            return
        position, tensors = found
        ctx.epoch = position.epoch
        if position.index:
            self._before_epoch(phase, ctx)  # as at the epoch's start; the tensors go over it
        parts: dict[str, dict[str, Tensor]] = {
            "model": {},
            "metric": {},
            "regularizer": {},
            "ema": {},
        }
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
        if work.average is not None:
            work.average.load_state(parts["ema"])
        ctx.load_state(tensors)
        ctx.index = position.index
        meter.restore(position.forwards, position.backwards)
        self._truncate_log(position.log_bytes)
        work.sums.update(parts["metric"])
        work.examples = position.examples

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _truncate_log(self, size: int) -> None:
        """Drop the lines of epochs that will be trained again."""
        if self.log.exists():
            with writing(self.log), self.log.open("r+b") as file:
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
