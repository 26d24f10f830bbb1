"""Draws are uniform and independent, answers average what was drawn, views are what they say."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from phalanx.api import ConfigError, Task, generator, log_mean
from phalanx_rls.config import RLSConfig
from phalanx_rls.defense import RLS
from phalanx_rls.sampling import RandomLayers, sampled_bits

TASK = Task(name="t", shape=(1, 8, 8), classes=10, train_size=90, mean=(0.3,), std=(0.4,))


def made(**params):
    config = RLSConfig.model_validate({"backbone": "small_cnn", **params})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return RLS(config, TASK).build().eval()


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def toy():
    """Two units of linear layers, M = 2: four sampled networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        networks = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)) for _ in range(2)]
    return RandomLayers(networks, (("0",), ("1",)), samples=1)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("members", [2, 3])
def test_each_unit_is_uniform_and_pairs_are_independent(members):
    model = made(members=members)
    drawn = torch.tensor(model.choose(10_000, generator(3)))
    assert drawn.shape == (10_000, 3)
    limit = {2: 10.83, 3: 13.82, 4: 16.27, 9: 26.12}  # chi-square, .999 quantile
    expected = len(drawn) / members
    for unit in drawn.unbind(1):
        counts = unit.bincount(minlength=members)
        assert ((counts - expected) ** 2 / expected).sum() < limit[members]
    expected = len(drawn) / members**2
    for a, b in itertools.combinations(range(3), 2):
        counts = (drawn[:, a] * members + drawn[:, b]).bincount(minlength=members**2)
        assert ((counts - expected) ** 2 / expected).sum() < limit[members**2]


def test_different_draws_differ_and_run_out():
    model = made()
    assert model.combinations == 8
    every = model.choose_different(8, generator(0))
    assert sorted(every) == list(itertools.product((0, 1), repeat=3))
    with pytest.raises(ValueError, match="9 different sampled networks were asked for, but 2 sub-"):
        model.choose_different(9, generator(0))


def test_toy_draws_are_the_four_enumerated_outputs():
    model = toy()
    first, second = model.networks
    x = torch.rand(7, 3, generator=torch.Generator().manual_seed(2))
    enumerated = {
        (i, j): (first, second)[j][1]((first, second)[i][0](x))
        for i, j in itertools.product(range(2), repeat=2)
    }
    drawn = model.choose(4000, generator(5))
    assert set(drawn) == set(enumerated)
    for choice in enumerated:
        assert torch.equal(model.sampled(choice)(x), enumerated[choice])
    outputs = torch.stack([enumerated[choice] for choice in drawn])
    mean = torch.stack(list(enumerated.values())).mean(0)
    sigma = torch.stack(list(enumerated.values())).std(0, unbiased=False) / len(drawn) ** 0.5
    assert bool(((outputs.mean(0) - mean).abs() <= 4 * sigma + 1e-6).all())


# ---------------------------------------------------------------- answers


def test_an_answer_is_the_log_mean_of_n_networks(x):
    model = made(samples=4)
    with torch.no_grad():
        found = model.draw(x, generator(9))
        parts = [model.sampled(r)(x) for r in model.choose(4, generator(9))]
    torch.testing.assert_close(found, log_mean(parts))
    with pytest.raises(ValueError, match="draw needs a generator"):
        model.draw(x, None)


def test_evaluation_mode_goes_on_drawing(x):
    model = made(samples=1)
    with torch.no_grad():
        answers = {tuple(model(x).flatten().tolist()) for _ in range(20)}
    assert len(answers) > 1


def test_one_submodel_is_the_plain_network_bit_for_bit(x):
    model = made(members=1, group=1)
    with torch.no_grad():
        assert torch.equal(model(x), model.networks[0](x))
    assert not model.stochastic
    assert set(model.views()) == {"deployed"}
    assert model.views()["deployed"].rowwise


def test_unlike_submodels_are_refused():
    networks = [nn.Sequential(nn.Linear(3, width), nn.Linear(width, 5)) for width in (4, 6)]
    with pytest.raises(ConfigError, match="give sub-models of one architecture with the same key"):
        RandomLayers(networks, (("0",), ("1",)))


def test_every_submodels_weights_are_stored():
    names = made(members=3).state_dict()
    assert {name.split(".")[1] for name in names} == {"0", "1", "2"}
    assert "networks.2.backbone.conv1.weight" in names


# ---------------------------------------------------------------- views


def test_views_are_the_papers_and_the_adaptive_one():
    views = made().views()
    assert list(views) == [
        "deployed",
        "one-draw",
        "n-draws-5",
        "n-draws-10",
        "n-draws-15",
        "expected",
    ]
    fixed = [name for name, view in views.items() if view.fixed_draw]
    assert fixed == ["one-draw", "n-draws-5", "n-draws-10", "n-draws-15"]
    assert [name for name, view in views.items() if view.rowwise] == fixed


def test_one_draw_is_one_sampled_network_and_stays(x):
    model = made()
    networks = [model.sampled(r) for r in itertools.product((0, 1), repeat=3)]
    with torch.no_grad():
        enumerated = [network(x) for network in networks]
        opened = [model.views()["one-draw"].open(seed) for seed in range(30)]
        seen = set()
        for network in opened:
            scores = network(x)
            assert torch.equal(scores, network(x))
            (which,) = [i for i, one in enumerate(enumerated) if torch.equal(scores, one)]
            seen.add(which)
    assert len(seen) > 4


@pytest.mark.parametrize("n", [5, 10, 15])
def test_n_draws_are_n_networks_that_stay(x, n):
    module = made().views()[f"n-draws-{n}"].open(3)
    assert len(module.networks) == n
    with torch.no_grad():
        first = module(x)
        assert torch.equal(first, module(x))
        torch.testing.assert_close(first, log_mean([part(x) for part in module.networks]))


def test_expected_is_twenty_single_networks_drawn_at_each_call(x, monkeypatch):
    model = made(samples=10)
    counts = []
    choose = model.choose
    monkeypatch.setattr(model, "choose", lambda n, g: counts.append(n) or choose(n, g))
    module = model.views()["expected"].open(3)
    with torch.no_grad():
        first, second = module(x), module(x)
    assert counts == [20, 20]
    assert not torch.equal(first, second)
    assert torch.allclose(first.exp().sum(1), torch.ones(len(x)))


def test_gradients_reach_the_image_through_every_network(x):
    module = made().views()["n-draws-5"].open(0)
    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(start)[:, 0].sum(), start)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


# ---------------------------------------------------------------- agreement


def test_bits_of_sampled_networks(x):
    model = made()
    y = torch.arange(6)
    bits = sampled_bits(model, x, y, samples=10, seed=4)
    assert bits.shape == (10, 6)
    assert torch.equal(bits, sampled_bits(model, x, y, samples=10, seed=4))
    chosen = model.choose(10, generator(4, "agreement"))
    with torch.no_grad():
        assert torch.equal(bits[3], model.sampled(chosen[3])(x).argmax(1) == y)


def test_expected_names_the_submodels_for_attacks_that_need_members(x):
    model = made()
    assert list(model.views()["expected"].open(0).members) == list(model.members)
