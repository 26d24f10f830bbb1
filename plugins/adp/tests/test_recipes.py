"""The committed recipes are run files of ADP, with the papers' values where they give them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_adp.config import ADPConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}


def run(name: str) -> RunConfig:
    return read_run(RECIPES[name])


def params(name: str) -> ADPConfig:
    found = run(name).defense.params
    assert isinstance(found, ADPConfig)
    return found


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == "adp"
    assert config.evaluation.threat is not None
    assert set(config.evaluation.views) <= {"deployed", "one-member"}


@pytest.mark.parametrize("name", ["igat_table1_cifar10", "igat_table1_cifar100"])
def test_igats_base_has_its_values(name: str) -> None:
    config = params(name)
    assert (config.members, config.alpha, config.beta) == (8, 2.0, 0.5)
    assert (config.adversarial_term, config.radii) == ("ce", None)
    attack = config.attack.params
    assert (str(attack.threat), attack.steps, attack.step) == ("linf:8/255", 20, 2 / 255)


@pytest.mark.parametrize(
    "name", ["pdd_table2_cifar100", "pdd_table2_fashion_mnist", "fashion_mnist_cpu_plain"]
)
def test_pdds_mean_is_our_sum_in_other_units(name: str) -> None:
    config, optimizer = params(name), run(name).training.optimizer
    K = config.members
    assert (config.alpha / K, config.beta / K) == (2.0, 0.5)
    assert optimizer.lr * K == pytest.approx(0.02)
    assert optimizer.weight_decay / K == pytest.approx(5e-4)
    assert config.normalization == "none"


@pytest.mark.parametrize("name", ["rls_table6_cifar10", "fashion_mnist_cpu_base"])
def test_the_base_ensemble_has_neither_term(name: str) -> None:
    config = params(name)
    assert (config.alpha, config.beta, config.attack) == (0.0, 0.0, None)
    assert run(name).evaluation.views == ("one-member", "deployed")
