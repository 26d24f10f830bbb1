"""The settings, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phalanx.api import ConfigError, PhalanxError, Task
from phalanx.runfile import read_run
from phalanx_adp.config import ADPConfig
from phalanx_adp.defense import ADP

PGD = {"use": "pgd", "params": {"threat": "linf:0.05", "steps": 10}}


def task(classes: int) -> Task:
    return Task(name="toy", shape=(1, 8, 8), classes=classes, train_size=9, mean=(0.3,), std=(0.4,))


def test_defaults_are_the_papers() -> None:
    config = ADPConfig()
    assert (config.members, config.alpha, config.beta) == (3, 2.0, 0.5)
    assert (config.attack, config.radii, config.adversarial_term) == (None, None, "full")
    assert config.backbone.use == "resnet20_cifar"


def test_round_trip_through_json() -> None:
    config = ADPConfig.model_validate({"members": 5, "attack": PGD, "radii": ["2/255", 0.05]})
    assert config.radii == (2 / 255, 0.05)
    assert ADPConfig.model_validate_json(config.model_dump_json()) == config


def test_one_member_is_no_ensemble() -> None:
    message = (
        r"members = 1 leaves nobody to differ from: write members = 2 or more, or take defense "
        r"'none' for a single network"
    )
    with pytest.raises(ValidationError, match=message):
        ADPConfig(members=1)


def test_the_run_file_tells_it_by_its_key() -> None:
    run = {"data": {"use": "digits"}, "defense": {"use": "adp", "params": {"members": 1}}}
    with pytest.raises(PhalanxError, match=r"members: members = 1 leaves nobody") as caught:
        read_run(run)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"radii": [0.01, 0.05]},
            r'radii are those of \'attack\', which is absent: write attack = { use = "pgd"',
        ),
        (
            {"attack": PGD, "radii": [0.05, 0.01]},
            r"radii = \[0.05, 0.01\]: write the smaller one first",
        ),
        (
            {"attack": {"use": "pgd", "params": {"threat": "l2:1"}}, "radii": [0.01, 0.05]},
            r"the attack's threat is l2:1: write attack.params.threat = \"linf:0.05\"",
        ),
        (
            {"attack": {"use": "pgd"}, "radii": [0.01, 0.05]},
            r"the attack's threat is absent: write attack.params.threat",
        ),
        (
            {
                "attack": {"use": "pgd", "params": {"threat": "linf:0.05", "step": 0.01}},
                "radii": [0.01, 0.05],
            },
            r"a fixed attack.params.step does not follow the radii: leave it out",
        ),
    ],
)
def test_radii_that_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADPConfig.model_validate(params)


@pytest.mark.parametrize(
    ("members", "classes", "fix"),
    [
        (3, 3, r"3 members cannot differ in all of 2 wrong classes \(toy has 3 classes\)"),
        (10, 10, "write members = 9 or fewer, or beta = 0"),
        (2, 2, "write beta = 0"),
    ],
)
def test_more_members_than_wrong_classes_are_refused(members: int, classes: int, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as caught:
        ADP(ADPConfig(members=members), task(classes))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("members", "classes", "beta"), [(2, 3, 0.5), (9, 10, 0.5), (5, 3, 0.0)])
def test_as_many_members_as_fit(members: int, classes: int, beta: float) -> None:
    defense = ADP(
        ADPConfig.model_validate({"members": members, "beta": beta, "backbone": "small_cnn"}),
        task(classes),
    )
    assert len(defense.build().members) == members
