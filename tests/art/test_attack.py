"""ART's evasion attacks as ours: they run within the threat, or refuse in one clear sentence."""

import importlib.util
import random
import subprocess
import sys

import art
import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack

from phalanx.art import config as art_config
from phalanx.art.attack import ArtAttack, names
from phalanx.art.config import UNSUPPORTED, ArtAttackConfig
from phalanx.art.parameters import takes_budget
from phalanx.attack import Targeted, attacking
from phalanx.attacks.balls import within
from phalanx.errors import (
    AttackInapplicable,
    ConfigError,
    ThreatModelError,
    UnknownComponentError,
)
from phalanx.randomness import generator
from phalanx.specs import Linf

SHORT = {"max_iter": 5}
APGD = SHORT | {"nb_random_init": 1, "loss_type": "cross_entropy"}
CARLINI = {"max_iter": 5, "binary_search_steps": 2, "initial_const": 1.0, "learning_rate": 0.1}
CHEAP = {
    "AdversarialPatchPyTorch": {"max_iter": 2, "scale_min": 0.4, "scale_max": 0.5},
    "AutoAttack": {},
    "AutoConjugateGradient": APGD,
    "AutoProjectedGradientDescent": APGD,
    "BasicIterativeMethod": SHORT,
    "BoundaryAttack": {"max_iter": 3, "num_trial": 3, "sample_size": 5},
    "BrendelBethgeAttack": {"steps": 3},
    "CarliniL0Method": CARLINI,
    "CarliniL2Method": CARLINI,
    "CarliniLInfMethod": {"max_iter": 3, "initial_const": 0.1, "largest_const": 1.0},
    "CompositeAdversarialAttackPyTorch": {"max_iter": 1},
    "DeepFool": {"max_iter": 20},
    "ElasticNet": CARLINI,
    "FastGradientMethod": {},
    "HopSkipJump": {"max_iter": 2, "max_eval": 30, "init_eval": 5},
    "MomentumIterativeMethod": SHORT,
    "NewtonFool": SHORT,
    "PixelAttack": {"max_iter": 1, "th": 2},
    "ProjectedGradientDescent": SHORT,
    "ProjectedGradientDescentNumpy": SHORT,
    "ProjectedGradientDescentPyTorch": SHORT,
    "RescalingAutoConjugateGradient": APGD,
    "SaliencyMapMethod": {"theta": 0.3},
    "ShadowAttack": {"nb_steps": 2, "batch_size": 4},
    "SignOPTAttack": {"max_iter": 2, "num_trial": 3, "query_limit": 50, "k": 5},
    "SimBA": {"attack": "px", "max_iter": 20},
    "SpatialTransformation": {"max_translation": 20, "num_translations": 2},
    "SquareAttack": {"max_iter": 20},
    "TargetedUniversalPerturbation": {"max_iter": 1},
    "ThresholdAttack": {"max_iter": 1, "th": 20, "es": 1},
    "UniversalPerturbation": {"max_iter": 1},
    "VirtualAdversarialMethod": {"max_iter": 2},
    "Wasserstein": {"max_iter": 2, "regularization": 100.0},
    "ZooAttack": {"max_iter": 2, "use_resize": False, "use_importance": False, "nb_parallel": 8},
}
THREATS = {"BasicIterativeMethod": "linf:0.3", "SaliencyMapMethod": "none"}
SANE = {
    "AutoProjectedGradientDescent",
    "BasicIterativeMethod",
    "CarliniL2Method",
    "DeepFool",
    "ElasticNet",
    "FastGradientMethod",
    "MomentumIterativeMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
    "SaliencyMapMethod",
}
"""Those that a few cheap steps are enough for."""


def make(name, threat="l2:1.5", **params):
    return ArtAttack(ArtAttackConfig(name=name, threat=threat, **params))


def run(attack, model, x, y, seed=0):
    with attacking(model):
        return attack(model, x, y, generator=generator(seed))


@pytest.fixture
def served(build, batch):
    """A deterministic, row-wise view, and six images that it gets right."""
    model = build().views()["deployed"].open(0)
    model.rowwise = True
    right = model(batch[0]).argmax(1) == batch[1]
    return model, batch[0][right][:6], batch[1][right][:6]


