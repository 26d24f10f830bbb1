"""Accuracies as horizontal bars: geometry and words of the picture; the template only places it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.evaluation.rows import Row
from phalanx.report import arrange, figures, lettering, words

WIDTH = 340
"""Of a picture, in its own units: about a phone's, so that its text is not scaled down there."""
_LEFT = 6
_RIGHT = 56
_STEP = 36
_TEXT = 17
"""From a label's upper edge to its bar; labels stand above the bars, where long ones fit."""
_BAR = 12


@dataclass(frozen=True)
class Bar:
    """A bar of a picture; lengths in the picture's units, from its left edge.

    Attributes:
        label: its name, shortened to fit.
        value: its share as text.
        kind: ``clean``, ``attack`` or ``worst``, which gives the colour.
        y: the bar's upper edge; its label stands above.
        length: of the bar, from `Bars.zero`.
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
class Bars:
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
        return _STEP * len(self.bars) + 24

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and names of the axis."""
        return [(_place(share / 4), f"{25 * share}") for share in range(5)]


def overview(worst: Sequence[Row]) -> Bars:
    """Clean and worst-case accuracy of each defense, in the order given."""
    bars: list[Bar] = []
    told = []
    for row in worst:
        bars.append(_bar(len(bars), f"{row.defense}, clean", row.clean_accuracy, "clean"))
        label = f"{row.defense}, worst, {row.threat}"
        bars.append(_bar(len(bars), label, row.robust_accuracy, "worst", row.ci95))
        told.append(
            f"{row.defense} {words.under(row.threat)}: clean "
            f"{figures.percent(row.clean_accuracy)}, worst {figures.percent(row.robust_accuracy)}"
        )
    text = "; ".join(told) + "."
    return Bars("overview", "Clean and worst-case accuracy of each defense", text, tuple(bars))


def of_rows(name: str, rows: Sequence[Row]) -> Bars:
    """The rows of one defense and threat, at least one; `name` is the picture's id."""
    defense, threat, clean = rows[0].defense, rows[0].threat, rows[0].clean_accuracy
    bars = [_bar(0, "clean", clean, "clean")]
    for place, row in enumerate(rows, start=1):
        kind = "worst" if arrange.is_worst(row) else "attack"
        bars.append(_bar(place, words.name(row), row.robust_accuracy, kind, row.ci95))
    told = [f"clean {figures.percent(clean)}"]
    told += [
        f"{words.name(row)} {figures.percent(row.robust_accuracy)} ({figures.between(row)})"
        for row in rows
    ]
    title = f"Accuracy of {defense} {words.under(threat)}, with 95 % intervals"
    return Bars(name, title, "; ".join(told) + ".", tuple(bars))


def _bar(
    place: int, label: str, share: float, kind: str, ci95: tuple[float, float] | None = None
) -> Bar:
    lo, hi = (None, None) if ci95 is None else (_place(ci95[0]), _place(ci95[1]))
    length = round(_place(share) - _LEFT, 1)
    y = _TEXT + _STEP * place
    return Bar(
        lettering.shortened(label, WIDTH - _LEFT), figures.percent(share), kind, y, length, lo, hi
    )


def _place(share: float) -> float:
    """A share in [0, 1] as a place on the axis."""
    return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)
