"""One plugin under test in a process of its own, run by ``phalanx doctor``.

``python -m phalanx.cli.probe import ID`` loads its thin module; ``… resolve ID`` imports the
factory and the config of each of its components. The last line of standard output is JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import ValidationError

import phalanx
from phalanx import discovery, plugins
from phalanx.errors import PhalanxError
from phalanx.registry import Registered, Registry
from phalanx.specs import Linf


def load(plugin: str) -> dict[str, Any]:
    """What loading this plugin alone gives: its components, or the failure."""
    found = [one for one in discovery.scan() if one.id == plugin]
    loaded = plugins.load(found, core_version=phalanx.__version__)
    if loaded.failures:
        failure = loaded.failures[0]
        return {
            "stage": failure.stage,
            "problems": [discovery.describe(failure.error)],
            "error": type(failure.error).__name__,
            "components": [[spec.kind, spec.name] for spec in failure.components],
        }
    one = loaded.plugins[0]
    return {
        "problems": [],
        "components": [[spec.kind, spec.name] for spec in one.components],
        "seconds": round(one.seconds, 3),
    }


def resolve(plugin: str) -> dict[str, Any]:
    """Problems and remarks from importing the factory and config of each component."""
    alone = discovery.Selection(disabled={}, allowed=frozenset([plugin]))
    registry = Registry(selection=alone)
    problems: list[str] = []
    notes: list[str] = []
    for one in registry.specs():
        if one.plugin == plugin:
            _resolve(registry, one, problems, notes)
    return {"problems": problems, "notes": notes}


def _resolve(registry: Registry, one: Registered, problems: list[str], notes: list[str]) -> None:
    spec = one.spec
    label = f"{spec.kind} {spec.name!r}"
    name = spec.family + "Name" if spec.family else spec.name
    try:
        registry.factory(spec.kind, name)
        config = registry.config_class(spec.kind, name)
    except PhalanxError as error:
        problems.append(str(error))
        return
    given = {"name": "Name"} if spec.family else {}
    fields = config.model_fields.items()
    required = [key for key, field in fields if field.is_required() and key not in given]
    if required:
        notes.append(f"{label} has keys without a default: {', '.join(required)}")
        return
    try:
        config.model_validate(given, context={"registry": registry, "threat": Linf("8/255")})
    except ValidationError as error:
        problems.extend(
            f"{label}: its defaults are refused: {line['msg']}" for line in error.errors()
        )


def main() -> None:
    """Run one stage on one plugin, both named on the command line."""
    stage, plugin = sys.argv[1:]
    answer = load(plugin) if stage == "import" else resolve(plugin)
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
