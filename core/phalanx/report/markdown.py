"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from phalanx.evaluation.rows import Row
from phalanx.report import words

if TYPE_CHECKING:
    from phalanx.report.model import Report

_HEAD = ("Defense", "View", "Attack", "Threat", "Clean", "Robust", "95 %", "N", "Passes", "Verdict")
_CONDITIONAL = "Of clean-correct"
_RIGHT = {"Clean", "Robust", _CONDITIONAL, "95 %", "N", "Passes"}
_PLACE = _HEAD.index("95 %")
"""Where the column `_CONDITIONAL` is inserted."""


def render(report: Report) -> str:
    """Worst cases, all rows, what could not be run, environment."""
    verdicts = dict.fromkeys(row.verdict for row in report.rows)
    parts = ["# Robustness report", words.COMPARE]
    parts += [words.VERDICTS[verdict] for verdict in verdicts if verdict in words.VERDICTS]
    parts += ["## Worst case", table(report.worst)]
    parts += ["## Every attack through every view", table(report.rows, conditional=True)]
    parts += words.explained(report.rows)
    notes = [f"- {note}" for note in report.notes]
    notes += [f"- {row.defense}, {words.name(row)}: {row.note}" for row in report.rows if row.note]
    if notes:
        parts += ["## Notes", "\n".join(_one_line(note) for note in notes)]
    if report.failed:
        lines = [
            f"- {one.defense}, {one.view} · {one.attack} ({one.threat}): {one.reason}"
            for one in report.failed
        ]
        parts += ["## Could not be run", "\n".join(_one_line(line) for line in lines)]
    facts = [f"- {key}: {value}" for key, value in report.environment.items() if value is not None]
    parts += ["## Environment", "\n".join(facts)]
    return "\n\n".join(parts) + "\n"


def table(rows: Iterable[Row], *, conditional: bool = False) -> str:
    """Rows as a Markdown table; `conditional` adds the accuracy among clean-correct images."""
    head, lines = list(_HEAD), [(row, _cells(row)) for row in rows]
    if conditional:
        head.insert(_PLACE, _CONDITIONAL)
        for row, cells in lines:
            cells.insert(_PLACE, words.of_clean_correct(row))
    rule = ["---:" if name in _RIGHT else "---" for name in head]
    whole = [head, rule, *(cells for _, cells in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in whole)


def _cells(row: Row) -> list[str]:
    cells = [
        row.defense,
        row.view,
        row.attack,
        row.threat,
        words.percent(row.clean_accuracy),
        words.percent(row.robust_accuracy),
        words.between(row),
        str(row.n),
        f"{words.count(row.forwards)} + {words.count(row.backwards)}",
        row.verdict,
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def _one_line(text: str) -> str:
    return " ".join(text.split())
