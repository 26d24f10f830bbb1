"""The built-in components conform, and components that break a promise are found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from phalanx import default_registry
from phalanx.config import AttackConfig, DefenseConfig
from phalanx.defense import DefendedModel, Defense
from phalanx.specs import ComponentSpec, Kind
from phalanx.testing import ConformanceError, check_component
from phalanx.training.phases import CrossEntropyPhase

SHORT = {
    "bim": {"steps": 3},
    "pgd": {"steps": 3},
    "mi-fgsm": {"steps": 3},
    "apgd-ce": {"steps": 5},
    "apgd-dlr": {"steps": 5},
    "apgd-t": {"steps": 3, "targets": 2},
    "fab-t": {"steps": 3, "targets": 2},
    "square": {"queries": 20},
    "fgsm": {},
}


@pytest.mark.parametrize("name", SHORT)
def test_built_in_attacks_conform(name):
    check_component(f"attack/{name}", params=SHORT[name])


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("none", {}),
        ("none", {"members": 2}),
        ("pgd-at", {"attack": {"use": "pgd", "params": {"steps": 2}}}),
    ],
)
def test_built_in_defenses_conform(name, params):
    check_component(f"defense/{name}", params=params)


class BrokenConfig(DefenseConfig):
    """No keys."""


class Forgetful(DefendedModel):
    """Its scores depend on the batch, and its view claims that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def draw(self, x, generator):
        return self.linear(x.flatten(1)) + x.mean()


class Broken(Defense[BrokenConfig]):
    """Draws from Python's clock-free but global state between runs."""

    count = 0

    def build(self) -> DefendedModel:
        type(self).count += 1
        model = Forgetful()
        with torch.no_grad():
            model.linear.bias.fill_(float(type(self).count))
        return model

    def phases(self, model):
        return [CrossEntropyPhase(name="fit", module=model, epochs=1)]


class BrokenAttack:
    """Leaves the ball, and draws from torch's global generator."""

    def __init__(self, config: AttackConfig) -> None:
        self.config = config

    def __call__(self, model, x, y, *, generator, observe=None):
        return x + torch.randn_like(x)


@pytest.fixture
def session() -> Iterator[None]:
    registry = default_registry()
    before = dict(registry._components), dict(registry._in_process)
    registry.defense("broken", config=BrokenConfig)(Broken)
    yield
    registry._components, registry._in_process = before


def test_a_defense_that_breaks_promises_is_found_out(session):
    with pytest.raises(ConformanceError) as caught:
        check_component("defense/broken")
    assert {"check_same_seed", "check_views"} <= caught.value.failures.keys()
    assert "the same seed gives other weights" in caught.value.failures["check_same_seed"]
    assert "claims rowwise" in caught.value.failures["check_views"]


def test_expected_failures_are_strict(session):
    with pytest.raises(ConformanceError, match="passes, but was expected to fail: no reason"):
        check_component("defense/none", expected_failures={"check_scores": "no reason"})


def test_an_attack_that_breaks_promises_is_found_out():
    spec = ComponentSpec(
        kind=Kind.ATTACK,
        name="broken",
        factory=f"{__name__}:BrokenAttack",
        config="phalanx.config:AttackConfig",
        summary="Breaks its promises.",
    )
    registry = default_registry()
    before = dict(registry._components), dict(registry._in_process)
    import sys

    sys.modules.setdefault(__name__, sys.modules[BrokenAttack.__module__])
    registry.register(spec)
    try:
        with pytest.raises(ConformanceError, match="it moves torch's global generator"):
            check_component(spec)
    finally:
        registry._components, registry._in_process = before
