"""The interface's promises, and attacks by name in an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx import randomness
from phalanx.api import MeanEnsemble, Population
from phalanx.nn.backbones.small_cnn import SmallCNN
from phalanx.runfile import read_run
from phalanx.testing import check_component
from phalanx_ensemble_attacks.plugin import COMPONENTS

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.toml"
NESTED = {"use": "pgd", "params": {"steps": 2}}


def networks() -> list[SmallCNN]:
    with randomness.seeded("ensemble attacks"):
        return [SmallCNN(num_classes=10, in_chans=1, width=4) for _ in range(2)]


@pytest.mark.parametrize(
    ("component", "params"),
    [
        (COMPONENTS[0], {"steps": 3}),
        (COMPONENTS[0], {"steps": 2, "betas": [1.0], "schedule": "cosine", "restarts": 2}),
        (COMPONENTS[1], {}),
        (COMPONENTS[1], {"attack": NESTED, "member": 1}),
    ],
    ids=["mora", "mora-cosine", "member-transfer", "one-member"],
)
def test_conformance(component: Any, params: dict[str, Any]) -> None:
    check_component(component, params=params)


def test_the_recipe_judges_with_both_and_counts_their_passes() -> None:
    config = read_run(SMOKE)
    names = ["apgd-ce", "mora", "member-transfer"]
    assert [use.use for use in config.evaluation.attacks] == names
    given = [{"use": "mora", "params": {"steps": 2}}, {"use": "member-transfer"}]
    given[1]["params"] = {"attack": NESTED}
    report = phalanx.evaluate(
        MeanEnsemble(networks()), "digits", attacks=given, threat="linf:0.3", limit=16
    )
    rows = {row.attack.partition(":")[0]: row for row in report.rows}
    assert {"mora", "member-transfer", "worst"} <= rows.keys()
    for name in ("mora", "member-transfer"):
        assert rows[name].view == "deployed"
        assert 0.0 <= rows[name].robust_accuracy <= rows[name].clean_accuracy
        assert rows[name].forwards > 0
    assert rows["mora"].forwards <= 5 * 3
    assert rows["mora"].backwards <= 5 * 2


def test_a_population_is_attacked_in_expectation() -> None:
    given = [{"use": "mora", "params": {"steps": 2}}]
    report = phalanx.evaluate(
        Population(networks()), "digits", attacks=given, threat="linf:0.1", limit=16
    )
    assert "expected" in {row.view for row in report.rows if row.attack.startswith("mora")}
