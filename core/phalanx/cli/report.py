"""``phalanx report``: a report's pages again from its JSON, without computing anything."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phalanx.cli.common import echo, echo_json
from phalanx.storage import check_output, keeping

if TYPE_CHECKING:
    from phalanx.evaluation.rows import Row
    from phalanx.report.model import Report

EPILOG = """Examples:

  phalanx report report

  phalanx report report --format md > results.md
"""

_HEADER = ("DEFENSE", "VIEW", "ATTACK", "THREAT", "CLEAN", "ROBUST", "95 %", "N", "VERDICT")


class Format(StrEnum):
    """What can be printed."""

    MD = "md"
    JSON = "json"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with report.json.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="Print this instead of the table.")
    ] = None,
) -> None:
    """Write DIR/report.html and .md again from DIR/report.json, and print the table."""
    from phalanx.report.model import Report

    report = Report.load(folder)
    check_output(folder, "DIR", way_out="copy it to a folder that can be written")
    with keeping(f"{folder}/report.json stands: make space, and give the same command again"):
        page = report.save(folder)
    if form is Format.JSON:
        echo_json(report.to_json())
    elif form is Format.MD:
        echo(report.to_markdown().rstrip("\n"))
    else:
        print_report(report)
        echo(f"report: {page}")


def print_report(report: Report) -> None:
    """The rows as a table, and what could not be run."""
    lines = [_cells(row) for row in report.rows]
    if sys.stdout.isatty():
        _print_rich(lines, [row.attack == "worst" for row in report.rows])
    else:
        widths = [max(len(line[at]) for line in [_HEADER, *lines]) for at in range(len(_HEADER))]
        for line in [_HEADER, *lines]:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            echo("  ".join(cells).rstrip())
    for one in report.failed:
        what = f"{one.defense}, {one.view}, {one.attack} ({one.threat})"
        echo(f"could not be run: {what}: {one.reason}")


def _print_rich(lines: list[tuple[str, ...]], strong: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _HEADER:
        table.add_column(name.capitalize(), overflow="fold")
    for line, bold in zip(lines, strong, strict=True):
        table.add_row(*line, style="bold" if bold else None)
    Console(highlight=False, markup=False).print(table)


def _cells(row: Row) -> tuple[str, ...]:
    from phalanx.report import words

    return (
        row.defense,
        row.view,
        row.attack,
        row.threat,
        words.percent(row.clean_accuracy),
        words.percent(row.robust_accuracy),
        words.between(row),
        str(row.n),
        row.verdict,
    )
