"""``phalanx plugin``: disable and enable installed plugins; never imports one."""

from __future__ import annotations

import difflib
import os
from typing import Annotated

import typer

from phalanx import discovery
from phalanx.cli.common import echo, echo_json
from phalanx.cli.frame import help_of
from phalanx.errors import InputError

Name = Annotated[str, typer.Argument(help="The plugin's id, as 'phalanx plugin list' shows it.")]


def disable(name: Name) -> None:
    """Leave a plugin out from now on; nothing is uninstalled.

    Examples:
        phalanx plugin disable clm
    """
    path = discovery.settings_path(os.environ)
    disabled = discovery.read_disabled(path)
    _check_known(name, also=disabled)
    discovery.write_disabled(path, {*disabled, name})
    echo(f"disabled {name!r} in {path}; 'phalanx plugin enable {name}' brings it back")


def enable(name: Name) -> None:
    """Load a plugin again that was disabled.

    Examples:
        phalanx plugin enable clm
    """
    path = discovery.settings_path(os.environ)
    disabled = discovery.read_disabled(path)
    _check_known(name, also=disabled)
    discovery.write_disabled(path, set(disabled) - {name})
    chosen = discovery.selection(os.environ)
    if name in chosen.disabled:
        echo(f"enabled {name!r} in {path}, but it is still left out: {chosen.disabled[name]}")
    else:
        echo(f"enabled {name!r}" if name in disabled else f"{name!r} was not disabled")


def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the installed plugins by their metadata alone.

    Examples:
        phalanx plugin list
        phalanx plugin list --json
    """
    chosen = discovery.selection(os.environ)
    rows = []
    for one in discovery.scan():
        left_out = one.id in chosen.disabled or (
            chosen.allowed is not None and one.id not in chosen.allowed
        )
        rows.append(
            {
                "id": one.id,
                "package": one.dist,
                "version": one.version,
                "entry_point": one.target,
                "location": one.location,
                "disabled": left_out,
            }
        )
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        state = "disabled" if row["disabled"] else "enabled"
        echo(f"{row['id']}  {row['package']} {row['version']}  {state}  {row['location']}")


def _check_known(name: str, *, also: tuple[str, ...]) -> None:
    """Refuse an id that no installed distribution has, unless it is disabled already."""
    known = {one.id for one in discovery.scan()} | set(also)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(sorted(known))}"
        raise InputError(f"unknown plugin {name!r}; {hint}")


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Disable and enable plugins; nothing is installed or uninstalled.",
)
app.command("disable", help=help_of(disable))(disable)
app.command("enable", help=help_of(enable))(enable)
app.command("list", help=help_of(list_plugins))(list_plugins)
