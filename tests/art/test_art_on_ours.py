"""ART's own attacks on our estimator: they run, and where a sane attack would succeed, succeed."""

import importlib.util

import numpy as np
import pytest
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    BoundaryAttack,
    CarliniL2Method,
    DeepFool,
    ElasticNet,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescent,
    ProjectedGradientDescentPyTorch,
    SaliencyMapMethod,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from art.evaluations.security_curve import SecurityCurve
from torch.nn import CrossEntropyLoss, functional

from phalanx.art.estimator import as_art
from phalanx.randomness import seeded

BALL = {"eps": 0.3, "norm": np.inf}
ATTACKS = {
    "fgsm": (FastGradientMethod, BALL),
    "pgd": (ProjectedGradientDescent, BALL | {"eps_step": 0.05, "max_iter": 10}),
    "pgd-torch": (ProjectedGradientDescentPyTorch, BALL | {"eps_step": 0.05, "max_iter": 10}),
    "apgd": (
        AutoProjectedGradientDescent,
        BALL | {"eps_step": 0.3, "max_iter": 10, "nb_random_init": 1, "loss_type": "cross_entropy"},
    ),
    "square": (SquareAttack, BALL | {"max_iter": 60}),
    "deepfool": (DeepFool, {"max_iter": 20, "batch_size": 16}),
    "cw": (
        CarliniL2Method,
        {"binary_search_steps": 3, "max_iter": 10, "learning_rate": 0.1, "initial_const": 1.0},
    ),
    "ead": (
        ElasticNet,
        {"binary_search_steps": 2, "max_iter": 15, "learning_rate": 0.1, "initial_const": 1.0},
    ),
    "jsma": (SaliencyMapMethod, {"theta": 0.5, "batch_size": 16}),
    "hopskipjump": (HopSkipJump, {"max_iter": 2, "max_eval": 100, "init_eval": 10}),
    "boundary": (BoundaryAttack, {"targeted": False, "max_iter": 5, "num_trial": 5, "delta": 0.1}),
}
UNTARGETED_Y = set(ATTACKS) - {"jsma"}  # its y are targets


def accuracy(estimator, x, y, draws=5):
    right = [estimator.predict(x).argmax(1) == y for _ in range(draws)]
    return float(np.mean(right))


def attack(name, estimator, x, y):
    kind, settings = ATTACKS[name]
    quiet = {} if name == "fgsm" else {"verbose": False}
    if name in ("cw", "ead"):
        quiet["batch_size"] = 16
    with seeded("test", name):
        made = kind(estimator, **settings, **quiet)
        return made.generate(x, y=y if name in UNTARGETED_Y else None)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", ["mean", "one-of"])
def test_attack_succeeds(build, batch, kind, name):
    x, y = batch[0][:16].numpy(), batch[1][:16].numpy()
    estimator = as_art(build(kind))
    clean = accuracy(estimator, x, y)
    assert clean > 0.9
    found = attack(name, estimator, x, y)
    assert found.shape == x.shape
    assert np.isfinite(found).all()
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    left = accuracy(as_art(build(kind), seed=99), found, y)
    if kind == "mean":
        assert left <= 0.7 * clean
    elif name in ("fgsm", "pgd", "pgd-torch", "apgd"):
        assert left < clean


@pytest.mark.parametrize("view", ["deployed", "one-draw", "expected"])
def test_apgd_rewrapped_by_art_has_our_gradient(build, batch, view):
    """APGD leaves our estimator aside and builds a classifier of its own around its module."""
    x, y = batch[0].numpy(), batch[1].numpy()
    model = build("one-of")
    apgd = AutoProjectedGradientDescent(as_art(model, view), loss_type="cross_entropy")
    assert type(apgd.estimator) is PyTorchClassifier
    apgd.estimator.model.open(view, 0)
    labels = functional.one_hot(batch[1]).float().numpy()
    found = apgd.estimator.loss_gradient(x, labels)
    np.testing.assert_allclose(found, as_art(model, view).loss_gradient(x, y), atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_a_plain_classifier_around_our_module(build, batch):
    x, y = batch[0].numpy(), batch[1].numpy()
    estimator = as_art(build())
    plain = PyTorchClassifier(
        estimator.model, CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    np.testing.assert_array_equal(plain.predict(x.astype(np.float64)), estimator.predict(x))
    labels = functional.one_hot(batch[1]).float().numpy()
    np.testing.assert_allclose(plain.loss_gradient(x, labels), estimator.loss_gradient(x, y))


def test_security_curve(build, batch):
    x, y = batch[0].numpy(), functional.one_hot(batch[1]).numpy()
    curve = SecurityCurve(eps=[0.02, 0.3])
    _, after, clean = curve.evaluate(as_art(build()), x, y, max_iter=5, eps_step=0.1, verbose=False)
    assert clean > 0.9
    assert after[1] < after[0] <= clean


@pytest.mark.skipif(
    importlib.util.find_spec("multiprocess") is None, reason="ART's AutoAttack needs multiprocess"
)
def test_arts_own_autoattack(build, batch):
    x, y = batch[0][:4].numpy(), batch[1][:4].numpy()
    estimator = as_art(build())
    attacks = [AutoProjectedGradientDescent(estimator, eps=0.3, eps_step=0.3, verbose=False)]
    found = AutoAttack(estimator, eps=0.3, eps_step=0.3, attacks=attacks).generate(x, y)
    assert accuracy(estimator, found, y) < 1.0
