"""The tables of a report as cells of text, which each form of it draws in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phalanx.evaluation.findings import Curve, DefenseFindings, LedgerEntry, Transfer
from phalanx.evaluation.rows import Row
from phalanx.report import arrange, figures, words

if TYPE_CHECKING:
    from phalanx.report.model import Report


@dataclass(frozen=True)
class Column:
    """A column's name, and whether it holds numbers (right), names (may break) or prose."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Cells of text under named columns; the first column names the line."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]


def of(names: str | Sequence[str], lines: Iterable[Iterable[str]]) -> Table:
    """A table; a name starts with ``:`` over numbers, ``=`` over names, ``~`` over prose.

    Args:
        names: of the columns; as one text they are split at `` | ``.
        lines: as many cells in each as there are columns.

    Raises:
        ValueError: if a line has more or fewer cells.
    """
    kinds = {":": "number", "=": "name", "~": "text"}
    split = names.split(" | ") if isinstance(names, str) else names
    columns = tuple(
        Column(one[1:], kinds[one[0]]) if one[:1] in kinds else Column(one) for one in split
    )
    cells = tuple(tuple(line) for line in lines)
    for line in cells:
        if len(line) != len(columns):
            raise ValueError(f"{len(columns)} columns, but a line of {len(line)}: {line}")
    return Table(columns, cells)


def summary(report: Report) -> Table:
    """The worst cases, threat by threat, the most trusted first."""
    ranked = arrange.ranked(report)
    if not report.defenses:
        return of(f"=Defense | View | =Attack | Threat | {_NUMBERS}", map(_cells, ranked))
    return of(
        f"=Defense | Masking | Threat | {_NUMBERS}",
        ((row.defense, arrange.masking(report, row.defense), *_cells(row)[3:]) for row in ranked),
    )


def rows(found: Sequence[Row]) -> Table:
    """All rows, with the accuracy among clean-correct images.

    Majority and worst draw where a row has them, the protocol where one is named.
    """
    named = any(row.protocol for row in found)
    drawn = any(arrange.is_drawn(row) for row in found)
    head = f"=Defense | View | =Attack | Threat | {_NUMBERS}"
    more = ":Of clean-correct" + (" | :Right in most draws | :Worst draw" if drawn else "")
    head = head.replace(":95 %", f"{more} | :95 %") + (" | Protocol" if named else "")
    lines = []
    for row in found:
        cells = _cells(row)
        of_draws = [_share(row.majority), _share(row.worst_draw)] if drawn else []
        cells[6:6] = [figures.of_clean_correct(row), *of_draws]
        lines.append(cells + ([row.protocol or ""] if named else []))
    return of(head, lines)


_NUMBERS = ":Clean | :Robust | :95 % | :N | :Passes | Verdict"


def _cells(row: Row) -> list[str]:
    return [
        row.defense,
        row.view,
        row.attack,
        row.threat,
        figures.percent(row.clean_accuracy),
        figures.percent(row.robust_accuracy),
        figures.between(row),
        str(row.n),
        figures.passes(row.forwards, row.backwards),
        row.verdict,
    ]


def comparisons(report: Report) -> Table:
    """The paired comparisons."""
    return of(
        "=First against second | Threat | :Difference | :95 % | :p | Test | :Images | =Better",
        (
            (
                f"{one.first} against {one.second}",
                one.threat,
                figures.points(one.difference),
                figures.from_to(one.ci95),
                figures.p_value(one.p_value),
                words.TESTS[one.test],
                str(one.n),
                words.decided(one),
            )
            for one in report.comparisons
        ),
    )


def curves(norm: str, labels: Sequence[str], group: Sequence[Curve]) -> Table:
    """A line for each curve of one norm, a column for each radius."""
    radii = arrange.radii(group)

    def cells(curve: Curve) -> list[str]:
        at = {point.eps: point for point in curve.points}
        return [figures.with_interval(at[eps]) if eps in at else figures.ABSENT for eps in radii]

    head = ["=Defense", ":Images", *(f":{figures.radius(eps, norm)}" for eps in radii)]
    return of(
        head,
        ((label, str(curve.n), *cells(curve)) for label, curve in zip(labels, group, strict=True)),
    )


def transfer(matrix: Transfer) -> Table:
    """A line for each target, a column for each source."""
    head = ["=Asked", *(f":{name}" for name in matrix.sources)]
    lines = zip(matrix.targets, matrix.accuracy, strict=False)
    return of(head, ((target, *map(_share, shares)) for target, shares in lines))


def _share(share: float | None) -> str:
    return figures.ABSENT if share is None else figures.percent(share)


def beside(pairs: Iterable[arrange.Beside]) -> Table:
    """The paper's protocol of one defense beside its worst case; the gap in points."""

    def accuracy(row: Row | None) -> str:
        if row is None:
            return figures.ABSENT
        return f"{figures.percent(row.robust_accuracy)} ({figures.between(row)})"

    return of(
        "=Attack of the paper's protocol | Threat | :It gives | :Of clean-correct | "
        ":Worst case here | :Gap, points",
        (
            (
                words.name(one.paper).removeprefix(words.OF_PAPER),
                one.paper.threat,
                accuracy(one.paper),
                figures.of_clean_correct(one.paper),
                accuracy(one.worst),
                figures.ABSENT if one.gap is None else figures.points(one.gap),
            )
            for one in pairs
        ),
    )


def facts(found: Iterable[DefenseFindings]) -> Table:
    """Size and cost of those defenses of which they are known."""
    return of(
        "=Defense | :Parameters | :Non-zeros | :On disk | :Latency | :Training passes",
        (
            (
                one.defense,
                figures.integer(one.facts.parameters),
                figures.kept(one.facts.nonzero, one.facts.parameters),
                figures.size(one.facts.bytes),
                figures.latency(one.facts.latency, one.facts.latency_batch),
                figures.passes(one.facts.training_forwards, one.facts.training_backwards),
            )
            for one in found
            if one.facts is not None
        ),
    )


def diversity(found: Iterable[DefenseFindings]) -> Table:
    """A line for each defense that has any diversity value, a column for each value."""
    with_any = [one for one in found if one.diversity]
    names = list(dict.fromkeys(name for one in with_any for name in one.diversity))
    return of(
        ["=Defense", *(f":{name}" for name in names)],
        (
            (one.defense, *(figures.value(one.diversity.get(name)) for name in names))
            for one in with_any
        ),
    )


def checks(found: DefenseFindings) -> Table:
    """The checks of one defense, failing ones first."""
    return of(
        "=Check | Status | :Value | :Count | ~Threshold | ~Found | =Source",
        (
            (
                one.id,
                one.status,
                figures.value(one.value),
                figures.of(one),
                one.threshold,
                words.said(one),
                one.source,
            )
            for one in arrange.checks(found.checks)
        ),
    )


def ledger(claims: Iterable[LedgerEntry]) -> Table:
    """Claims beside reproductions."""
    return of(
        "=Data, metric and threat | ~Setting | :Claimed | :Reproduced | =Source | Status",
        (
            (
                words.of_quantity(quantity),
                words.listed([line.entries[0].attack, line.entries[0].setting]),
                figures.value(line.claim.value if line.claim else None),
                figures.value(line.reproduction.value if line.reproduction else None),
                words.listed([text for one in line.entries for text in (one.source, one.evidence)]),
                line.entries[-1].status,
            )
            for quantity in arrange.ledger(claims)
            for line in quantity.lines
        ),
    )
