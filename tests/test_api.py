"""The public surface: a change of it is a visible diff here."""

import importlib

import pytest

import phalanx
from phalanx import api

SURFACE = """
API_VERSION Adversarial AdversarialConfig AnyThreat Attack AttackConfig AttackInapplicable Augment
Backbone Batch BatchTransform Check Combined ComponentSpec ConfigError CrossEntropyPhase Deciding
DefendedModel Defense DefenseConfig Epsilon Goal JointPhase Kind L1 L2 Linf Masked MeanEnsemble
Member Natural NoBall Normalization Observer OptimizerConfig Paper Perturbation PerturbationConfig
PerturbationType Perturbing PhalanxError PhalanxWarning Phase PhaseContext Population Pruner
PrunerConfig Regularizer RoundPhase ScheduleConfig Scores Spec Targeted Task Threat
ThreatModelError Traits Union UseAttack UseDefense UsePerturbation UsePruner View ascend attacking
build_member capture convolutions craft expectation filter_parameters generator goal_of hookimpl
input_gradient interrater_agreement log_max log_mean margin may_drop_rows norm per_row project
random_start steepest unit_leaders with_retraining
"""

HOME = """
L1 L2 Linf NoBall Report Run Union default_registry defense evaluate from_art load register train
wrap
"""


def test_api_snapshot():
    assert sorted(api.__all__) == sorted(SURFACE.split())
    assert api.API_VERSION == (1, 2)


def test_package_snapshot():
    assert sorted(phalanx.__all__) == sorted(HOME.split())


@pytest.mark.parametrize("name", sorted(SURFACE.split()))
def test_every_name_of_the_api_resolves(name):
    assert getattr(api, name) is not None


@pytest.mark.parametrize("name", sorted(HOME.split()))
def test_every_name_of_the_package_resolves(name):
    assert getattr(phalanx, name) is not None


@pytest.mark.parametrize("module", ["phalanx", "phalanx.api"])
def test_unknown_names_and_dir(module):
    loaded = importlib.import_module(module)
    with pytest.raises(AttributeError, match=f"^module '{module}' has no attribute 'nope'$"):
        _ = loaded.nope
    assert dir(loaded) == sorted(loaded.__all__)
