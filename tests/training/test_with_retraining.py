"""What is pruned keeps its last epoch, and is pruned once."""

import pytest
import torch

import phalanx
from phalanx.config import Backbone, PrunerConfig, TrainingConfig
from phalanx.errors import ConfigError
from phalanx.nn import MeanEnsemble, build_member
from phalanx.pruner import Pruner
from phalanx.randomness import seeded
from phalanx.specs import Task
from phalanx.training.masked import Masked, with_retraining
from phalanx.training.phases import CrossEntropyPhase
from phalanx.training.plan import planned

TASK = Task(name="t", shape=(1, 8, 8), classes=10, train_size=90, mean=(0.5,), std=(0.5,))


class Halving(Pruner[PrunerConfig]):
    """Leaves every other filter."""

    def project(self, name, weight):
        return weight.where(torch.arange(len(weight)).view(-1, 1, 1, 1) % 2 == 0, 0.0)

    def compact(self, model):
        return model


@pytest.fixture
def model():
    with seeded(0):
        return MeanEnsemble([build_member(Backbone(use="small_cnn"), TASK) for _ in range(2)])


def fits(model, *regularizers, **changes):
    return [
        CrossEntropyPhase(
            name=f"fit/{number}", module=member, epochs=2, regularizers=regularizers, **changes
        )
        for number, member in enumerate(model.members, start=1)
    ]


HALVING = Halving(PrunerConfig())


@pytest.mark.parametrize(
    "training",
    [
        {"select": "best-validation"},
        {"phases": {"*": {"select": "best-validation"}}},
        {"phases": {"fit/1": {"select": "best-validation"}, "*/retrain": {"select": "last"}}},
    ],
)
def test_the_last_epoch_of_a_pruned_phase_is_kept(model, training):
    given = with_retraining(fits(model), HALVING, chosen="fit/1")
    found = {p.name: p.select for p in planned(given, TrainingConfig(**training), model)}
    assert found["fit/1"] == "last"
    best = "*/retrain" not in training.get("phases", {})
    assert found["fit/1/retrain"] == ("best-validation" if best else "last")
    assert (found["fit/2"] == "best-validation") == best


def test_a_phase_that_selects_by_itself_does_so_in_its_retraining(model):
    given = with_retraining(fits(model, select="best-validation"), HALVING)
    found = [phase.select for phase in planned(given, TrainingConfig(), model)]
    assert found == ["last", "best-validation"] * 2


def test_a_retraining_still_needs_held_out_images(model):
    given = with_retraining(fits(model), HALVING)
    with pytest.raises(ConfigError, match=r"the best epoch of fit/1/retrain, fit/2/retrain is"):
        planned(given, TrainingConfig(select="best-validation"), model, held_out=0)


@pytest.mark.parametrize("own", [HALVING, Masked()], ids=["pruner", "masked"])
def test_what_is_pruned_already_is_refused(model, own):
    with pytest.raises(ConfigError) as caught:
        with_retraining(fits(model, own), HALVING, chosen="fit/1")
    assert caught.value.problems == (
        "phases: fit/1 has a pruner of its own: drop one of the two pruners, the defense's own or "
        "this one",
    )


def test_what_is_pruned_once_is_not_pruned_again(model):
    once = with_retraining(fits(model), HALVING)
    with pytest.raises(ConfigError, match=r"phases: fit/1, fit/1/retrain, .* drop one of the two"):
        with_retraining(once, HALVING)


def test_the_pruned_phase_of_a_run_keeps_its_last_epoch(tmp_path):
    pytest.importorskip("phalanx_admm")
    run = {
        "data": {"use": "digits", "limit": 100, "validation": 0.3},
        "defense": {
            "use": "pruned",
            "params": {
                "base": {
                    "use": "none",
                    "params": {"backbone": {"use": "small_cnn", "params": {"width": 2}}},
                },
                "pruner": {"use": "irregular", "params": {"rho": 10.0}},
            },
        },
        "training": {"epochs": 2, "batch_size": 35, "select": "best-validation"},
    }
    with pytest.warns(match="ADMM ends with weights"):
        found = phalanx.train(run, out=tmp_path / "run")
    assert ["best_epoch" in line for line in found.metrics] == [False, False, True, True]
