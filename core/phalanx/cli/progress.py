"""Progress of a training: one bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from phalanx.phase import is_log


class TrainingProgress:
    """Shows phases, batches and epochs on a console (stderr, so that stdout stays for results).

    Attributes:
        epochs: whether each epoch leaves a line.
    """

    def __init__(self, console: Console | None = None, *, epochs: bool = True) -> None:
        self.console = console or Console(stderr=True)
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        """Open a bar for the phase."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(phase, total=epochs * batches, completed=done)

    def batch_finished(self, phase: str) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bar.advance(self.task)

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        """Say what the epoch came to, unless only the bar is wanted."""
        if not self.epochs:
            return
        shown = [f"{metrics['phase']} {metrics['epoch']}/{metrics['epochs']}"]
        hidden = {"phase", "epoch", "epochs", "forwards_per_example", "backwards_per_example"}
        for name, value in metrics.items():
            if name == "seconds":
                shown.append(f"{value:.1f} s")
            elif name not in hidden and not is_log(name):
                shown.append(f"{name.replace('_', ' ')} {value:.4f}")
        self.console.print("  ".join(shown), highlight=False)
