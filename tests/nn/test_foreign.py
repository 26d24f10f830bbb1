"""Somebody else's classifiers: declared random, in parts, with a surrogate, in other units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import phalanx
from phalanx.data import load_data
from phalanx.errors import InputError
from phalanx.nn.foreign import Foreign, wrap
from phalanx.nn.member import Normalize
from phalanx.randomness import generator

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    def __init__(self, seed: int = 0, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer = nn.Linear(16, classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Noisy(Linear):
    """Draws from all three global generators."""

    def forward(self, x):
        import random

        shift = torch.randn(x.shape) + np.random.standard_normal() + random.gauss()
        return super().forward(x + 0.1 * shift)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(Linear(seed) for seed in range(3))

    def forward(self, x):
        return torch.stack([network(x) for network in self.networks]).mean(0)


class Steps(Linear):
    """No gradient passes its rounding."""

    def forward(self, x):
        return super().forward((8 * x).round() / 8)


class Says(nn.Module):
    """Answers whatever it was told to."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def gradient(function, x):
    x = x.clone().requires_grad_()
    scores = function(x)
    (found,) = torch.autograd.grad(
        nn.functional.cross_entropy(scores, torch.zeros(len(x)).long()), x
    )
    return scores.detach(), found


# ---------------------------------------------------------------- what comes out


def test_a_deterministic_module_is_what_it_was():
    module = Linear()
    model = wrap(module)
    assert torch.equal(model(X), module(X))
    assert list(model.views()) == ["deployed"]
    assert model.views()["deployed"].rowwise
    assert model.members == ()
    assert model.task is None
    assert module.training


def test_a_defended_model_comes_back_as_it_is():
    model = wrap(Linear())
    assert wrap(model) is model
    assert phalanx.wrap(model) is model
    with pytest.raises(InputError, match="Foreign is a DefendedModel, which says itself"):
        wrap(model, stochastic=True)


def test_images_stay_in_the_unit_box_and_the_module_gets_its_units():
    module = Linear()
    model = wrap(module, mean=[0.4], std=[0.2])
    assert torch.allclose(model(X), module((X - 0.4) / 0.2))
    assert not [name for name in model.state_dict() if "normalize" in name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_input_is_cast_to_the_modules_type_and_scores_are_wide(dtype):
    module = Linear().to(dtype)
    model = wrap(module, mean=[0.5], std=[0.5])
    scores = model(X)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = module(((X.to(dtype) - torch.tensor(0.5)) / torch.tensor(0.5)).to(dtype))
    assert torch.equal(scores, expected.to(scores.dtype))


def test_a_module_without_parameters():
    model = wrap(Says(lambda x: x.flatten(1)))
    assert torch.equal(model(X), X.flatten(1))
    assert model((X * 255).to(torch.uint8)).dtype == torch.float32


def test_a_module_that_changes_its_input_leaves_the_images_alone():
    class InPlace(Linear):
        def forward(self, x):
            return super().forward(x.sub_(0.5).mul_(4))

    model, kept = wrap(InPlace()), X.clone()
    with torch.no_grad():
        scores = model(X)
    assert torch.equal(X, kept)
    assert torch.allclose(scores, Linear()((X - 0.5) * 4))
    assert gradient(model, X)[1].abs().max() > 0  # and a leaf may be attacked


def test_a_sequential_stays_inside():
    assert not isinstance(wrap(nn.Sequential(nn.Flatten())), nn.Sequential)


# ---------------------------------------------------------------- declared random


def test_each_draw_is_pure_and_leaves_no_trace():
    import random

    model = wrap(Noisy(), stochastic=True)
    assert list(model.views()) == ["deployed", "one-draw", "expected"]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one, same, other = (model.draw(X, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    served = model.serve(5)
    assert not torch.equal(served(X), served(X))
    assert torch.equal(model.serve(5)(X), model.serve(5)(X))
    fixed = model.views()["one-draw"].open(3)
    assert torch.equal(fixed(X), fixed(X))
    with pytest.raises(ValueError, match="draw needs a generator"):
        model.draw(X, None)


def test_a_stochastic_evaluation_is_the_same_for_the_same_seed():
    x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
    state = torch.get_rng_state()

    def rows(seed):
        model = wrap(Noisy(), stochastic=True)
        report = phalanx.evaluate(
            model, (x, y), attacks=["pgd:steps=2"], threat="linf:0.1", seed=seed
        )
        return report.rows

    first = rows(0)
    assert {row.view for row in first} == {"deployed", "one-draw", "expected", "worst"}
    assert first == rows(0)
    assert [row.robust_accuracy for row in first] != [row.robust_accuracy for row in rows(1)]
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- members and surrogate


def test_members_take_what_the_model_takes():
    module = Mixture()
    model = wrap(module, members=module.networks, mean=[0.4], std=[0.2])
    assert len(model.members) == 3
    for member, network in zip(model.members, module.networks, strict=True):
        assert torch.allclose(member(X), network((X - 0.4) / 0.2))
        assert next(member.parameters()) is network.layer.weight
    assert torch.allclose(torch.stack([m(X) for m in model.members]).mean(0), model(X), atol=1e-6)
    with pytest.raises(InputError, match=r"members\[1\] \(Linear\) is no submodule of Mixture"):
        wrap(module, members=[module.networks[0], Linear()])


@pytest.mark.parametrize("units", [{}, {"mean": [0.4], "std": [0.2]}])
def test_the_surrogate_has_the_deployed_scores_and_its_own_gradient(units):
    module, stand_in = Steps(0), Linear(1)
    model = wrap(module, surrogate=stand_in, **units)
    assert list(model.views()) == ["deployed", "surrogate"]
    scores, found = gradient(model.views()["surrogate"].open(0), X)
    assert torch.equal(scores, model(X))  # to the last bit
    # the gradient of the loss at the deployed scores, taken back through the stand-in
    z = scores.clone().requires_grad_()
    (at_scores,) = torch.autograd.grad(
        nn.functional.cross_entropy(z, torch.zeros(len(X)).long()), z
    )
    x = X.clone().requires_grad_()
    put = (x - 0.4) / 0.2 if units else x
    (expected,) = torch.autograd.grad(stand_in(put), x, at_scores)
    assert torch.allclose(found, expected)
    assert gradient(model.views()["deployed"].open(0), X)[1].abs().max() == 0  # it hides its own


def test_the_surrogate_of_a_random_module_follows_its_stream():
    model = wrap(Noisy(), stochastic=True, surrogate=Linear(1))
    assert list(model.views()) == ["deployed", "one-draw", "expected", "surrogate"]
    view = model.views()["surrogate"]
    assert not view.rowwise
    with torch.no_grad():
        assert torch.equal(view.open(4)(X), model.serve(4)(X))


def test_bpda_finds_what_the_deployed_view_hides():
    data = load_data("digits")
    train, test = data.train.fetch(slice(None)), data.test.fetch(slice(40))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear(train.x), train.y).backward()
        optimizer.step()
    module = Says(lambda x: linear((16 * x).round() / 16))
    report = phalanx.evaluate(
        wrap(module, surrogate=linear), (test.x, test.y), attacks=["fgsm"], threat="linf:0.1"
    )
    found = {row.view: row.robust_accuracy for row in report.rows}
    assert found["deployed"] == report.rows[0].clean_accuracy > 0.9
    assert found["surrogate"] < 0.6


def test_another_surrogate_is_another_model():
    from phalanx.evaluation.subjects import digest_of

    digests = {digest_of(wrap(Steps(), surrogate=Linear(seed))) for seed in (1, 2)}
    digests |= {digest_of(wrap(Steps(), stochastic=flag)) for flag in (False, True)}
    digests |= {digest_of(wrap(Steps(), mean=[value], std=[1])) for value in (0, 0.5)}
    assert len(digests) == 6


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mean": [0.5]}, r"mean and std belong together, .*found mean=\[0.5\], std=None"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "mean and std belong together"),
        ({"mean": [0.5], "std": [0.0]}, "std is positive"),
        ({"mean": [float("nan")], "std": [1.0]}, "mean and std are finite"),
    ],
)
def test_units_that_are_none(arguments, told):
    with pytest.raises(InputError, match=told):
        wrap(Linear(), **arguments)


