"""A report as one page: no script, no network, readable on a phone and in print.

The pictures are SVG in the page; geometry is computed here, the template only places it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from phalanx.evaluation.rows import WORST, Row
from phalanx.report import words

if TYPE_CHECKING:
    from phalanx.report.model import Report

WIDTH = 400
"""Of a picture, in its own units; the page scales it, so that its text can be read on a phone."""
_LEFT = 6
_RIGHT = 62
_STEP = 36
_TEXT = 15
"""From a label's upper edge to its bar; labels stand above the bars, where long ones fit."""
_BAR = 12
_LETTERS = 52
"""Of a label that fit into the width."""


@dataclass(frozen=True)
class Bar:
    """A bar of a picture; lengths in the picture's units, from its left edge.

    Attributes:
        label: its name, shortened to fit.
        value: its share as text.
        kind: ``clean``, ``attack`` or ``worst``, which gives the colour.
        y: the bar's upper edge; its label stands above.
        length: of the bar, from `Picture.zero`.
        lo: where its interval begins; None if it has none.
        hi: where it ends.
    """

    label: str
    value: str
    kind: str
    y: int
    length: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Picture:
    """Horizontal bars of accuracies in [0, 1], and the same in words."""

    id: str
    title: str
    text: str
    bars: tuple[Bar, ...]
    width: int = WIDTH
    zero: int = _LEFT
    thick: int = _BAR

    @property
    def height(self) -> int:
        """Of bars and axis."""
        return _STEP * len(self.bars) + 22

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and names of the axis."""
        return [(_place(share / 4), f"{25 * share}") for share in range(5)]


@dataclass(frozen=True)
class Section:
    """A defense under one threat: its picture and its rows, view by view."""

    defense: str
    threat: str
    rows: tuple[Row, ...]
    picture: Picture

    @property
    def views(self) -> list[tuple[str, tuple[Row, ...]]]:
        """The rows of each view, the worst case last."""
        names = dict.fromkeys(row.view for row in self.rows)
        return [(name, tuple(row for row in self.rows if row.view == name)) for name in names]


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("phalanx.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = dict.fromkeys(row.verdict for row in report.rows)
    known: dict[str, Any] = {
        "report": report,
        "words": words,
        "worst": report.worst,
        "overview": overview(report.worst),
        "sections": sections(report.rows),
        "meanings": [words.VERDICTS[one] for one in verdicts if one in words.VERDICTS],
    }
    return environment.get_template("report.html.j2").render(known) + "\n"


def overview(worst: Sequence[Row]) -> Picture:
    """Clean and worst-case accuracy of each defense."""
    bars: list[Bar] = []
    told = []
    for row in worst:
        bars.append(_bar(len(bars), f"{row.defense}, clean", row.clean_accuracy, "clean"))
        label = f"{row.defense}, worst, {row.threat}"
        bars.append(_bar(len(bars), label, row.robust_accuracy, "worst", row.ci95))
        told.append(
            f"{row.defense} {words.under(row.threat)}: clean {words.percent(row.clean_accuracy)}, "
            f"worst {words.percent(row.robust_accuracy)}"
        )
    text = "; ".join(told) + "."
    return Picture("overview", "Clean and worst-case accuracy of each defense", text, tuple(bars))


def sections(rows: Sequence[Row]) -> list[Section]:
    """One section for each defense and threat."""
    pairs = dict.fromkeys((row.defense, row.threat) for row in rows)
    found = []
    for number, (defense, threat) in enumerate(pairs):
        own = tuple(row for row in rows if (row.defense, row.threat) == (defense, threat))
        found.append(Section(defense, threat, own, _picture(number, defense, threat, own)))
    return found


def _picture(number: int, defense: str, threat: str, rows: Sequence[Row]) -> Picture:
    clean = rows[0].clean_accuracy
    bars = [_bar(0, "clean", clean, "clean")]
    for place, row in enumerate(rows, start=1):
        kind = "worst" if row.attack == WORST else "attack"
        bars.append(_bar(place, words.name(row), row.robust_accuracy, kind, row.ci95))
    told = [f"clean {words.percent(clean)}"]
    told += [
        f"{words.name(row)} {words.percent(row.robust_accuracy)} ({words.between(row)})"
        for row in rows
    ]
    title = f"Accuracy of {defense} {words.under(threat)}, with 95 % intervals"
    return Picture(f"section-{number}", title, "; ".join(told) + ".", tuple(bars))


def _bar(
    place: int, label: str, share: float, kind: str, ci95: tuple[float, float] | None = None
) -> Bar:
    short = label if len(label) <= _LETTERS else label[: _LETTERS - 1] + "…"
    lo, hi = (None, None) if ci95 is None else (_place(ci95[0]), _place(ci95[1]))
    length = round(_place(share) - _LEFT, 1)
    return Bar(short, words.percent(share), kind, _TEXT + _STEP * place, length, lo, hi)


def _place(share: float) -> float:
    """A share in [0, 1] as a place on the axis."""
    return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)
