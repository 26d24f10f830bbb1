"""The committed recipes are run files of iGAT whose bases are those of the bases' own recipes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_igat.config import IGATConfig

ROOT = Path(__file__).parents[3]
RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}
BASES = {
    "table1_cifar10_adp": ("adp", "igat_table1_cifar10"),
    "table1_cifar10_dverge": ("dverge", "igat_table1_cifar10"),
    "table1_cifar100_adp": ("adp", "igat_table1_cifar100"),
    "fashion_mnist_cpu": ("adp", "fashion_mnist_cpu_igat_base"),
}


def params(name: str) -> IGATConfig:
    found = read_run(RECIPES[name]).defense.params
    assert isinstance(found, IGATConfig)
    return found


def base_recipe(name: str) -> Path:
    plugin, recipe = BASES[name]
    return ROOT / "plugins" / plugin / "recipes" / f"{recipe}.toml"


def test_all_are_here() -> None:
    assert set(RECIPES) == {"smoke", *BASES}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == "igat"
    assert config.evaluation.threat is not None
    assert (config.init is None) is params(name).pretrain


@pytest.mark.parametrize("name", sorted(BASES))
def test_it_fine_tunes_the_bases_own_recipe(name: str) -> None:
    ours, own = read_run(RECIPES[name]), read_run(base_recipe(name))
    assert ours.defense.params.base == own.defense
    assert ours.data == own.data
    assert str(base_recipe(name).relative_to(ROOT)) in RECIPES[name].read_text()


@pytest.mark.parametrize("name", sorted(BASES))
def test_the_commands_in_the_comments_fit_the_warm_start(name: str) -> None:
    """Run from the repository's root, the second command finds what the first has written."""
    config = read_run(RECIPES[name])
    assert config.init is not None
    (source,) = config.init.sources
    place = Path(source).resolve().relative_to(ROOT)
    assert f"{base_recipe(name).relative_to(ROOT)} --out {place}" in RECIPES[name].read_text()


@pytest.mark.parametrize("name", sorted(BASES))
def test_the_papers_weights(name: str) -> None:
    config = params(name)
    found: tuple[Any, ...] = (config.alpha, config.beta, config.rule, config.combiner)
    assert found == (5.0, 10.0, "soft", "average")


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("table1_cifar10_adp", [0.01, 0.002]),
        ("table1_cifar10_dverge", [0.01, 0.002]),
        ("table1_cifar100_adp", [0.1, 0.02, 0.004]),
    ],
)
def test_the_papers_training(name: str, rates: list[float]) -> None:
    training = read_run(RECIPES[name]).training
    optimizer, factor = training.optimizer, training.schedule.build()
    assert (training.batch_size, optimizer.name, optimizer.momentum) == (512, "sgd", 0.9)
    found = sorted({round(optimizer.lr * factor(p / 100), 9) for p in range(100)}, reverse=True)
    assert found == pytest.approx(rates)
    config = params(name)
    used = [config.base.params.attack]  # ADP's examples of the ensemble are iGAT's too
    if config.base.use == "dverge":  # whose own are of single members
        used.append(config.attack)
    for attack in (use.params for use in used):
        assert (str(attack.threat), attack.steps, attack.step) == ("linf:8/255", 20, 2 / 255)
