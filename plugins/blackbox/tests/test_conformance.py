"""The interface's promises, held by the core's own suite; and a whole evaluation."""

import pytest
import torch

import phalanx
from phalanx.api import UseAttack
from phalanx.evaluation.labels import parse_attack
from phalanx.testing import check_component
from phalanx_blackbox.plugin import COMPONENTS


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda one: one.name)
def test_conformance(component):
    check_component(component, params={"queries": 80})


def test_an_evaluation_meters_their_queries():
    draws = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draws))
    x = torch.rand((20, 1, 8, 8), generator=draws)
    with torch.no_grad():
        y = net(x).argmax(1)
    asked = ["rays:queries=40", "rays:queries=40,stop=budget", "signhunter:queries=40"]
    attacks = [UseAttack.model_validate(parse_attack(text)) for text in asked]
    report = phalanx.evaluate(net, (x, y), attacks=attacks, threat="linf:0.05")
    rows = [row for row in report.rows if row.view != "worst"]
    assert len(rows) == 3
    success, budget, hunter = (row.forwards for row in rows)
    assert success <= budget == 40.0
    assert 2.0 <= hunter <= 40.0
    assert {row.backwards for row in rows} == {0.0}
    assert rows[0].robust_accuracy <= rows[1].robust_accuracy < 1.0