def test_what_is_no_module():
    with pytest.raises(InputError, match=r"takes a torch.nn.Module, found builtins.function; an"):
        wrap(lambda x: x)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: (x.flatten(1), x), "Says answers with tuple, not with a tensor of scores"),
        (lambda x: x, r"answered 6 images with torch.float32 of shape \(6, 1, 4, 4\)"),
        (lambda x: x.flatten(1).argmax(1), r"torch.int64 of shape \(6,\)"),
        (lambda x: x.flatten(1)[:2], r"of shape \(2, 16\)"),
    ],
)
def test_answers_that_are_no_scores(answer, told):
    with pytest.raises(InputError, match=told):
        wrap(Says(answer))(X)


def test_declared_classes_are_held_to():
    with pytest.raises(InputError, match="Linear tells 3 classes apart, declared: classes=10"):
        wrap(Linear(), classes=10)(X)
    assert isinstance(wrap(Linear(), classes=3), Foreign)
    view = wrap(Linear(), surrogate=Linear(0, classes=4)).views()["surrogate"].open(0)
    with pytest.raises(
        InputError, match=r"surrogate gives scores \(6, 4\), the deployed .*\(6, 3\)"
    ):
        view(X.clone().requires_grad_())


def test_normalisation_is_the_houses_own():
    assert isinstance(wrap(Linear(), mean=(0.5,), std=(0.5,)).normalize, Normalize)


class Average(nn.Module):
    """Three networks, combined as told."""

    def __init__(self, how):
        super().__init__()
        self.networks = nn.ModuleList(Linear(seed) for seed in range(3))
        self.how = how

    def forward(self, x):
        return self.how(torch.stack([network(x) for network in self.networks]))


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        (lambda z: z.softmax(2).mean(0).log(), "probabilities"),
        (lambda z: z.mean(0), "logits"),
        (lambda z: z.amax(0), None),
        (lambda z: z[0], None),
    ],
)
def test_what_a_module_averages_is_seen(how, rule):
    torch.manual_seed(0)
    module = Average(how)
    combined = wrap(module, members=module.networks).combined(X)
    assert (None if combined is None else combined.rule) == rule
    if combined is not None:
        assert combined.logits.shape == (3, *module(X).shape)
    assert wrap(module).combined(X) is None
