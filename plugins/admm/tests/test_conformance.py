"""The interface's promises, held by the core's own suite; resume after a kill among them."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_admm.plugin import BLOCK, FILTER, IRREGULAR, PRUNED

SMALL = {"use": "small_cnn", "params": {"width": 4}}


@pytest.mark.filterwarnings("ignore:.*ADMM ends with weights:phalanx.errors.PhalanxWarning")
@pytest.mark.parametrize(
    ("base", "pruner"),
    [
        (
            {"use": "none", "params": {"backbone": SMALL}},
            {"use": "filter", "params": {"rate": 2, "rho_growth": 1.3}},
        ),
        (
            {
                "use": "dverge",
                "params": {"backbone": SMALL, "members": 2, "steps": 2, "start": "scratch"},
            },
            {"use": "block", "params": {"rate": 4}},
        ),
    ],
    ids=["none-filter", "dverge-block"],
)
def test_conformance(base: dict[str, Any], pruner: dict[str, Any]) -> None:
    if base["use"] == "dverge":
        pytest.importorskip("phalanx_dverge")
    check_component(PRUNED, params={"base": base, "pruner": pruner})


@pytest.mark.parametrize("spec", [IRREGULAR, FILTER, BLOCK], ids=lambda one: one.name)
def test_pruners(spec: Any) -> None:
    check_component(spec, params={"rate": 8, "rates": {"conv1": 2}})
