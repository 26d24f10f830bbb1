"""The outcome of ``phalanx reproduce``: numbers beside claims, as a table, Markdown and JSON.

The interval is of our number alone, over images: a paper's number has noise of its own, and both
have that of the training seed, which no single run shows.

Newcombe's interval of a difference: R. G. Newcombe, "Interval estimation for the difference between
independent proportions" (Statistics in Medicine 1998), method 10.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from phalanx.claims import NO_THREAT, Wanted, words
from phalanx.cli.common import echo

if TYPE_CHECKING:
    from phalanx.evaluation.rows import Row
    from phalanx.report.model import Report

Compared = Literal["holds", "higher", "lower", "not comparable", "not measured"]
_HEADER = (
    "RUN",
    "CLAIM",
    "MEASURED",
    "CLAIMED",
    "REPRODUCED",
    "95 %",
    "N",
    "DELTA",
    "VERDICT",
    "OUTCOME",
)
_DASH = "–"
_SLACK = 1e-9
"""Of a claim that lies on a bound of the interval."""


@dataclass(frozen=True)
class Number:
    """A share of images with its 95 % interval.

    Attributes:
        value: in [0, 1]; of a gain in [-1, 1].
        low: lower bound.
        high: upper bound.
        n: images it is a share of.
    """

    value: float
    low: float
    high: float
    n: int


def clean_number(row: Row) -> Number:
    """The clean accuracy that a row is measured beside; Wilson's interval.

    Where an image's outcome is a share of draws the interval is wider than need be: a value in
    [0, 1] varies no more than a bit of the same mean.
    """
    return _wilson(row.clean_accuracy, row.n)


def attacked_number(row: Row) -> Number:
    """A row's accuracy over all images, with its own interval."""
    return Number(row.robust_accuracy, *row.ci95, row.n)


def conditional_number(row: Row) -> Number | None:
    """A row's accuracy among the images that are right when clean; None if there is none.

    Given which images are right, each of them withstands the attack or does not: Wilson's interval
    over their number. Of a model with several draws Σ q c / Σ c is given, with weights c in [0, 1];
    its variance is at most r (1 - r) / Σ c, so that Wilson's over Σ c, rounded down, still covers.
    """
    right = math.floor(row.n * row.clean_accuracy + 1e-6)
    if row.conditional_accuracy is None or right < 1:
        return None
    return _wilson(min(1.0, row.conditional_accuracy), right)


def gain(number: Number, over: Sequence[Number]) -> Number:
    """How far a number is above the lowest of others: "up to so many points over these".

    Newcombe's interval, for independent samples: of the same images it is wider than need be. That
    the lowest was chosen does not enter.
    """
    lowest = min(over, key=lambda one: one.value)
    value = number.value - lowest.value
    down = math.hypot(number.value - number.low, lowest.high - lowest.value)
    up = math.hypot(number.high - number.value, lowest.value - lowest.low)
    return Number(value, value - down, value + up, min(number.n, lowest.n))


def _wilson(share: float, n: int) -> Number:
    from phalanx.evaluation.statistics import wilson

    return Number(share, *wilson(share * n, n), n)


@dataclass(frozen=True)
class Line:
    """A claim and what came of it.

    Attributes:
        wanted: the claim, and the row that answers it.
        number: as the claim counts; None if it could not be measured.
        verdict: of the row; '' for a clean accuracy.
        reason: why there is no number.
    """

    wanted: Wanted
    number: Number | None
    verdict: str = ""
    reason: str = ""

    @property
    def delta(self) -> float | None:
        """Reproduced minus claimed in points; None where they are not of the same thing."""
        if self.number is None or self.wanted.incomparable:
            return None
        return 100 * self.number.value - self.wanted.claim.value

    @property
    def compared(self) -> Compared:
        """``holds`` if the claim lies in the interval; else our number is higher, or lower."""
        if self.number is None:
            return "not measured"
        if self.wanted.incomparable:
            return "not comparable"
        claimed = self.wanted.claim.value / 100
        if claimed < self.number.low - _SLACK:
            return "higher"
        return "lower" if claimed > self.number.high + _SLACK else "holds"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader has to know of this line."""
        return tuple(
            one for one in (self.reason, self.wanted.incomparable, self.wanted.note) if one
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON; shares and their bounds in per cent, as claims are."""
        one, number = self.wanted, self.number
        return {
            "claim": one.claim.model_dump(mode="json", exclude={"evidence"}),
            "run": one.run,
            "over": list(one.over),
            "view": one.view,
            "attack": one.attack,
            "threat": one.threat,
            "reproduced": None if number is None else 100 * number.value,
            "interval": None if number is None else [100 * number.low, 100 * number.high],
            "n": None if number is None else number.n,
            "delta": self.delta,
            "verdict": self.verdict,
            "compared": self.compared,
            "remarks": list(self.remarks),
        }


