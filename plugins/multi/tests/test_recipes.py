"""The committed recipes are run files of AVG and MAX; MoL's have its values."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_multi.config import MultiConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}
MOL = sorted(name for name in RECIPES if name.endswith(("lp_cifar10", "comprehensive_cifar10")))
CPU = sorted(name for name in RECIPES if name.startswith("cifar10_cpu"))
LP = ["l1", "l2", "linf"]
NATURAL = ["fog", "snow", "rotation"]


def run(name: str) -> RunConfig:
    return read_run(RECIPES[name])


def types(name: str) -> list[str]:
    found = run(name).defense.params
    assert isinstance(found, MultiConfig)
    return [one.name for one in found.types]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == ("max" if "max" in name else "avg")
    assert len({str(use.params.threat) for use in config.evaluation.attacks}) > 1  # type: ignore[attr-defined]


def test_there_are_four_of_each() -> None:
    assert len(MOL) == len(CPU) == 4


@pytest.mark.parametrize("name", MOL)
def test_mols_values(name: str) -> None:
    config = run(name)
    params = config.defense.params
    assert isinstance(params, MultiConfig)
    assert types(name) == LP + (NATURAL if "comprehensive" in name else [])
    assert params.types[:3] == MultiConfig().types
    assert params.backbone.use == "resnet18_cifar"
    optimizer = config.training.optimizer
    assert optimizer is not None
    assert (optimizer.lr, optimizer.weight_decay) == (0.01, 5e-4)
    assert (config.training.batch_size, config.training.epochs) == (128, 200)


@pytest.mark.parametrize("name", CPU)
def test_the_cpus_differ_in_size_alone(name: str) -> None:
    config = run(name)
    scenario = "comprehensive" if "comprehensive" in name else "mixing_lp"
    paper = run(f"{config.defense.use}_{scenario}_cifar10")
    assert types(name) == ["clean", *types(f"{config.defense.use}_{scenario}_cifar10")]
    for key in ("optimizer", "schedule", "augment", "batch_size"):
        assert getattr(config.training, key) == getattr(paper.training, key)
    judged = [use.use for use in config.evaluation.attacks]
    assert judged == ["pgd"] * 3 + ["natural"] * (3 if "comprehensive" in name else 0)


@pytest.mark.parametrize("defense", ["avg", "max"])
def test_the_baselines_of_msd(defense: str) -> None:
    config = run(f"robust_union_cifar10_{defense}")
    params = config.defense.params
    assert isinstance(params, MultiConfig)
    threats = [str(one.attack.params.threat) for one in params.types]  # type: ignore[union-attr]
    assert threats == ["l1:12", "l2:0.3", "linf:0.03"]
    assert getattr(params, "sequential", False) == (defense == "avg")
    judged = {str(use.params.threat) for use in config.evaluation.attacks}  # type: ignore[attr-defined]
    assert judged == {"l1:12", "l2:0.5", "linf:0.03"}
