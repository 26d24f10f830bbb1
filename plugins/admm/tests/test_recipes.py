"""The committed recipes are run files, with the papers' values where they give them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_admm.config import BlockConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == ("pgd-at" if name.endswith("dense") else "pruned")
    assert config.evaluation.threat is not None


def test_mols_expert_has_its_values() -> None:
    run = read_run(RECIPES["mol_cifar10_linf_8x"])
    training, pruner = run.training, run.defense.params.pruner.params
    assert isinstance(pruner, BlockConfig)
    assert (pruner.rate, pruner.rho, pruner.rho_growth) == (8, 1e-3, 1.0)
    assert (training.epochs, training.batch_size, training.phases) == (200, 128, {})
    optimizer = training.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 0.01, 5e-4)
    attack = run.defense.params.base.params.attack.params
    assert (str(attack.threat), attack.steps, attack.step) == ("linf:8/255", 20, 0.01)


def test_the_dense_recipe_is_what_is_pruned() -> None:
    pruned, dense = (read_run(RECIPES[f"fashion_mnist_cpu_{one}"]) for one in ("block", "dense"))
    assert pruned.defense.params.base == dense.defense
    assert (pruned.data, pruned.training, pruned.evaluation) == (
        dense.data,
        dense.training,
        dense.evaluation,
    )
