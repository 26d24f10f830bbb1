"""What several commands share: output, the registry with its failures told, ``--set``."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from phalanx.errors import ConfigError

if TYPE_CHECKING:
    from phalanx.catalog import CatalogPlugin
    from phalanx.registry import Registry

SLOW_IMPORT = 1.0
"""Seconds after which a plugin's import is named."""
_SECONDS = 3.0
"""Between two lines on the check of a folder's files."""


def echo(text: str = "") -> None:
    """Write a line to standard output."""
    typer.echo(text)


def warn(text: str) -> None:
    """Write a line to standard error."""
    typer.echo(text, err=True)


def echo_json(value: Any) -> None:
    """Write a value as JSON to standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def load_registry() -> Registry:
    """The default registry; plugins that failed or were slow are named on standard error."""
    from phalanx.registry import default_registry

    with contextlib.redirect_stdout(sys.stderr):  # a plugin may print, and --json must stay JSON
        registry = default_registry()
    for failure in registry.failures:
        warn(str(failure))
    for plugin in registry.plugins:
        if plugin.seconds > SLOW_IMPORT:
            warn(
                f"plugin {plugin.id!r} ({plugin.found.label}) took {plugin.seconds:.1f} s to "
                f"import: its plugin module should import nothing heavy"
            )
    return registry


def run_kept(out: Path) -> str:
    """What an interrupted training leaves in its run folder, and how to go on."""
    folder = shlex.quote(str(out))
    if (out / "manifest.json").exists():
        return f"the run in {out} is finished: phalanx evaluate {folder} --out {folder}/report"
    try:
        state = json.loads((out / "state.json").read_bytes())
        kept = bool(state["running"] or state["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        kept = False
    if not kept:
        return f"no checkpoint had been written, so nothing is kept in {out}"
    go_on = f"phalanx train {folder}/config.json --resume --out {folder}"
    return f"the last checkpoint is kept; go on with: {go_on}"


def files_checked() -> Callable[[int, int], None]:
    """What says on standard error every few seconds how far the check of a folder's files is."""
    said = time.monotonic()

    def told(done: int, files: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS:
            said = time.monotonic()
            warn(f"checked {done} of {files} files")

    return told


def absence(registry: Registry, plugin: CatalogPlugin) -> tuple[str, str]:
    """Why a known plugin's components are not there, and what brings them."""
    if plugin.id in registry.disabled:
        return "disabled", registry.disabled[plugin.id]
    if any(failure.id == plugin.id for failure in registry.failures):
        return "broken", f"run 'phalanx doctor {plugin.id}'"
    return "not installed", plugin.install


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """``["defense.params.members=5"]`` as nested tables, for `phalanx.runfile.read_run`.

    A value is read as TOML where it is TOML (``5``, ``0.1``, ``true``, ``["a"]``), else as text.

    Raises:
        ConfigError: with every assignment that is not ``key.path=value`` or contradicts another.
    """
    tables: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            problems.append(f"{assignment!r} is not of the form key.path=value")
        elif not _put(tables, keys, _value(text.strip())):
            problems.append(f"{assignment!r} contradicts an earlier --set")
    if problems:
        raise ConfigError(problems, source="--set")
    return tables


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text


def _put(table: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    """Set a nested key; False if a value stands where a table is needed, or the reverse."""
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return False
    if isinstance(table.get(keys[-1]), dict):
        return False
    table[keys[-1]] = value
    return True