def test_every_attack_of_art_is_known():
    missing = [] if importlib.util.find_spec("numba") else ["BrendelBethgeAttack"]
    known = [n for n in dir(evasion) if isinstance(getattr(evasion, n), type)]
    known = [n for n in known if issubclass(getattr(evasion, n), EvasionAttack)]
    assert sorted([*known, *missing]) == sorted([*CHEAP, *UNSUPPORTED])
    assert names() == sorted(set(CHEAP) - set(missing))


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_it_runs_within_the_threat_or_refuses(served, name):
    model, x, y = served
    threat = THREATS.get(name, "l2:1.5")
    package = art_config._PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        with pytest.raises(AttackInapplicable) as caught:
            make(name)
        assert str(caught.value) == (
            f"ART's {name} needs the package {package!r}, which is not installed: "
            f"pip install {package}"
        )
        return
    if package:
        pytest.skip("slow: the refusal is what this test is for")
    attack = make(name, threat, **CHEAP[name])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    labels = Targeted((y + 1) % 10) if name == "TargetedUniversalPerturbation" else y
    found = run(attack, model, x, labels)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert within(found, x, attack.threat).all()
    if name in SANE:
        assert (model(found).argmax(1) == y).float().mean() <= 0.5


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_refused_by_the_config(name):
    with pytest.raises(ValueError, match=f"ART's {name} cannot run here: it "):
        ArtAttackConfig(name=name, threat="linf:0.1")


@pytest.mark.parametrize(
    ("name", "threat", "params"),
    [
        ("FastGradientMethod", "linf:0.2", {}),
        ("ProjectedGradientDescent", "linf:0.2", {"max_iter": 5, "num_random_init": 1}),
        ("AutoProjectedGradientDescent", "l2:1", APGD),
        ("SquareAttack", "l2:1", {"max_iter": 10}),
    ],
)
def test_budget_attacks_use_the_threats_radius(served, name, threat, params):
    model, x, y = served
    attack = make(name, threat, **params)
    assert takes_budget(name, {"eps"})
    size = (run(attack, model, x, y) - x).flatten(1)
    length = size.abs().amax(1) if "linf" in threat else size.norm(dim=1)
    assert length.max() == pytest.approx(attack.threat.eps, abs=2e-2)
    larger = run(attack.at(type(attack.threat)(attack.threat.eps * 2)), model, x, y)
    assert not within(larger, x, attack.threat).all()


def test_minimum_norm_examples_over_the_budget_are_given_up(served):
    model, x, y = served
    free = run(make("DeepFool", "none", max_iter=10), model, x, y)
    length = (free - x).flatten(1).norm(dim=1)
    eps = float(length.median())
    tight = run(make("DeepFool", f"l2:{eps}", max_iter=10), model, x, y)
    kept = length <= eps * (1 + 1e-5)
    assert 0 < kept.sum() < len(x)
    torch.testing.assert_close(tight[kept], free[kept])
    assert torch.equal(tight[~kept], x[~kept])
    assert (model(tight).argmax(1)[~kept] == y[~kept]).all(), "they count as robust"


def test_batches_do_not_change_what_is_found(served):
    model, x, y = served
    for name in ("DeepFool", "CarliniL2Method", "ElasticNet", "SaliencyMapMethod"):
        single = run(make(name, "none", **CHEAP[name], batch_size=1), model, x, y)
        together = run(make(name, "none", **CHEAP[name]), model, x, y)
        torch.testing.assert_close(single, together, atol=1e-4, rtol=0)


def test_wrong_images_stay_as_they_are(served):
    """DeepFool leads images away from the predicted class: a wrong one could become right."""
    model, x, y = served
    wrong = y.clone()
    wrong[:3] = (wrong[:3] + 1) % 10
    found = run(make("DeepFool", "none", max_iter=10), model, x, wrong)
    assert torch.equal(found[:3], x[:3])
    assert not torch.equal(found[3:], x[3:])


def test_same_generator_same_examples(build, batch):
    x, y = batch[0][:6], batch[1][:6]
    attack = make("ProjectedGradientDescent", "linf:0.2", num_random_init=1, **SHORT)

    def found(seed):
        return run(attack, build("noisy").views()["deployed"].open(1), x, y, seed)

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))


@pytest.mark.parametrize("name", ["ProjectedGradientDescent", "SaliencyMapMethod"])
def test_targets(served, name):
    model, x, y = served
    goal = (y + 1) % 10
    before = model(x).log_softmax(1).gather(1, goal[:, None])
    found = run(make(name, "linf:1", **CHEAP[name]), model, x, Targeted(goal))
    after = model(found).log_softmax(1).gather(1, goal[:, None])
    assert (after > before).float().mean() > 0.8


def test_the_callers_mode_holds(build, batch):
    """An attack leaves modes to its caller, who may want batch statistics."""
    model = build("noisy")
    norm = model.networks[0][1]
    seen = []
    norm.register_forward_hook(lambda *call: seen.append(norm.training))
    with attacking(model, batchnorm="train"):
        make("FastGradientMethod", "linf:0.1")(model, *batch, generator=generator(0))
    assert seen
    assert all(seen)


def test_any_callable_and_dtype(served):
    model, x, y = served
    module = model.double()
    found = make("HopSkipJump", "none", **CHEAP["HopSkipJump"])(
        lambda images: module(images), x.double(), y, generator=generator(0)
    )
    assert found.dtype == torch.float64


