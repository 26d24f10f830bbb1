"""``phalanx list``: the components there are, and those that are known but not installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx import catalog
from phalanx.cli.common import absence, echo, echo_json, load_registry
from phalanx.specs import Kind

if TYPE_CHECKING:
    from phalanx.registry import Registry

_HEADER = ("KIND", "NAME", "PLUGIN", "SUMMARY")


def command(
    kind: Annotated[Kind | None, typer.Argument(help="Only this kind.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List components: installed ones, and known ones with the line that installs them.

    Examples:
        phalanx list
        phalanx list attack
        phalanx list --json
    """
    rows = entries(load_registry(), kind)
    if as_json:
        echo_json(rows)
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        _print_text(rows)


def entries(registry: Registry, kind: Kind | None = None) -> list[dict[str, Any]]:
    """One mapping per component, installed ones first in each kind."""
    rows = [
        _entry(one.spec.kind, one.spec.name, one.plugin, one.spec.summary, state="installed")
        | {"package": one.dist, "version": one.version}
        for one in registry.specs(kind)
    ]
    there = {(row["kind"], row["name"]) for row in rows}
    for plugin in catalog.load().plugins:
        for known in plugin.components:
            if (known.kind, known.name) in there or kind not in (None, known.kind):
                continue
            state, line = absence(registry, plugin)
            row = _entry(known.kind, known.name, plugin.id, known.summary, state=state)
            rows.append(row | {"package": plugin.package, "version": "", "install": line})
    order = list(Kind)
    return sorted(rows, key=lambda row: (order.index(row["kind"]), not row["installed"]))


def _entry(kind: Kind, name: str, plugin: str, summary: str, *, state: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "plugin": plugin,
        "installed": state == "installed",
        "state": state,
        "summary": summary,
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    note = "" if row["installed"] else f" ({row['state']}: {row['install']})"
    return str(row["kind"]), row["name"], row["plugin"], row["summary"] + note


def _print_text(rows: list[dict[str, Any]]) -> None:
    lines = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        left = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        echo(f"{left}  {line[-1]}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _HEADER:
        table.add_column(name.capitalize(), no_wrap=name == "NAME")
    for row in rows:
        table.add_row(*_cells(row), style=None if row["installed"] else "dim")
    Console(highlight=False, markup=False).print(table)
