"""The run file's overrides reach the phases they name, and contradictions are told."""

from dataclasses import dataclass

import pytest
from torch import nn

from phalanx.config import (
    PerturbationConfig,
    PhaseOverrides,
    TrainingConfig,
    UsePerturbation,
)
from phalanx.errors import ConfigError, TrainingError
from phalanx.phase import JointPhase
from phalanx.training.plan import planned, prefix
from phalanx.training.transforms import Adversarial, Augment, Natural


@dataclass(kw_only=True)
class Plain(JointPhase):
    def objective(self, batch, ctx):
        return {}


@dataclass(kw_only=True)
class OwnLoop(Plain):
    accepts_adversarial = False


@pytest.fixture
def model():
    return nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})


def phases(model, kind=Plain, **two):
    return [
        kind(name="fit/1", module=model["one"], epochs=3),
        kind(name="fit/2", module=model["two"], epochs=3, **two),
    ]


def test_patterns_go_over_the_general_and_later_over_earlier(model):
    training = TrainingConfig.model_validate(
        {"epochs": 5, "phases": {"fit/*": {"epochs": 6, "batch_size": 9}, "fit/2": {"epochs": 7}}}
    )
    one, two = planned(phases(model), training, model)
    assert (one.epochs, one.batch_size) == (6, 9)
    assert (two.epochs, two.batch_size) == (7, 9)


def test_what_is_absent_keeps_the_papers_value(model):
    one, _ = planned(phases(model), TrainingConfig(), model)
    assert (one.epochs, one.batch_size, one.transforms) == (3, 128, ())


def test_a_schedule_is_built(model):
    training = TrainingConfig.model_validate({"schedule": {"name": "cosine", "warmup": 0.5}})
    one, _ = planned(phases(model), training, model)
    assert [round(one.schedule(p), 3) for p in (0.25, 0.5, 0.75, 1.0)] == [0.5, 1.0, 0.5, 0.0]


def test_adversarial_replaces_the_phases_own_and_augmentation_comes_first(model):
    training = TrainingConfig.model_validate(
        {
            "augment": ["flip"],
            "adversarial": {"attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}},
        }
    )
    one, _ = planned(phases(model), training, model)
    assert [type(t) for t in one.transforms] == [Augment, Adversarial]
    again, _ = planned([one], training, model)[0], None
    assert [type(t) for t in again.transforms] == [Augment, Adversarial]
    assert again.transforms[1].attack.config.steps == 2


class Dim:
    """Stands for a perturbation."""

    def __call__(self, x, *, generator):
        return x / 2


@pytest.fixture
def dim(monkeypatch):
    monkeypatch.setattr(UsePerturbation, "create", lambda use, *args: Dim())
    return UsePerturbation.model_construct(use="dim", params=PerturbationConfig())


def test_a_perturbation_comes_after_augmentation_and_before_adversarial_examples(model, dim):
    crafted = Adversarial(None)
    given = phases(model, transforms=(crafted,))
    training = TrainingConfig(perturbation=dim, augment=("flip",))
    one, two = planned(given, training, model)
    assert [type(t) for t in one.transforms] == [Augment, Natural]
    assert [type(t) for t in two.transforms] == [Augment, Natural, Adversarial]
    assert isinstance(one.transforms[1].perturbation, Dim)
    assert two.transforms[2] is crafted


def test_a_perturbation_replaces_the_phases_own_and_goes_to_the_phases_named(model, dim):
    own = Natural(Dim())
    given = phases(model, transforms=(own,))
    training = TrainingConfig(phases={"fit/2": PhaseOverrides(perturbation=dim)})
    one, two = planned(given, training, model)
    assert one.transforms == ()
    assert [type(t) for t in two.transforms] == [Natural]
    assert two.transforms[0] is not own


def test_without_a_perturbation_the_phases_own_stays(model):
    own = Natural(Dim())
    _, two = planned(phases(model, transforms=(own,)), TrainingConfig(augment=("flip",)), model)
    assert [type(t) for t in two.transforms] == [Augment, Natural]


def test_no_augmentation_can_be_asked_for(model):
    with_flip = planned(phases(model), TrainingConfig(augment=("flip",)), model)
    without, _ = planned(with_flip, TrainingConfig(augment=()), model)
    assert without.transforms == ()


def test_a_pattern_that_fits_no_phase_is_refused(model):
    training = TrainingConfig.model_validate({"phases": {"ulm/*": {"epochs": 1}}})
    with pytest.raises(ConfigError, match=r"'ulm/\*': fits no phase; the phases are fit/1, fit/2"):
        planned(phases(model), training, model)


def test_adversarial_examples_are_refused_where_no_phase_takes_them(model):
    training = TrainingConfig.model_validate(
        {"adversarial": {"attack": {"use": "pgd", "params": {"threat": "linf:0.1"}}}}
    )
    with pytest.raises(ConfigError, match="every phase of this defense crafts its own examples"):
        planned(phases(model, OwnLoop), training, model)


def test_adversarial_examples_for_phases_that_craft_their_own_are_refused(model):
    given = [*phases(model)[:1], OwnLoop(name="own/1", module=model["two"], epochs=1)]
    attack = {"attack": {"use": "pgd", "params": {"threat": "linf:0.1"}}}
    training = TrainingConfig.model_validate({"phases": {"own/*": {"adversarial": attack}}})
    with pytest.raises(ConfigError, match=r"'own/\*'.adversarial: own/1 crafts its own examples"):
        planned(given, training, model)
    both = TrainingConfig.model_validate({"phases": {"*": {"adversarial": attack}}})
    one, own = planned(given, both, model)
    assert [len(phase.transforms) for phase in (one, own)] == [1, 0]


def test_average_and_selection_are_overridden_by_phase(model):
    training = TrainingConfig.model_validate(
        {"ema": 0.9, "phases": {"fit/2": {"ema": 0.0, "select": "best-validation"}}}
    )
    one, two = planned(phases(model), training, model, held_out=5)
    assert (one.ema, one.select) == (0.9, "last")
    assert (two.ema, two.select) == (0.0, "best-validation")


def test_a_selection_needs_held_out_images(model):
    training = TrainingConfig.model_validate({"phases": {"fit/2": {"select": "best-validation"}}})
    with pytest.raises(ConfigError, match=r"best epoch of fit/2 is .* set data\.validation to"):
        planned(phases(model), training, model, held_out=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fit/1"}, "two phases are named 'fit/1'"),
        ({"depends_on": ("later",)}, "depends on later, not among the phases before it"),
    ],
)
def test_contradicting_phases_are_refused(model, change, message):
    given = phases(model)
    for key, value in change.items():
        setattr(given[1], key, value)
    with pytest.raises(TrainingError, match=message):
        planned(given, TrainingConfig(), model)


def test_independent_phases_must_not_share_weights(model):
    modules = {"a": model, "b": model["two"]}
    given = [Plain(name=name, module=module, epochs=1) for name, module in modules.items()]
    with pytest.raises(TrainingError, match="'a' and 'b' change the same weights"):
        planned(given, TrainingConfig(), model)
    given[1].depends_on = ("a",)
    assert len(planned(given, TrainingConfig(), model)) == 2


def test_a_prefix_is_found_by_identity(model):
    assert prefix(model, model) == ""
    assert prefix(model["two"], model) == "two."
    with pytest.raises(TrainingError, match="no part of the model"):
        prefix(nn.Linear(2, 2), model)
