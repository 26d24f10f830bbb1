"""Types of input: an attack, a perturbation, or the clean image."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from phalanx.attack import Attack
from phalanx.attacks.gradient import PGD
from phalanx.config import PerturbationType
from phalanx.perturbation import Perturbation
from phalanx.randomness import generator
from phalanx.training.perturbing import Perturbing
from phalanx.training.transforms import Adversarial, Natural

PGD_2 = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
X, Y = torch.rand(6, 1, 4, 4, generator=generator("x")), torch.arange(6) % 3


class Half(Perturbation):
    """Half as bright, and a little noise."""

    def __init__(self):
        pass

    def __call__(self, x, *, generator):
        return (x + torch.rand(x.shape, generator=generator)) / 2


class Never(nn.Module):
    def forward(self, x):
        raise AssertionError("asked")


def of(**given):
    return PerturbationType.model_validate(given)


def test_a_clean_type_is_the_image_itself():
    clean = Perturbing.of(of(name="clean"))
    assert clean(Never(), X, Y, generator=generator(0)) is X
    assert clean.transforms() == ()


def test_an_attack_is_made_against_the_target():
    linf = Perturbing.of(of(name="linf-8", attack=PGD_2))
    assert isinstance(linf.attack, PGD)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = linf(model, X, Y, generator=generator(0))
    assert torch.equal(found, linf.attack(model, X, Y, generator=generator(0)))
    assert not found.requires_grad
    assert 0 < float((found - X).abs().max()) <= 0.1 + 1e-6
    (transform,) = linf.transforms()
    assert isinstance(transform, Adversarial)
    assert (transform.attack, transform.mode) == (linf.attack, "replace")


def test_a_perturbation_asks_no_model():
    half = Perturbing("half", perturbation=Half())
    found = half(Never(), X, Y, generator=generator(0))
    assert torch.equal(found, Half()(X, generator=generator(0)))
    (transform,) = half.transforms()
    assert isinstance(transform, Natural)


def test_any_registered_attack_takes_a_place():
    one = Perturbing.of(of(name="square", attack={"use": "square", "params": {"threat": "l2:1"}}))
    assert isinstance(one.attack, Attack)


def test_a_type_is_one_kind():
    with pytest.raises(ValueError, match="'both' has an attack and a perturbation: keep one"):
        PerturbationType.model_construct(
            name="both", attack=PGD_2, perturbation=object()
        )._is_one_kind()


@pytest.mark.parametrize("name", ["", "L1", "l 1", "-l1", "l1/2"])
def test_a_name_is_small_letters(name):
    with pytest.raises(ValidationError):
        of(name=name)


def test_types_round_trip_and_take_the_context_of_their_run():
    one = PerturbationType.model_validate(
        {"name": "linf", "attack": "pgd"},
        context={"threat": of(name="a", attack=PGD_2).attack.params.threat},
    )
    assert str(one.attack.params.threat) == "linf:0.1"
    assert PerturbationType.model_validate_json(one.model_dump_json()) == one
