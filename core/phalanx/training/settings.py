"""What a trainer is told, whom it tells, and how it says that it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


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
