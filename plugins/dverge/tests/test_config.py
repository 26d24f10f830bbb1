"""The settings, and what each refusal says."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from phalanx.api import PhalanxError
from phalanx.runfile import read_run
from phalanx_dverge.config import DVERGEConfig


def test_defaults_are_the_papers() -> None:
    config = DVERGEConfig()
    assert (config.members, config.eps, config.steps) == (3, 0.07, 10)
    assert config.step_size == pytest.approx(0.007)
    assert (config.reduction, config.draw, config.coefficient) == ("sum", "epoch", 1.0)
    assert (config.attack, config.layers, config.batchnorm) == (None, (), "train")
    assert (config.backbone.use, config.start) == ("resnet20_cifar", "baseline")


def test_round_trip_through_json() -> None:
    given = {
        "members": 8,
        "eps": "8/255",
        "step": "2/255",
        "attack": {"use": "pgd", "params": {"threat": "linf:8/255"}},
        "layers": ["bn1", "linear"],
    }
    config = DVERGEConfig.model_validate(given)
    assert config.step_size == 2 / 255
    assert DVERGEConfig.model_validate_json(config.model_dump_json()) == config


def test_one_member_has_nobody_to_learn_from() -> None:
    message = (
        r"members = 1 has no other member to learn from: write members = 2 or more, or take "
        r"defense 'pgd-at' for a single network"
    )
    with pytest.raises(ValidationError, match=message):
        DVERGEConfig(members=1)


def test_the_run_file_tells_it_by_its_key() -> None:
    run = {"data": {"use": "digits"}, "defense": {"use": "dverge", "params": {"members": 1}}}
    with pytest.raises(PhalanxError, match=r"members: members = 1 has no other") as caught:
        read_run(run)
    assert caught.value.exit_code == 2


def test_a_layer_stands_once() -> None:
    with pytest.raises(ValidationError, match="bn1 stands more than once; name each layer once"):
        DVERGEConfig(layers=("bn1", "linear", "bn1"))
