"""The interface's promises, held by the core's own suite."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_multi.plugin import COMPONENTS

TYPES = [
    {"name": "clean"},
    {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}},
    {"name": "l1", "attack": {"use": "fgsm", "params": {"threat": "l1:1"}}},
]


@pytest.mark.parametrize(
    ("component", "params"),
    [(COMPONENTS[0], {}), (COMPONENTS[0], {"sequential": True}), (COMPONENTS[1], {})],
    ids=["avg", "sequential", "max"],
)
def test_conformance(component: Any, params: dict[str, Any]) -> None:
    small = {"use": "small_cnn", "params": {"width": 4}}
    check_component(component, params={"backbone": small, "types": TYPES, **params})
