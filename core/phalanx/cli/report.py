"""``phalanx report``: a report's pages again from its JSON, without computing anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phalanx.cli.common import echo, echo_json
from phalanx.storage import check_output, keeping

if TYPE_CHECKING:
    from phalanx.evaluation.findings import DefenseFindings
    from phalanx.evaluation.rows import Row
    from phalanx.report.model import Report

EPILOG = """Examples:

  phalanx report report

  phalanx report report --format md > results.md

  phalanx report report --format tex > table.tex
"""

_HEADER = ("DEFENSE", "VIEW", "ATTACK", "THREAT", "CLEAN", "ROBUST", "95 %", "N", "VERDICT")


class Format(StrEnum):
    """What can be printed."""

    MD = "md"
    JSON = "json"
    TEX = "tex"
    CSV = "csv"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with report.json.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="Print this instead of the table.")
    ] = None,
) -> None:
    """Write DIR/report.html, .md, .tex and .csv again from DIR/report.json; print the table."""
    from phalanx.report.model import Report

    report = Report.load(folder)
    check_output(folder, "DIR", way_out="copy it to a folder that can be written")
    with keeping(f"{folder}/report.json stands: make space, and give the same command again"):
        page = report.save(folder)
    if form is Format.JSON:
        echo_json(report.to_json())
    elif form is not None:
        text = {
            Format.MD: report.to_markdown,
            Format.TEX: report.to_latex,
            Format.CSV: report.to_csv,
        }[form]()
        echo(text.rstrip("\n"))
    else:
        print_report(report)
        echo(f"report: {page}")


def print_report(report: Report) -> None:
    """The rows as a table, what the verdicts rest on, the notes, and what could not be run.

    Defenses stand in the order of the report's summary: by the verdict of their worst case, the
    most trusted first, then by its accuracy.
    """
    from phalanx.report import arrange

    rows = arrange.rows(report)
    named = any(row.protocol for row in rows)
    header = (*_HEADER, "PROTOCOL") if named else _HEADER
    lines = [(*_cells(row), row.protocol or "") if named else _cells(row) for row in rows]
    if sys.stdout.isatty():
        _print_rich(header, lines, [arrange.is_worst(row) for row in rows])
    else:
        widths = [max(len(line[at]) for line in [header, *lines]) for at in range(len(header))]
        for line in [header, *lines]:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            echo("  ".join(cells).rstrip())
    for found in arrange.found(report):
        echo(_judged(report, found))
    for note in report.notes:
        echo(f"note: {' '.join(note.split())}")
    for one in report.failed:
        what = f"{one.defense}, {one.view}, {one.attack} ({one.threat})"
        echo(f"could not be run: {what}: {one.reason}")


def _judged(report: Report, found: DefenseFindings) -> str:
    """``clm, masking unknown: Caution: why.``; without a reason the verdict of each worst case."""
    worst = [row for row in report.worst if row.defense == found.defense]
    said = found.sentence or ", ".join(f"{row.verdict} ({row.threat})" for row in worst)
    return f"{found.defense}, masking {found.masking}: {said}"


def _print_rich(
    header: Sequence[str], lines: Sequence[tuple[str, ...]], strong: Sequence[bool]
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in header:
        table.add_column(name.capitalize(), overflow="fold")
    for line, bold in zip(lines, strong, strict=True):
        table.add_row(*line, style="bold" if bold else None)
    Console(highlight=False, markup=False).print(table)


def _cells(row: Row) -> tuple[str, ...]:
    from phalanx.report import figures

    return (
        row.defense,
        row.view,
        row.attack,
        row.threat,
        figures.percent(row.clean_accuracy),
        figures.percent(row.robust_accuracy),
        figures.between(row),
        str(row.n),
        row.verdict,
    )
