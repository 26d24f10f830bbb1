"""Our attacks in ART's hands."""

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import nn

from phalanx.art.estimator import Estimator, as_art
from phalanx.art.offer import as_art_attack
from phalanx.attack import Targeted, attacking
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.errors import AttackInapplicable
from phalanx.randomness import generator


@pytest.fixture
def pgd():
    return PGD(PGDConfig(steps=5, threat="linf:0.3"))


def test_it_is_our_attack(build, batch, pgd):
    x, y = batch
    estimator = as_art(build())
    made = as_art_attack(pgd, estimator, seed=4)
    assert isinstance(made, EvasionAttack)
    with attacking(estimator.model):
        expected = pgd(estimator.model, x, y, generator=generator(4, "art", 0))
    one_hot = np.eye(10)[y.numpy()]
    for labels in (y.numpy(), one_hot):
        np.testing.assert_array_equal(made.generate(x.numpy(), labels), expected)
    made.set_params(batch_size=16)
    found = made.generate(x=x.numpy())
    assert found.shape == x.shape
    assert (estimator.predict(found).argmax(1) == y.numpy()).mean() < 0.5
    assert all(p.requires_grad for p in estimator.model.parameters())


def test_targeted(build, batch, pgd):
    x, y = batch
    estimator = as_art(build())
    made = as_art_attack(pgd, estimator)
    made.set_params(targeted=True)
    goal = (y + 1) % 10
    with attacking(estimator.model):
        expected = pgd(estimator.model, x, Targeted(goal), generator=generator(0, "art", 0))
    np.testing.assert_array_equal(made.generate(x.numpy(), goal.numpy()), expected)


def test_a_classifier_with_preprocessing(build, batch, pgd):
    x, y = batch[0].numpy(), batch[1].numpy()
    estimator = Estimator(build(), None, (1, 8, 8), 10, preprocessing=(0.1, 0.9))
    gradient = estimator.loss_gradient(x, y)
    inner = as_art(build()).loss_gradient((x - np.float32(0.1)) / np.float32(0.9), y)
    np.testing.assert_allclose(gradient, inner / 0.9, atol=1e-5)
    found = as_art_attack(pgd, estimator).generate(x, y)
    right = [(estimator.predict(images).argmax(1) == y).mean() for images in (x, found)]
    assert right[1] < right[0]


def test_other_images(build, pgd):
    plain = PyTorchClassifier(
        nn.Flatten(), nn.CrossEntropyLoss(), (1, 8, 8), 64, clip_values=(0, 255), device_type="cpu"
    )
    with pytest.raises(AttackInapplicable) as caught:
        as_art_attack(pgd, plain)
    assert str(caught.value) == (
        "our attacks work on images in [0, 1], and the estimator's clip_values are "
        "[  0. 255.]: build it with clip_values=(0, 1)"
    )
    assert torch.is_grad_enabled()
