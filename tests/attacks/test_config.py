import subprocess
import sys

import pytest
from pydantic import ValidationError

from phalanx.attacks import config as configs
from phalanx.attacks.config import APGDConfig, FABTConfig, NaturalConfig, PGDConfig, SquareConfig
from phalanx.config import AttackConfig
from phalanx.registry import default_registry
from phalanx.specs import Kind, Linf

OURS = [
    kind
    for kind in vars(configs).values()
    if isinstance(kind, type) and issubclass(kind, AttackConfig) and kind is not AttackConfig
]
NAMES = ["fgsm", "bim", "pgd", "mi-fgsm", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]


def test_configs_are_torch_free():
    code = "import phalanx.attacks.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_configs_round_trip(kind):
    assert all(field.description for field in kind.model_fields.values())
    if kind is NaturalConfig:  # has no ball, and needs a perturbation: see test_natural.py
        return
    config = kind(threat="linf:8/255")
    assert kind.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_attack_resolves(name):
    registry = default_registry()
    config = registry.config_class(Kind.ATTACK, name)(threat="linf:0.1")
    attack = registry.factory(Kind.ATTACK, name)(config)
    assert attack.threat == Linf(0.1)
    assert attack.at(Linf(0.2)).threat == Linf(0.2)
    assert type(attack.at(Linf(0.2))) is type(attack)


def test_a_step_is_a_fraction_or_a_number():
    assert PGDConfig(step="2/255").step == 2 / 255
    assert PGDConfig(step=0.01).step == 0.01
    assert PGDConfig().step is None


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (PGDConfig, {"steps": 0}),
        (PGDConfig, {"loss": "hinge"}),
        (PGDConfig, {"step": -0.1}),
        (APGDConfig, {"rho": 1.0}),
        (FABTConfig, {"beta": 0.0}),
        (SquareConfig, {"p_init": 1.5}),
    ],
)
def test_wrong_values_are_refused(kind, wrong):
    with pytest.raises(ValidationError):
        kind(**wrong)
