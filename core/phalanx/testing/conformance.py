"""The conformance suite: what the interface promises of any component, checked on a tiny task.

Each check is a plain function ``check_<property>(case)`` that raises `AssertionError` with what the
component should have done. `check_component` chooses the checks by the component's kind, runs all
of them, and tells all failures at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phalanx.registry import default_registry
from phalanx.specs import ComponentSpec, Kind
from phalanx.testing import attack_checks, component_checks, defense_checks
from phalanx.testing.case import Case

Check = Callable[[Case], None]

_CHECKS: Mapping[Kind, tuple[Check, ...]] = {
    Kind.DEFENSE: (*component_checks.CHECKS, *defense_checks.CHECKS),
    Kind.ATTACK: (*component_checks.CHECKS, *attack_checks.CHECKS),
    Kind.PERTURBATION: (*component_checks.CHECKS, component_checks.check_perturbation),
    Kind.PRUNER: (*component_checks.CHECKS, component_checks.check_pruner),
}


class ConformanceError(AssertionError):
    """A component breaks promises of the interface; `failures` maps a check's name to its text."""

    def __init__(self, component: str, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        lines = "".join(f"\n  {name}: {text}" for name, text in failures.items())
        super().__init__(f"{component} fails {len(failures)} conformance checks{lines}")


def check_component(
    component: ComponentSpec | str,
    *,
    params: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Hold a component against the interface's promises, on `digits`, on a CPU, in seconds.

    Args:
        component: its declaration, as it is installed or registered, or ``kind/name`` such as
            ``defense/pdd``.
        params: of its config; choose a small backbone and few members.
        expected_failures: check names that are known to fail, each with a reason; a check that
            passes unexpectedly is a failure.

    Raises:
        ConformanceError: if any check fails; all failures are told.
    """
    registry = default_registry()
    if isinstance(component, str):
        kind, _, name = component.partition("/")
        component = registry.spec(Kind(kind), name)
    expected = dict(expected_failures or {})
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
        case = Case(component, dict(params or {}), Path(folder), registry)
        for check in _CHECKS[component.kind]:
            name = check.__name__
            try:
                check(case)
            except Exception as error:  # whatever a component raises is its failure
                if name not in expected:
                    failures[name] = f"{type(error).__name__}: {error}"
            else:
                if name in expected:
                    failures[name] = f"passes, but was expected to fail: {expected[name]}"
    if failures:
        raise ConformanceError(f"{component.kind} {component.name!r}", failures)
