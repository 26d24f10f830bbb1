"""The committed recipes are run files of DVERGE, with the papers' values where they give them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_dverge.config import DVERGEConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}


def params(name: str) -> DVERGEConfig:
    found = read_run(RECIPES[name]).defense.params
    assert isinstance(found, DVERGEConfig)
    return found


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == "dverge"
    assert set(config.training.phases) <= {"baseline/*", "dverge"}
    assert config.evaluation.threat is not None


@pytest.mark.parametrize("name", ["igat_table1_cifar10", "igat_table1_cifar100"])
def test_igats_base_has_its_values(name: str) -> None:
    config = params(name)
    assert (config.members, config.eps, config.steps) == (8, 0.05, 10)
    assert config.step_size == pytest.approx(0.005)
    attack = config.attack.params
    assert (str(attack.threat), attack.steps, attack.step) == ("linf:8/255", 20, 2 / 255)
    assert (config.start, config.batchnorm, config.coefficient) == ("baseline", "train", 1.0)


def test_the_authors_setting_is_the_default() -> None:
    assert params("dverge_cifar10") == DVERGEConfig()
