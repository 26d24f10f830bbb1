"""Progress of an evaluation: one bar on a terminal, one plain line a cell elsewhere."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class EvaluationProgress:
    """Shows cells on a console (stderr, so that stdout stays for results), and warnings as lines.

    It is a `phalanx.evaluation.progress.Progress`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None
        self.cells = 0
        self.number = 0
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Self:
        self._warnings.__enter__()
        warnings.showwarning = self._warned  # type: ignore[assignment]  # same call, fewer names
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self._warnings.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, *, cells: int, images: int) -> None:
        """Open the bar, or make it longer: checks ask for more cells as they go."""
        self.cells += cells
        if self.task is None:
            self.task = self.bar.add_task("evaluating", total=images)
        else:
            known = self.bar.tasks[0].total or 0
            self.bar.update(self.task, total=known + images)

    def cell_started(self, label: str) -> None:
        """Name the cell beside the bar."""
        self.number += 1
        if self.task is not None:
            self.bar.update(self.task, description=f"{self.number}/{self.cells} {label}")

    def images_done(self, count: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bar.advance(self.task, count)

    def cell_finished(self, label: str, *, accuracy: float, stored: bool) -> None:
        """Say what the cell came to, where there is no bar."""
        if not self.console.is_terminal:
            kept = "  (stored)" if stored else ""
            self.say(f"{self.number}/{self.cells}  {label}  {100 * accuracy:.1f} %{kept}")

    def cell_failed(self, label: str, *, images: int, reason: str) -> None:
        """Say why the cell was left out."""
        self.images_done(images)
        self.say(f"{self.number}/{self.cells}  {label}  could not be run: {reason}")

    def _warned(self, message: Warning | str, *rest: Any) -> None:
        self.say(f"warning: {message}")
