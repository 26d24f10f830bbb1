"""A report as one page: no script, no network, readable on a phone and in print.

The pictures are SVG in the page; their geometry is computed in `bars`, `lines` and `maps`, the
templates only place it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from phalanx.evaluation.findings import Check, DefenseFindings, Example, Transfer
from phalanx.evaluation.rows import Row
from phalanx.report import arrange, bars, figures, lines, maps, tables, words
from phalanx.report.bars import Bars
from phalanx.report.maps import Map
from phalanx.report.tables import Table

if TYPE_CHECKING:
    from phalanx.report.model import Report

FEW = 4
"""Sections up to which the tables of all attacks stand open."""


@dataclass(frozen=True)
class Section:
    """A defense under one threat: its picture and its rows, view by view."""

    defense: str
    threat: str
    rows: tuple[Row, ...]
    picture: Bars

    @property
    def views(self) -> list[tuple[str, tuple[Row, ...]]]:
        """The rows of each view, the worst case last."""
        names = dict.fromkeys(row.view for row in self.rows)
        return [(name, tuple(row for row in self.rows if row.view == name)) for name in names]


@dataclass(frozen=True)
class Chapter:
    """All that is said of one defense alone.

    Attributes:
        id: of the page's anchor.
        name: the defense.
        findings: None where nothing was found of it besides its rows.
        worst: its rows to compare by.
        checks: failing ones first.
        sections: one for each threat.
        beside: the paper's protocol beside the worst case.
        transfers: between its members.
        examples: its pictures.
        ledger: claims beside reproductions.
    """

    id: str
    name: str
    findings: DefenseFindings | None
    worst: tuple[Row, ...]
    checks: list[Check]
    sections: list[Section]
    beside: Table
    transfers: list[Map]
    examples: list[Example]
    ledger: Table

    @property
    def urgent(self) -> list[Check]:
        """The checks that failed or warn; they stand in the open."""
        return [check for check in self.checks if check.status in {"fail", "warn"}]


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("phalanx.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"words": words, "figures": figures}
    environment.filters["joined"] = _joined
    told = chapters(report)
    found = arrange.found(report)
    summary = arrange.summary(report)
    known: dict[str, Any] = {
        "report": report,
        "summary": summary,
        "found": {one.defense: one for one in found},
        "ids": {chapter.name: chapter.id for chapter in told},
        "overview": bars.overview(arrange.ranked(report)),
        "meanings": words.meanings(report.rows, [one.masking for one in found]),
        "comparisons": tables.comparisons(report),
        "curves": [
            lines.of_norm(
                f"curves-{number}", norm, curves=group, masked=arrange.masked(report, group)
            )
            for number, (norm, group) in enumerate(arrange.curves(report), start=1)
        ],
        "transfers": _maps("transfer", arrange.between_models(report)),
        "facts": tables.facts(found),
        "diversity": tables.diversity(found),
        "diversity_meanings": words.of_diversity(name for one in found for name in one.diversity),
        "chapters": told,
        "open": sum(len(chapter.sections) for chapter in told) <= FEW,
    }
    return environment.get_template("report.html.j2").render(known) + "\n"


def chapters(report: Report) -> list[Chapter]:
    """One for each defense, in the order of the summary."""
    return [
        _chapter(report, name, f"defense-{number}")
        for number, name in enumerate(arrange.defenses(report), start=1)
    ]


def _chapter(report: Report, name: str, anchor: str) -> Chapter:
    found = next((one for one in report.defenses if one.defense == name), None)
    return Chapter(
        id=anchor,
        name=name,
        findings=found,
        worst=tuple(row for row in report.worst if row.defense == name),
        checks=arrange.checks(found.checks) if found else [],
        sections=_sections(report, name, anchor),
        beside=tables.beside(arrange.beside(report, name)),
        transfers=_maps(f"{anchor}-members", arrange.between_members(report, name)),
        examples=[one for one in report.examples if one.defense == name],
        ledger=tables.ledger(found.claims if found else ()),
    )


def _sections(report: Report, name: str, anchor: str) -> list[Section]:
    own = [row for row in report.rows if row.defense == name]
    found = []
    for number, threat in enumerate(dict.fromkeys(row.threat for row in own), start=1):
        rows = tuple(row for row in own if row.threat == threat)
        picture = bars.of_rows(f"{anchor}-threat-{number}", rows)
        found.append(Section(name, threat, rows, picture))
    return found


def _maps(name: str, transfers: Sequence[Transfer]) -> list[Map]:
    return [
        maps.of_transfer(f"{name}-{number}", one) for number, one in enumerate(transfers, start=1)
    ]


def _joined(text: str) -> str:
    """Numbers with their signs and units, which a narrow column must not tear apart."""
    for sign in (" %", " – ", "< ", " to ", " + ", " of "):
        text = text.replace(sign, sign.replace(" ", "\N{NO-BREAK SPACE}"))
    return text
