"""The committed recipes are run files of CLM, with the paper's values where it gives them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx_clm.config import CLMConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}


def run_file(name):
    return RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name):
    config = run_file(name)
    assert config.defense.use == "clm"
    assert isinstance(config.defense.params, CLMConfig)
    phases = {f"ulm/{i + 1}" for i in range(config.defense.params.members)} | {"clm"}
    assert set(config.training.phases) <= phases | {"ulm/*"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist_lenet5_clm", ("lenet5", 10, 0.1, 0.1, 5)),
        ("mnist_lenet5_clm_adv", ("lenet5", 10, 0.01, 0.005, 5)),
        ("cifar10_resnet18_clm", ("resnet18_cifar", 10, 0.5, 0.1, 150)),
    ],
)
def test_has_the_papers_values(name, expected):
    c = run_file(name).defense.params
    assert (c.backbone.use, c.members, c.alpha, c.delta, c.retrain_epochs) == expected


def test_ulm_and_clm_on_mnist_differ_by_counter_linking_only():
    ulm, clm = run_file("mnist_lenet5_ulm"), run_file("mnist_lenet5_clm")
    assert ulm.defense.params.variant == "ulm"
    linked = {"variant": "clm", "alpha": 0.1, "delta": 0.1, "retrain_epochs": 5}
    assert ulm.defense.params.model_copy(update=linked) == clm.defense.params
    assert ulm.training.phases["ulm/*"] == clm.training.phases["ulm/*"]
    assert (ulm.seed, ulm.data, ulm.evaluation) == (clm.seed, clm.data, clm.evaluation)
