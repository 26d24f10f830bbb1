"""The interface's promises, held by the core's own suite."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_adp.plugin import ADP

SMALL = {"backbone": "small_cnn", "members": 2}
ATTACK = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}


@pytest.mark.parametrize(
    "params",
    [{"attack": ATTACK, "radii": [0.02, 0.1]}, {"alpha": 0.0, "beta": 0.0}],
    ids=["adversarial", "base"],
)
def test_conformance(params: dict[str, Any]) -> None:
    check_component(ADP, params={**SMALL, **params})
