"""Transfer matrices as heat maps; numbers in the cells, so that no colour is needed."""

from __future__ import annotations

from dataclasses import dataclass

from phalanx.evaluation.findings import Transfer
from phalanx.report import figures, lettering, tables, words
from phalanx.report.tables import Table

_CELL_W, _CELL_H = 46, 28
_NAME = 140.0
"""Room for a name beside a row or above a column."""
_SLANT = 0.7072
"""Sine and cosine of the 45 degrees by which columns' names rise."""


@dataclass(frozen=True)
class Cell:
    """A cell: its upper left corner, its number as text, and how dark it is, in [0, 0.8]."""

    x: float
    y: float
    text: str
    shade: float | None


@dataclass(frozen=True)
class Map:
    """A heat map in units that are the page's pixels: it is not scaled down, but scrolled."""

    id: str
    title: str
    text: str
    width: int
    height: int
    cells: tuple[Cell, ...]
    rows: tuple[tuple[float, float, str], ...]
    columns: tuple[tuple[float, float, str], ...]
    table: Table
    cell_width: int = _CELL_W
    cell_height: int = _CELL_H


def of_transfer(name: str, transfer: Transfer) -> Map:
    """The heat map of a matrix; `name` is the picture's id."""
    targets = [lettering.shortened(one, _NAME) for one in transfer.targets]
    sources = [lettering.shortened(one, _NAME) for one in transfer.sources]
    left = round(max(map(lettering.width, targets), default=0) + 10)
    rise = max(map(lettering.width, sources), default=0) * _SLANT
    top = round(rise + 16)
    cells = tuple(
        Cell(
            left + _CELL_W * column,
            top + _CELL_H * row,
            figures.ABSENT if share is None else f"{100 * share:.1f}",
            None if share is None else round(0.8 * share, 3),
        )
        for row, line in enumerate(transfer.accuracy)
        for column, share in enumerate(line)
    )
    return Map(
        id=name,
        title=words.of_transfer(transfer),
        text=_text(transfer),
        width=round(left + _CELL_W * len(sources) + rise) + 2,
        height=top + _CELL_H * len(targets) + 2,
        cells=cells,
        rows=tuple(
            (left - 6, top + _CELL_H * (row + 0.5) + 4, one) for row, one in enumerate(targets)
        ),
        columns=tuple(
            (left + _CELL_W * (column + 0.5) - 2, top - 6, one)
            for column, one in enumerate(sources)
        ),
        table=tables.transfer(transfer),
    )


def _text(transfer: Transfer) -> str:
    """The matrix row by row."""
    said = []
    for target, line in zip(transfer.targets, transfer.accuracy, strict=False):
        shares = (
            f"{source} {figures.ABSENT if share is None else figures.percent(share)}"
            for source, share in zip(transfer.sources, line, strict=False)
        )
        said.append(f"{target} on examples for {', '.join(shares)}")
    return "; ".join(said) + "."