def test_no_budget_and_no_images(served):
    model, x, y = served
    attack = make("AutoProjectedGradientDescent", "linf:0")
    assert torch.equal(run(attack, model, x, y), x)
    assert run(attack, model, x[:0], y[:0]).shape == (0, 1, 8, 8)


def test_by_name_or_by_config(served):
    model, x, y = served
    attack = ArtAttack("DeepFool", threat=Linf(0.1), max_iter=5)
    assert attack.config == ArtAttackConfig(name="DeepFool", threat="linf:0.1", max_iter=5)
    assert attack.at(Linf(0.2)).config == make("DeepFool", "linf:0.2", max_iter=5).config
    same = run(ArtAttack(attack.config), model, x, y)
    assert torch.equal(run(attack, model, x, y), same)
    with pytest.raises(ConfigError) as caught:
        ArtAttack(attack.config, max_iter=3)
    assert (
        str(caught.value) == "ArtAttack: 1 problem\n  max_iter: set it in the config, not beside it"
    )
    with pytest.raises(AttackInapplicable, match="ART's DPatch cannot run here: it attacks object"):
        ArtAttack("DPatch", threat=Linf(0.1))


def test_the_package_offers_its_names_lazily():
    code = (
        "import sys, phalanx.art; assert not {'torch', 'art'} & set(sys.modules); "
        "from phalanx.art import ArtAttack, as_art, as_art_attack; "
        "assert ArtAttack.__module__ == 'phalanx.art.attack'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attack():
    with pytest.raises(UnknownComponentError) as caught:
        make("Deepfool")
    assert str(caught.value) == (
        f"unknown attack 'art/Deepfool': ART {art.__version__} has no evasion attack Deepfool; "
        f"did you mean 'art/DeepFool'? it has: {', '.join(names())}"
    )


def test_wrong_parameters():
    with pytest.raises(ConfigError) as caught:
        make("ProjectedGradientDescent", "linf:0.1", max_itr=3, targeted=True, eps=0.3, norm=2)
    assert str(caught.value) == (
        "art/ProjectedGradientDescent: 4 problems\n"
        "  max_itr: unknown parameter; did you mean 'max_iter'? allowed: norm, eps, eps_step, "
        "decay, max_iter, targeted, num_random_init, batch_size, random_eps, summary_writer, "
        "verbose\n"
        "  targeted: comes with the labels; pass Targeted(labels) to the attack\n"
        "  eps: comes from the threat (linf:0.1); set that instead\n"
        "  norm: comes from the threat (linf:0.1); set that instead"
    )
    with pytest.raises(ValueError, match="attacker"):
        ArtAttackConfig(name="DeepFool", attacker=object())


@pytest.mark.parametrize(
    ("name", "threat", "error", "message"),
    [
        (
            "BasicIterativeMethod",
            "l2:1",
            ThreatModelError,
            "ART's BasicIterativeMethod cannot take threat l2:1; it takes: linf",
        ),
        (
            "DeepFool",
            "linf:0.1+l2:1",
            ThreatModelError,
            "attack ArtAttack cannot take threat linf:0.1+l2:1; it takes: linf, l2, l1, noball",
        ),
        (
            "SquareAttack",
            "l1:6",
            AttackInapplicable,
            "ART's SquareAttack returns the clean images under an L1 threat, without a word; "
            "use linf or l2, or ART's AutoProjectedGradientDescent",
        ),
    ],
)
def test_wrong_threats(name, threat, error, message):
    with pytest.raises(error) as caught:
        make(name, threat)
    assert str(caught.value) == message


@pytest.mark.skipif(importlib.util.find_spec("cma") is not None, reason="cma is installed")
def test_a_missing_package_that_can_be_avoided():
    with pytest.raises(AttackInapplicable) as caught:
        make("ThresholdAttack", "none")
    assert str(caught.value) == (
        "ART's ThresholdAttack needs the package 'cma', which is not installed: pip install cma "
        "(or set es = 1, which needs nothing)"
    )


def test_what_art_raises_is_told(served):
    model, x, y = served
    with pytest.raises(AttackInapplicable) as caught:
        run(make("DeepFool", "none", max_iter=-1), model, x, y)
    assert str(caught.value) == (
        "ART's DeepFool failed on this model: ValueError: "
        "The number of iterations must be a positive integer."
    )
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(AttackInapplicable) as caught:
        run(make("DeepFool", "none", max_iter=10), model, x, Targeted(y))
    assert str(caught.value) == "ART's DeepFool cannot aim at labels; attack without targets"
    with pytest.raises(AttackInapplicable) as caught:
        run(make("TargetedUniversalPerturbation"), model, x, y)
    assert str(caught.value) == (
        "ART's TargetedUniversalPerturbation needs labels to aim at; pass Targeted(labels)"
    )
