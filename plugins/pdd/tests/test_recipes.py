"""Every recipe is a valid run file, and what is compared differs in the defense only."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from phalanx.api import OptimizerConfig
from phalanx.config import RunConfig
from phalanx_pdd.config import PDDConfig

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def load(name: str) -> RunConfig:
    path = Path(__file__).parent.parent / "recipes" / f"{name}.toml"
    return RunConfig.model_validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid(path: Path) -> None:
    config = load(path.stem)
    assert config.evaluation.threat is not None
    for attack in config.evaluation.attacks:
        step = getattr(attack.params, "step", None)
        if step is not None:  # the paper's BIM and PGD
            assert step == pytest.approx(attack.params.threat.eps / 10)
            assert attack.params.steps == 10


def test_the_comparison_on_a_cpu_is_fair() -> None:
    baseline, pdd, both = (load(f"fashion_mnist_cpu_{n}") for n in ("baseline", "pdd", "pdd_deg"))
    assert baseline.training == pdd.training
    assert both.training.model_copy(update={"epochs": 8}) == pdd.training
    assert baseline.evaluation == pdd.evaluation == both.evaluation
    for run in (pdd, both):
        assert isinstance(run.defense.params, PDDConfig)
        for field in ("members", "backbone", "normalization"):
            assert getattr(run.defense.params, field) == getattr(baseline.defense.params, field)
    assert (pdd.defense.params.variant, both.defense.params.variant) == ("pdd", "pdd+deg")


def test_the_comparison_uses_the_papers_optimizer() -> None:
    training = load("fashion_mnist_cpu_pdd").training
    assert training.batch_size == 64
    paper = OptimizerConfig(name="sgd", lr=0.02, momentum=0.9, weight_decay=5e-4)
    assert training.optimizer == paper
