"""Served functions and views: streams of their own, over shared weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from phalanx import randomness
from phalanx.combine import log_mean
from phalanx.defense import DefendedModel, cast_like


class Noisy(DefendedModel):
    """Adds noise to its scores: stochastic, without a support."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def draw(self, x, generator):
        noise = torch.randn(len(x), 3, generator=generator, dtype=x.dtype)
        return self.linear(x.flatten(1)) + noise


class Choice(DefendedModel):
    """Answers by one of three linear classifiers: stochastic, with a support."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def support(self):
        return [nn.Sequential(nn.Flatten(), part) for part in self.parts]

    def draw(self, x, generator):
        index = torch.randint(3, (len(x),), generator=generator)
        scores = torch.stack([part(x) for part in self.support()])
        return scores[index, torch.arange(len(x))]


class Plain(DefendedModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def draw(self, x, generator):
        assert generator is None
        return self.linear(x.flatten(1))


@pytest.fixture
def x():
    return torch.rand(6, 1, 2, 2)


def test_views_of_a_deterministic_model(x):
    model = Plain()
    views = model.views()
    assert list(views) == ["deployed"]
    assert views["deployed"].rowwise
    assert torch.equal(views["deployed"].open(1)(x), model(x))


def test_views_of_a_stochastic_model():
    assert list(Noisy().views()) == ["deployed", "one-draw", "expected"]
    assert not any(view.rowwise for view in Noisy().views().values())
    rowwise = {name: view.rowwise for name, view in Choice().views().items()}
    assert rowwise == {"deployed": False, "one-draw": True, "expected": True}
    assert Choice().views()["one-draw"].fixed_draw


@pytest.mark.parametrize("kind", [Noisy, Choice])
def test_serving_has_a_stream_of_its_own(kind, x):
    model = kind()
    one, two, other = model.serve(1), model.serve(1), model.serve(2)
    first = one(x)
    model(x), other(x)
    assert torch.equal(first, two(x))
    assert not torch.equal(first, one(x))
    assert not torch.equal(first, other(x))
    with torch.no_grad():
        next(model.parameters()).add_(100.0)
    assert not torch.equal(first, model.serve(1)(x)), "weights are shared"


def test_the_models_own_stream_can_be_rekeyed(x):
    model = Noisy()
    model.reseed(3, "step")
    first = model(x)
    second = model(x)
    model.reseed(3, "step")
    assert torch.equal(first, model(x))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_streams_survive_copies(clone, x):
    served = Noisy().serve(1)
    served(x)
    twin = clone(served)
    assert torch.equal(served(x), twin(x))


def test_one_draw_is_fixed_and_each_member_comes_up(x):
    model = Choice()
    chosen = set()
    for seed in range(40):
        module = model.views()["one-draw"].open(seed)
        assert torch.equal(module(x), module(x))
        chosen.add(module[1])
    assert chosen == set(model.parts)


def test_one_draw_without_a_support_repeats_its_noise(x):
    module = Noisy().views()["one-draw"].open(5)
    assert torch.equal(module(x), module(x))
    assert not torch.equal(module(x), Noisy().views()["one-draw"].open(6)(x))


def test_expected_is_the_closed_form_over_the_support(x):
    model = Choice()
    expected = log_mean([part(x) for part in model.support()])
    assert torch.equal(model.views()["expected"].open(0)(x), expected)


def test_expected_without_a_support_averages_fresh_draws(x):
    model = Noisy()
    module = model.views()["expected"].open(0)
    assert not torch.equal(module(x), module(x))
    many = torch.stack([model.views()["expected"].open(s)(x).exp() for s in range(200)]).mean(0)
    draws = [model.draw(x, randomness.generator(s)).softmax(1) for s in range(4000)]
    assert torch.allclose(many, torch.stack(draws).mean(0), atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_input_of_another_type_is_cast(dtype):
    x = torch.ones(2, 1, 2, 2)
    assert torch.equal(Plain().to(torch.float32)(x.to(dtype)).isnan(), torch.zeros(2, 3).bool())
    assert Plain()(x.to(dtype)).dtype == torch.float32


def test_input_is_not_cast_to_integers(x):
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)
    assert cast_like(x, module) is x
    module.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    assert cast_like(x, module).dtype == torch.float64
