"""The committed recipes are run files of MoL, with the paper's values where it gives them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from phalanx.api import L1, L2, Linf
from phalanx.config import RunConfig
from phalanx.runfile import read_run
from phalanx_mol.config import MoLConfig

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")}
REDUCED = sorted(name for name in RECIPES if "_cpu_" in name)
PAPER = sorted(name for name in RECIPES if "_cpu_" not in name and name != "smoke")


def run(name: str) -> RunConfig:
    return read_run(RECIPES[name])


def params(name: str) -> MoLConfig:
    found = run(name).defense.params
    assert isinstance(found, MoLConfig)
    return found


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_is_a_run_file(name: str) -> None:
    config = RunConfig.model_validate(tomllib.loads(RECIPES[name].read_text()))
    assert config.defense.use == "mol"
    assert set(config.training.phases) <= {"expert/*", "expert/*/retrain", "aggregator"}
    assert set(config.evaluation.views) <= {"deployed", "one-expert"}
    assert config.evaluation.attacks


@pytest.mark.parametrize("name", PAPER)
def test_has_the_papers_values(name: str) -> None:
    config, training = params(name), run(name).training
    scenario = "mixing-lp" if name.startswith("mixing") else "comprehensive"
    assert config == config.model_copy(
        update={"experts": MoLConfig.model_validate({"experts": scenario}).experts}
    )
    assert config.backbone.params == {"width": 64}
    optimizer = training.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 0.01, 5e-4)
    assert (training.schedule.name, training.epochs, training.batch_size) == ("cosine", 200, 128)
    epochs = training.phases["aggregator"].epochs
    assert epochs == (0 if name.startswith("table1") else 50)  # heads of Table 1 stay their own
    pruned = {"4x": (4, 32), "8x": (8, 22)}
    rate = next((rate for key, rate in pruned.items() if key in name), None)
    if rate is None:
        assert config.pruner is None
        assert config.aggregator_backbone == config.backbone
    else:
        assert (config.pruner.params.rate, config.pruner.params.rho) == (rate[0], 1e-3)
        assert config.pruner.params.block == (4, 4)
        assert config.aggregator_backbone.params["width"] == rate[1]


@pytest.mark.parametrize("name", PAPER)
def test_gradients_that_are_hidden_would_be_seen(name: str) -> None:
    evaluation = run(name).evaluation
    assert evaluation.views == ("deployed", "one-expert")
    square = [use.params.threat for use in evaluation.attacks if use.use == "square"]
    assert square == [L2(1), Linf("8/255")]


@pytest.mark.parametrize("name", REDUCED)
def test_the_reduced_ones_differ_in_what_they_say(name: str) -> None:
    config, training, evaluation = params(name), run(name).training, run(name).evaluation
    assert run(name).data.limit == 10000
    assert config.backbone.params == {"width": 8}
    attacks = [expert.attack.params for expert in config.experts[1:4]]
    assert [attack.threat for attack in attacks] == [L1(16), L2(1), Linf("8/255")]
    assert [(attack.steps, attack.step) for attack in attacks] == [(5, None)] * 3
    assert (training.epochs, training.batch_size, training.augment) == (3, 128, ("crop", "flip"))
    assert (evaluation.limit, evaluation.views) == (500, ("deployed",))
    assert len(evaluation.attacks) == (3 if "mixing" in name else 6)


def test_one_shot_differs_from_admm_by_its_phases_alone() -> None:
    admm, shot = (
        run(f"cifar10_cpu_comprehensive_8x_block{end}").model_dump() for end in ("", "_oneshot")
    )
    source = Path(shot.pop("init")["from"]).resolve()
    assert source == RECIPES["smoke"].parents[3] / "runs/mol-experts"
    assert admm.pop("init") is None
    phases: dict[str, Any] = shot["training"].pop("phases")
    assert {name: phase["epochs"] for name, phase in phases.items()} == {
        "expert/*": 0,
        "expert/*/retrain": admm["training"]["epochs"],
    }
    assert admm["training"].pop("phases") == {}
    assert admm == shot


@pytest.mark.parametrize("name", [name for name in REDUCED if "comprehensive" in name])
def test_is_comparable_with_the_baselines(name: str) -> None:
    plugins = RECIPES[name].parents[2]
    baseline = read_run(plugins / "multi/recipes/cifar10_cpu_avg_comprehensive.toml")
    own = run(name)
    assert own.evaluation.attacks == baseline.evaluation.attacks
    assert own.defense.params.experts == baseline.defense.params.types
    assert own.data == baseline.data
