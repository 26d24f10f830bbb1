"""The lines and the bar of an evaluation, under a clock that the tests move."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from phalanx.cli.evaluate_progress import EvaluationProgress, duration

LABEL = "adp, deployed, pgd (linf:0.1)"


class Watched:
    """An evaluation's progress, the clock it reads, and what it printed.

    Its first cell, of clean images, is done: 512 images in 2 s.
    """

    def __init__(self, *, cells: int = 4, images: int = 512, terminal: bool = False) -> None:
        self.now = 1000.0
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=200)
        self.progress = EvaluationProgress(console, clock=lambda: self.now)
        self.progress.started(cells=cells, images=cells * images)
        self.cell("adp, clean", (1.0, 256), (1.0, 256))

    def cell(self, label: str, *blocks: tuple[float, int], stored: bool = False) -> None:
        """A cell of blocks of so many seconds and images."""
        self.progress.cell_started(label)
        self.blocks(*blocks)
        self.progress.cell_finished(label, accuracy=0.775, stored=stored)

    def blocks(self, *blocks: tuple[float, int]) -> None:
        for seconds, images in blocks:
            self.now += seconds
            self.progress.images_done(images)

    @property
    def last(self) -> str:
        return self.file.getvalue().splitlines()[-1]

    @property
    def shown(self) -> str:
        """What stands at the bar's end."""
        return str(self.progress.bar.columns[-1](self.progress.bar.tasks[0]))


def test_blocks_of_minutes_have_an_estimate_in_the_plain_lines() -> None:
    watched = Watched()
    assert watched.last == "1/4  adp, clean  77.5 %"
    watched.cell(LABEL, (240, 256), (240, 256))
    assert watched.last == f"2/4  {LABEL}  77.5 %  about 16 min left"
    watched.cell(LABEL, (720, 256), (720, 256))
    assert watched.last == f"3/4  {LABEL}  77.5 %  about 16 min left"  # 480 s and 1440 s a cell
    watched.cell(LABEL, (240, 256), (240, 256))
    assert watched.last == f"4/4  {LABEL}  77.5 %"


def test_a_minute_and_less_is_not_told_in_plain_lines() -> None:
    watched = Watched(cells=3)
    watched.cell(LABEL, (30, 256), (30, 256))
    assert watched.last == f"2/3  {LABEL}  77.5 %"
    longer = Watched(cells=3)
    longer.cell(LABEL, (30, 256), (31, 256))
    assert longer.last == f"2/3  {LABEL}  77.5 %  about 1 min left"


def test_the_bar_counts_down_within_a_block_and_not_below_it() -> None:
    watched = Watched(cells=2, images=1024, terminal=True)  # 512 clean images are left too
    assert watched.shown == ""  # clean images say nothing of attacks
    watched.progress.cell_started(LABEL)
    watched.now += 100
    assert watched.shown == ""
    watched.blocks((140, 256))
    assert watched.shown == "about 20 min left"  # 1280 images at 240 s for 256
    watched.now += 120
    assert watched.shown == "about 18 min left"
    watched.now += 600  # longer than the block before
    assert watched.shown == "about 16 min left"
    assert "adp" not in watched.file.getvalue()


def test_the_bar_counts_seconds_at_the_end() -> None:
    watched = Watched(cells=2, terminal=True)
    watched.progress.cell_started(LABEL)
    watched.blocks((50, 256))
    assert watched.shown == "about 50 s left"
    watched.now += 49.5
    assert watched.shown == ""
    watched.blocks((1, 256))
    assert watched.shown == ""


def test_work_that_checks_add_keeps_what_is_known() -> None:
    watched = Watched(cells=2, terminal=True)
    watched.progress.cell_started(LABEL)
    watched.blocks((240, 256), (240, 256))
    assert watched.shown == ""
    watched.progress.started(cells=1, images=0)
    watched.progress.cell_started("adp, checks (linf:0.1)")
    watched.now += 900  # a check without an attack is no block
    watched.progress.started(cells=1, images=256)
    watched.progress.cell_started(f"{LABEL}, check")
    assert watched.shown == "about 4 min left"
    watched.blocks((240, 256))
    watched.progress.started(cells=1, images=512)
    watched.progress.cell_started(f"{LABEL}, check")
    assert watched.shown == "about 8 min left"


@pytest.mark.parametrize("reading", [0.001, 0.2])
def test_blocks_that_were_read_do_not_make_it_shorter(reading: float) -> None:
    watched = Watched(cells=7)
    for _ in range(3):
        watched.cell(LABEL, (reading, 256), (reading, 256), stored=True)
        assert watched.last.endswith("  77.5 %  (stored)")
    watched.cell(LABEL, (reading, 256), (240, 256))  # half of it was there
    assert watched.last == f"5/7  {LABEL}  77.5 %  about 16 min left"
    watched.cell(LABEL, (reading, 256), (reading, 256), stored=True)
    assert watched.last == f"6/7  {LABEL}  77.5 %  (stored)  about 8 min left"


def test_clean_images_of_further_models_do_not_make_it_shorter() -> None:
    watched = Watched(cells=4)
    watched.cell(LABEL, (240, 256), (240, 256))
    watched.cell("clm, clean", (1, 256), (1, 256))
    assert watched.last == "3/4  clm, clean  77.5 %  about 8 min left"


def test_a_slow_first_block_is_soon_made_up_for() -> None:
    watched = Watched(cells=3, images=2560)  # 2048 clean images are left too
    watched.cell(LABEL, (60, 256), *[(6, 256)] * 9)
    assert watched.last == f"2/3  {LABEL}  77.5 %  about 3 min left"  # 18 blocks of 11.4 s
    warm = Watched(cells=3, images=2560)
    warm.cell(LABEL, *[(6, 256)] * 10)
    assert warm.last == f"2/3  {LABEL}  77.5 %  about 2 min left"


def test_a_cell_that_fails_is_left_over_no_longer() -> None:
    watched = Watched(cells=4)
    watched.cell(LABEL, (240, 256), (240, 256))
    watched.progress.cell_started(LABEL)
    watched.now += 1
    watched.progress.cell_failed(LABEL, images=512, reason="no package x")
    assert watched.last == f"3/4  {LABEL}  could not be run: no package x"
    watched.progress.cell_started(LABEL)
    watched.blocks((240, 256))
    assert watched.progress.pace.seconds() == pytest.approx(240)


def test_blocks_that_took_no_time_tell_nothing() -> None:
    watched = Watched(cells=3)
    watched.cell(LABEL, (0, 256), (0, 256))
    assert watched.progress.pace.seconds() is None


def test_the_batch_is_said() -> None:
    for terminal in (False, True):
        watched = Watched(terminal=terminal)
        watched.progress.batch_chosen("adp", images=64)
        assert watched.last == "adp: 64 images at a time"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (89, "1 min"),
        (3540, "59 min"),
        (3590, "1 h"),
        (7800, "2 h 10 min"),
        (35_900, "9 h 58 min"),
        (36_000, "10 h"),
        (200_000, "56 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
