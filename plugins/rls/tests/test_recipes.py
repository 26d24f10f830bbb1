"""The committed recipes are run files of RLS, with the paper's values where it gives them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx.specs import Linf
from phalanx_rls.config import RLSConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}
TABLES = sorted(name for name in RECIPES if name.startswith("table"))


def run_file(name):
    return RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name):
    config = run_file(name)
    assert isinstance(config.defense.params, RLSConfig)
    assert isinstance(config.evaluation.threat, Linf)
    for attack in config.evaluation.attacks:
        if attack.use == "pgd" and name != "smoke":  # the paper's: ten steps of a tenth
            assert attack.params.steps == 10
            assert attack.params.start == "clean"
            assert attack.params.step == pytest.approx(attack.params.threat.eps / 10)


@pytest.mark.parametrize("name", TABLES)
def test_has_the_papers_values(name):
    config = run_file(name)
    table, data, network = name.split("_")
    params = config.defense.params
    assert (params.members, params.group, params.samples, params.loss) == (2, 3, 10, "mse")
    assert config.data.use == data
    assert config.training.epochs == (50 if data == "mnist" else 150)
    assert config.training.optimizer is None  # the defense's own, the paper's
    backbone = {"table1": "resnet50_cifar", "table2": "vgg16_bn_cifar"}[table]
    assert params.backbone.use == backbone
    assert backbone.startswith(network)


@pytest.mark.parametrize("name", TABLES)
def test_attacks_both_readings_of_epsilon(name):
    attacks = run_file(name).evaluation.attacks
    for use in ("fgsm", "pgd"):
        eps = [a.params.threat.eps for a in attacks if a.use == use]
        assert len(eps) == 3
        assert eps == pytest.approx([eps[0], 2 * eps[0], 4 * eps[0]])  # ε/2; ε, also 2ε/2; 2ε


@pytest.mark.parametrize("name", TABLES)
def test_the_baseline_is_the_same_file_with_one_submodel(name):
    table = tomllib.loads(RECIPES[name].read_text())
    table["defense"]["params"].update(members=1, group=1)
    table["evaluation"]["views"] = ["deployed"]
    assert read_run(table).defense.params.members == 1


def test_the_cpu_comparison_differs_by_the_sampling_only():
    rls, one = run_file("mnist_cpu_rls"), run_file("mnist_cpu_one_network")
    assert rls.training == one.training
    assert rls.data == one.data
    assert rls.evaluation.attacks == one.evaluation.attacks
    same = rls.defense.params.model_copy(update={"members": 1, "group": 1})
    assert same == one.defense.params