def lines_of(claims: Sequence[Wanted], reports: Mapping[str, Report]) -> list[Line]:
    """A line for each claim, from the reports of the runs."""
    return [_line(one, reports) for one in claims]


def _line(one: Wanted, reports: Mapping[str, Report]) -> Line:
    report = reports[one.run]
    if not one.attack:
        number = clean_number(report.rows[0])
        if one.over:
            number = gain(number, [clean_number(reports[run].rows[0]) for run in one.over])
        return Line(one, number)
    place = (one.view, one.attack, one.threat)
    row = next((row for row in report.rows if (row.view, row.attack, row.threat) == place), None)
    if row is None:
        failed = [each for each in report.failed if (each.view, each.attack, each.threat) == place]
        views = ", ".join(dict.fromkeys(row.view for row in report.rows))
        reason = failed[0].reason if failed else f"the report has no such row; its views: {views}"
        return Line(one, None, reason=f"could not be run: {reason}" if failed else reason)
    if not one.claim.conditional:
        return Line(one, attacked_number(row), row.verdict)
    number_of_right = conditional_number(row)
    reason = "" if number_of_right else "no image is right when clean"
    return Line(one, number_of_right, row.verdict, reason)


# ---------------------------------------------------------------- shown


def print_lines(lines: Sequence[Line]) -> None:
    """The table."""
    cells = [_cells(line) for line in lines]
    if sys.stdout.isatty():
        _print_rich(cells)
        return
    widths = [max(len(one[at]) for one in [_HEADER, *cells]) for at in range(len(_HEADER))]
    for one in [_HEADER, *cells]:
        echo("  ".join(cell.ljust(width) for cell, width in zip(one, widths)).rstrip())


def _print_rich(cells: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _HEADER:
        table.add_column(name.capitalize(), overflow="fold")
    for one in cells:
        table.add_row(*one)
    Console(highlight=False, markup=False).print(table)


def table(lines: Sequence[Line]) -> str:
    """The same as Markdown."""
    rule = ["---"] * 3 + ["---:"] * 5 + ["---"] * 2
    whole = [[name.capitalize() for name in _HEADER], rule, *map(_cells, lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in one)} |" for one in whole)


def notes(lines: Sequence[Line]) -> list[str]:
    """What is to be known of single lines, each told once with the runs and claims it is of."""
    told: dict[str, list[str]] = {}
    for line in lines:
        for remark in line.remarks:
            told.setdefault(remark, []).append(f"{line.wanted.run}, {_shown(line.wanted)}")
    return [f"{'; '.join(of)}: {remark}" for remark, of in told.items()]


def _shown(one: Wanted) -> str:
    """A claim in words, with the table it stands in."""
    return f"{words(one.claim)} ({one.claim.source})"


def _measured(one: Wanted) -> str:
    """The row that answers a claim: ``deployed · fgsm``, its threat where it is not the claim's."""
    if not one.attack:
        return f"clean, above {', '.join(one.over)}" if one.over else "clean"
    same = one.threat == str(one.claim.threat or NO_THREAT)
    row = one.attack if one.view in (one.attack, NO_THREAT) else f"{one.view} · {one.attack}"
    return row if same else f"{row} ({one.threat})"


def _cells(line: Line) -> tuple[str, ...]:
    number, unit = line.number, "points" if line.wanted.over else "%"
    claimed = f"{line.wanted.claim.value:g} {unit}"
    head = (line.wanted.run, _shown(line.wanted), _measured(line.wanted), claimed)
    if number is None:
        return (*head, _DASH, _DASH, _DASH, _DASH, line.verdict or _DASH, line.compared)
    return (
        *head,
        f"{100 * number.value:.1f} {unit}",
        f"{100 * number.low:.1f} {_DASH} {100 * number.high:.1f}",
        str(number.n),
        _DASH if line.delta is None else f"{line.delta:+.1f}",
        line.verdict or _DASH,
        line.compared,
    )
