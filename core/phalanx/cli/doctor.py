"""``phalanx doctor``: imports each plugin in a process of its own and names what is broken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from phalanx import catalog, discovery
from phalanx.cli.common import echo, echo_json
from phalanx.errors import InputError

IMPORT_SECONDS = 10
"""Limit of a plugin's thin import."""
RESOLVE_SECONDS = 180
"""Limit of importing its components, torch among them."""

_PACKAGES = ("phalanx", "torch", "torchvision", "timm", "adversarial-robustness-toolbox")


def command(
    plugins: Annotated[
        list[str] | None, typer.Argument(help="Only these plugins; 'core' is the core itself.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Check each plugin in a process of its own; exit code 1 if one is broken.

    Examples:
        phalanx doctor
        phalanx doctor pdd clm
        phalanx doctor --json
    """
    findings = examine(plugins or [])
    if as_json:
        echo_json({"environment": _environment(), "plugins": findings})
    else:
        echo(", ".join(f"{name} {number}" for name, number in _environment().items()))
        for finding in findings:
            _print(finding)
    if any(finding["state"] == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(wanted: list[str]) -> list[dict[str, Any]]:
    """One finding per installed distribution with a plugin, and one for the core.

    Raises:
        InputError: if a wanted plugin is not installed.
    """
    found = [
        discovery.FoundPlugin(discovery.CORE, "phalanx.builtin", "phalanx", _version("phalanx"))
    ]
    found += discovery.scan()
    unknown = sorted(set(wanted) - {one.id for one in found})
    if unknown:
        known = ", ".join(dict.fromkeys(one.id for one in found))
        raise InputError(f"unknown plugin {unknown[0]!r}; installed: {known}")
    chosen = discovery.selection(os.environ)
    findings = []
    for one in found:
        left_out = one.id in chosen.disabled or (
            chosen.allowed is not None and one.id not in chosen.allowed and one.id != discovery.CORE
        )
        if wanted and one.id not in wanted:
            continue
        if left_out and not wanted:
            findings.append(_finding(one, "disabled"))
        else:
            findings.append(_examine_one(one))
    _find_clashes(findings)
    return findings


def _examine_one(found: discovery.FoundPlugin) -> dict[str, Any]:
    loaded: dict[str, Any] = {"problems": [], "components": []}
    if found.id != discovery.CORE:
        loaded = _probe("import", found.id, IMPORT_SECONDS)
    if loaded["problems"]:
        return _finding(found, "broken", **loaded)
    resolved = _probe("resolve", found.id, RESOLVE_SECONDS)
    state = "broken" if resolved["problems"] else "ok"
    return _finding(found, state, **{**loaded, **resolved})


def _probe(stage: str, plugin: str, seconds: float) -> dict[str, Any]:
    """The answer of `phalanx.cli.probe` in a subprocess, which survives whatever happens there."""
    environ = {**os.environ, "PHALANX_PLUGINS": plugin, "PHALANX_DISABLE": "", "PHALANX_STRICT": ""}
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "phalanx.cli.probe", stage, plugin],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"stage": stage, "problems": [f"its import did not end within {seconds:g} s"]}
    answer = _answer(ended.stdout) if ended.returncode == 0 else None
    if answer is not None:
        return {"stage": stage, **answer}
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"code {ended.returncode}"
    return {"stage": stage, "problems": [f"its process ended with {how}: {last}"]}


def _answer(text: str) -> dict[str, Any] | None:
    """The probe's line of JSON; a plugin may have printed before it and after it."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "problems" in found:
            return found
    return None


def _find_clashes(findings: list[dict[str, Any]]) -> None:
    """Mark plugins that claim one component's name, which no probe of one plugin sees."""
    claims: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for finding in findings:
        for kind, name in finding["components"]:
            claims[kind, name].append(finding)
    for (kind, name), claimants in claims.items():
        ids = {finding["id"] for finding in claimants}
        for finding in claimants if len(ids) > 1 else ():
            others = " and ".join(repr(one) for one in sorted(ids - {finding["id"]}))
            problem = f"it and the plugin {others} both register the {kind} {name!r}"
            finding |= {"state": "broken", "error": "DuplicatePluginError", "stage": "components"}
            finding["problems"].append(problem)
            finding["fix"] = _fix(finding)


def _finding(found: discovery.FoundPlugin, state: str, **rest: Any) -> dict[str, Any]:
    finding = {
        "id": found.id,
        "package": found.dist,
        "version": found.version,
        "location": found.location,
        "state": state,
        "problems": [],
        "notes": [],
        "components": [],
        **rest,
    }
    if state == "broken":
        finding["fix"] = _fix(finding)
    return finding


def _fix(finding: dict[str, Any]) -> str:
    """What a user can do about a broken plugin."""
    package, label = finding["package"], f"{finding['package']} {finding['version']}"
    if finding["id"] == discovery.CORE:
        return "install phalanx again, with its dependencies"
    home = next((one for one in catalog.load().plugins if one.id == finding["id"]), None)
    error = finding.get("error", "")
    if error == "DuplicatePluginError":
        fix = f"pip uninstall {package}"
    elif error == "IncompatiblePluginError" or _wants_another_api(finding):
        fix = f"install a version of {package} that is made for phalanx {_version('phalanx')}"
    elif home is not None:
        fix = f"install it again, with its dependencies: {home.install}"
    elif error == "ModuleNotFoundError":
        fix = f"install {package} again, with its dependencies"
    else:
        fix = f"tell the authors of {label}"
    return f"{fix}; until then: phalanx plugin disable {finding['id']}"


def _wants_another_api(finding: dict[str, Any]) -> bool:
    """Whether it asks phalanx.api for a name that this version does not have."""
    return any("'phalanx.api'" in problem for problem in finding["problems"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _environment() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _print(finding: dict[str, Any]) -> None:
    echo(f"{finding['id']} ({finding['package']} {finding['version']}): {finding['state']}")
    for problem in finding["problems"]:
        echo(f"  problem: {problem}")
    for note in finding["notes"]:
        echo(f"  note: {note}")
    if "fix" in finding:
        echo(f"  fix: {finding['fix']}")
