"""Progress of an evaluation: one bar on a terminal, one plain line a cell elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_CHEAP = 1 / 50
"""Of the usual cost: blocks below were read from the store, or are of clean images."""
_MINUTE = 60.0


class Pace:
    """How long the rest may take: time an image that was attacked, times the images left.

    Rich's own estimate forgets what is older than half a minute, and a block may take many.

    Attributes:
        left: images to do.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.left = 0
        self._clock = clock
        self._since = clock()
        self._blocks: list[tuple[float, int]] = []
        self._largest = 0
        self._rate: float | None = None
        self._rated = 0

    def begin(self) -> None:
        """A block begins now: what came before it was none."""
        self._since = self._clock()

    def done(self, images: int, *, counts: bool = True) -> None:
        """A block is done.

        Args:
            images: of the block.
            counts: whether its time says something of the blocks left.
        """
        now = self._clock()
        self.left = max(self.left - images, 0)
        if counts and images:
            self._blocks.append((now - self._since, images))
            self._largest = max(self._largest, images)
        self._since = now

    def seconds(self) -> float | None:
        """Seconds left, those of the block in hand taken off; None where nothing tells."""
        if self._rated != len(self._blocks):  # the bar asks ten times a second
            self._rated = len(self._blocks)
            self._rate = _seconds_an_image(self._blocks)
        rate = self._rate
        if rate is None or not self.left:
            return None
        of_block = rate * min(self._largest, self.left)
        return rate * self.left - min(self._clock() - self._since, of_block)


class EvaluationProgress:
    """Shows cells on a console (stderr, so that stdout stays for results), and warnings as lines.

    It is a `phalanx.evaluation.progress.Progress`.

    Args:
        console: where to show them; absent: stderr.
        clock: gives seconds.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self.pace = Pace(clock)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            _Left(self.pace),
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

    def batch_chosen(self, subject: str, *, images: int) -> None:
        """Say how many images are attacked at once."""
        self.say(f"{subject}: {images} images at a time")

    def started(self, *, cells: int, images: int) -> None:
        """Open the bar, or make it longer: checks ask for more cells as they go."""
        self.cells += cells
        self.pace.left += images
        if self.task is None:
            self.task = self.bar.add_task("evaluating", total=images)
        else:
            known = self.bar.tasks[0].total or 0
            self.bar.update(self.task, total=known + images)

    def cell_started(self, label: str) -> None:
        """Name the cell beside the bar."""
        self.number += 1
        self.pace.begin()
        if self.task is not None:
            self.bar.update(self.task, description=f"{self.number}/{self.cells} {label}")

    def images_done(self, count: int) -> None:
        """Move the bar."""
        # the first cell asks about clean images, which says nothing of the attacks to come
        self._move(count, counts=self.number > 1)

    def cell_finished(self, label: str, *, accuracy: float, stored: bool) -> None:
        """Say what the cell came to and, above a minute, what is left, where there is no bar."""
        if not self.console.is_terminal:
            kept = "  (stored)" if stored else ""
            seconds = self.pace.seconds() or 0.0
            left = f"  about {duration(seconds)} left" if seconds > _MINUTE else ""
            self.say(f"{self.number}/{self.cells}  {label}  {100 * accuracy:.1f} %{kept}{left}")

    def cell_failed(self, label: str, *, images: int, reason: str) -> None:
        """Say why the cell was left out."""
        self._move(images, counts=False)
        self.say(f"{self.number}/{self.cells}  {label}  could not be run: {reason}")

    def _move(self, images: int, *, counts: bool) -> None:
        self.pace.done(images, counts=counts)
        if self.task is not None:
            self.bar.advance(self.task, images)

    def _warned(self, message: Warning | str, *rest: Any) -> None:
        self.say(f"warning: {message}")


class _Left(ProgressColumn):
    """The bar's end: ``about 3 min left``."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def render(self, task: Task) -> Text:
        """The estimate from a second on; empty where nothing tells."""
        seconds = self.pace.seconds()
        shown = "" if seconds is None or seconds < 1 else f"about {duration(seconds)} left"
        return Text(shown, style="progress.remaining")


def duration(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2 h 10 min`` or, from ten hours on, ``12 h``."""
    minutes = round(seconds / 60)
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes >= 600:
        return f"{seconds / 3600:.0f} h"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def _seconds_an_image(blocks: list[tuple[float, int]]) -> float | None:
    """Seconds an image of the blocks that were attacked; None before any took time.

    The usual cost is weighted by time, so that many blocks that were read do not make it small,
    and one that was slow does not make it large for long.
    """
    whole = sum(seconds for seconds, _ in blocks)
    if not whole:
        return None
    usual = sum(seconds * seconds / images for seconds, images in blocks) / whole
    attacked = [
        (seconds, images) for seconds, images in blocks if seconds >= _CHEAP * usual * images
    ]
    return sum(seconds for seconds, _ in attacked) / sum(images for _, images in attacked)
