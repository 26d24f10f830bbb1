"""In which order a report is read, and what stands beside what; every form of it asks here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phalanx.evaluation.findings import (
    Check,
    Curve,
    DefenseFindings,
    LedgerEntry,
    Masking,
    Status,
    Transfer,
)
from phalanx.evaluation.rows import WORST, Row, Verdict

if TYPE_CHECKING:
    from phalanx.report.model import Report

VERDICTS: tuple[Verdict, ...] = ("trusted", "caution", "screened", "incomplete", "unreliable")
"""Most trusted first: the reverse of the precedence in which verdicts are given."""
STATUSES: tuple[Status, ...] = ("fail", "warn", "not-run", "pass", "not-applicable")
"""Of checks, what a reader has to know first."""
PAPER = "paper"
"""Protocol of a row that the paper's own protocol asks for, beside another."""
REPRODUCTION = "reproduction"
"""Source of a line of the ledger that is no paper's claim."""


def is_worst(row: Row) -> bool:
    """Whether defenses are compared by it: a worst case, and not that of a paper's own protocol."""
    return row.attack == WORST and row.protocol != PAPER


def is_drawn(row: Row) -> bool:
    """Whether it has what only a random model's rows have: majority and worst draw."""
    return row.majority is not None and row.worst_draw is not None


def summary(report: Report) -> list[tuple[str, tuple[Row, ...]]]:
    """The worst cases of each threat: by verdict, most trusted first, then by accuracy."""
    threats = dict.fromkeys(row.threat for row in report.worst)
    return [
        (threat, tuple(sorted((row for row in report.worst if row.threat == threat), key=_trust)))
        for threat in threats
    ]


def ranked(report: Report) -> tuple[Row, ...]:
    """The rows of `summary`, one threat after the other."""
    return tuple(row for _, rows in summary(report) for row in rows)


def _trust(row: Row) -> tuple[int, float]:
    return VERDICTS.index(row.verdict), -row.robust_accuracy


def defenses(report: Report) -> list[str]:
    """The names of all defenses, those of the first threat's summary first and in its order."""
    return list(dict.fromkeys(_names(report)))


def _names(report: Report) -> Iterator[str]:
    yield from (row.defense for row in ranked(report))
    yield from (row.defense for row in report.rows)
    yield from (one.defense for one in report.defenses)
    yield from (one.defense for one in report.curves)
    yield from (one.defense for one in report.transfers if one.kind == "members")
    yield from (one.defense for one in report.examples)


def rows(report: Report) -> tuple[Row, ...]:
    """All rows, in the order of `defenses`; within one defense as they were measured."""
    place = {name: number for number, name in enumerate(defenses(report))}
    return tuple(sorted(report.rows, key=lambda row: place[row.defense]))


def findings(report: Report, defense: str) -> DefenseFindings:
    """What was found of a defense; empty findings where nothing was."""
    found = (one for one in report.defenses if one.defense == defense)
    return next(found, DefenseFindings(defense=defense))


def found(report: Report) -> list[DefenseFindings]:
    """What was found of each defense, in the order of `defenses`."""
    with_findings = {one.defense for one in report.defenses}
    return [findings(report, name) for name in defenses(report) if name in with_findings]


def masking(report: Report, defense: str) -> Masking:
    """Of a defense; unknown where nothing was found of it."""
    return findings(report, defense).masking


def checks(found: Iterable[Check]) -> list[Check]:
    """Failing ones first, then warnings, then what has not run."""
    return sorted(found, key=lambda check: STATUSES.index(check.status))


@dataclass(frozen=True)
class Beside:
    """A row of the paper's own protocol, and the worst case of the same defense and threat."""

    paper: Row
    worst: Row | None

    @property
    def gap(self) -> float | None:
        """By how much the paper's protocol is above; None where no worst case has its threat."""
        if self.worst is None:
            return None
        return self.paper.robust_accuracy - self.worst.robust_accuracy


def beside(report: Report, defense: str) -> list[Beside]:
    """The paper's protocol of a defense, each row beside the worst case of its threat."""
    worst = {row.threat: row for row in report.worst if row.defense == defense}
    return [
        Beside(row, worst.get(row.threat))
        for row in report.rows
        if row.defense == defense and row.protocol == PAPER
    ]


def curves(report: Report) -> list[tuple[str, list[Curve]]]:
    """The security curves of each norm, in the order of `defenses`."""
    place = {name: number for number, name in enumerate(defenses(report))}
    ordered = sorted(report.curves, key=lambda curve: place[curve.defense])
    norms = dict.fromkeys(curve.norm for curve in report.curves)
    return [(norm, [curve for curve in ordered if curve.norm == norm]) for norm in norms]


def masked(report: Report, group: Iterable[Curve]) -> list[tuple[str, Masking]]:
    """The defense of each of some curves, and its masking."""
    return [(curve.defense, masking(report, curve.defense)) for curve in group]


def radii(group: Iterable[Curve]) -> list[float]:
    """The radii of some curves, each once, ascending."""
    return sorted({point.eps for curve in group for point in curve.points})


def between_models(report: Report) -> list[Transfer]:
    """Transfer matrices between the models of the report."""
    return [one for one in report.transfers if one.kind == "models"]


def between_members(report: Report, defense: str) -> list[Transfer]:
    """Transfer matrices within a defense."""
    return [one for one in report.transfers if one.kind == "members" and one.defense == defense]


@dataclass(frozen=True)
class Line:
    """A line of the ledger: a paper's claim and its reproduction, one of which may be absent."""

    claim: LedgerEntry | None
    reproduction: LedgerEntry | None

    @property
    def entries(self) -> list[LedgerEntry]:
        """Those that are there, the claim first."""
        return [one for one in (self.claim, self.reproduction) if one is not None]


@dataclass(frozen=True)
class Quantity:
    """What claims and reproductions of one data set, threat and metric say; settings may differ."""

    dataset: str
    threat: str
    metric: str
    conditional: bool
    lines: tuple[Line, ...]

    @property
    def reproduced(self) -> bool:
        """Whether any line is a reproduction."""
        return any(line.reproduction is not None for line in self.lines)


def ledger(claims: Iterable[LedgerEntry]) -> list[Quantity]:
    """The claims by quantity, those with reproductions first.

    A claim and a reproduction share a line only where attack and setting are the same too; other
    reproductions follow the claims of their quantity.
    """
    groups: dict[tuple[str, str, str, bool], list[LedgerEntry]] = {}
    for one in claims:
        key = (one.dataset, one.threat, one.metric, one.conditional)
        groups.setdefault(key, []).append(one)
    found = [Quantity(*key, tuple(_lines(entries))) for key, entries in groups.items()]
    return sorted(found, key=lambda quantity: not quantity.reproduced)


def _lines(entries: Iterable[LedgerEntry]) -> Iterator[Line]:
    papers: list[LedgerEntry] = []
    reproductions: list[LedgerEntry] = []
    for one in entries:
        (reproductions if one.source == REPRODUCTION else papers).append(one)
    for claim in papers:
        same = [one for one in reproductions if _setting(one) == _setting(claim)]
        if same:
            reproductions.remove(same[0])
        yield Line(claim, same[0] if same else None)
    yield from (Line(None, one) for one in reproductions)


def _setting(entry: LedgerEntry) -> tuple[str, str]:
    return entry.attack, entry.setting
