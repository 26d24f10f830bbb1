"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from phalanx.report import arrange, lines, tables, words
from phalanx.report.figures import one_line
from phalanx.report.tables import Table

if TYPE_CHECKING:
    from phalanx.report.model import Report

_MEANT = re.compile(
    r"[\\`*|~$]|<(?=[A-Za-z/!?])|](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|^[#>+-](?=\s)"
)
"""What Markdown would read as more than text."""


def render(report: Report) -> str:
    """Summary, what is compared, each defense, all rows, what could not be run, environment."""
    found = arrange.found(report)
    parts = ["# Robustness report", words.COMPARE, words.ORDER]
    parts += words.meanings(report.rows, [one.masking for one in found])
    parts += ["## Worst case", table(tables.summary(report))]
    told = [f"{one.defense}: {one.sentence}" for one in found if one.sentence]
    parts += [listed(told)] if told else []
    for title, blocks in (
        ("Defenses against each other", _comparisons(report)),
        ("Security curves", _curves(report)),
        ("The paper's protocol beside the worst case", _beside(report)),
        ("Transfer", _transfers(report)),
        ("Size and cost", _facts(report)),
        ("Diversity of members", _diversity(report)),
        ("Checks", _checks(report)),
        ("Every attack through every view", _rows(report)),
        ("What papers claim, and what was reproduced", _ledger(report)),
        ("Notes", _notes(report)),
        ("Could not be run", _failed(report)),
    ):
        shown = list(blocks)
        parts += [f"## {title}", *shown] if shown else []
    facts = (f"{key}: {value}" for key, value in report.environment.items() if value is not None)
    parts += ["## Environment", listed(facts)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is; underscores within words are left alone."""
    return _MEANT.sub(r"\\\g<0>", one_line(text))


def table(shown: Table) -> str:
    """A table with its rule; numbers stand to the right."""
    head = [escaped(column.name) for column in shown.columns]
    rule = ["---:" if column.kind == "number" else "---" for column in shown.columns]
    lines = ([escaped(cell) for cell in line] for line in shown.lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def listed(lines: Iterable[str]) -> str:
    """A list with a line for each."""
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _comparisons(report: Report) -> Iterator[str]:
    if report.comparisons:
        yield words.PAIRED
        yield table(tables.comparisons(report))


def _curves(report: Report) -> Iterator[str]:
    if report.curves:
        yield words.CURVES
    for norm, group in arrange.curves(report):
        yield escaped(f"Radius in {norm}:")
        yield table(tables.curves(norm, lines.labels(group), group))
        yield from map(escaped, words.overstated(arrange.masked(report, group)))


def _beside(report: Report) -> Iterator[str]:
    for name in arrange.defenses(report):
        if pairs := arrange.beside(report, name):
            yield f"### {escaped(name)}"
            yield words.BESIDE
            yield table(tables.beside(pairs))


def _transfers(report: Report) -> Iterator[str]:
    if report.transfers:
        yield words.TRANSFERS
    for one in report.transfers:
        yield escaped(f"{words.of_transfer(one)}:")
        yield table(tables.transfer(one))


def _facts(report: Report) -> Iterator[str]:
    shown = tables.facts(arrange.found(report))
    if shown.lines:
        yield table(shown)
        yield words.FACTS


def _diversity(report: Report) -> Iterator[str]:
    found = arrange.found(report)
    shown = tables.diversity(found)
    if shown.lines:
        yield table(shown)
    if told := words.of_diversity(name for one in found for name in one.diversity):
        yield listed(told)


def _checks(report: Report) -> Iterator[str]:
    for one in arrange.found(report):
        if one.checks:
            yield f"### {escaped(one.defense)}: {words.tally(one.checks)}"
            yield table(tables.checks(one))


def _rows(report: Report) -> Iterator[str]:
    yield table(tables.rows(arrange.rows(report)))
    yield from words.explained(report.rows)


def _ledger(report: Report) -> Iterator[str]:
    for one in arrange.found(report):
        if one.claims:
            yield f"### {escaped(one.defense)}"
            yield words.LEDGER
            yield table(tables.ledger(one.claims))


def _notes(report: Report) -> Iterator[str]:
    of_rows = [f"{row.defense}, {words.name(row)}: {row.note}" for row in report.rows if row.note]
    notes = [*report.notes, *of_rows]
    if notes:
        yield listed(notes)


def _failed(report: Report) -> Iterator[str]:
    if report.failed:
        yield listed(
            f"{one.defense}, {one.view} · {one.attack} ({one.threat}): {one.reason}"
            for one in report.failed
        )
