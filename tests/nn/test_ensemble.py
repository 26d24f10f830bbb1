import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from phalanx.combine import log_mean
from phalanx.config import Backbone
from phalanx.nn import MeanEnsemble, Population, build_member
from phalanx.randomness import generator
from phalanx.specs import Task

TASK = Task(name="t", shape=(1, 8, 8), classes=10, train_size=1, mean=(0.3,), std=(0.4,))


class Constant(nn.Module):
    """Answers class `index` whatever it sees, so that answers tell the member."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.index), 4).float()


def members(count, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [build_member(Backbone(use="small_cnn"), TASK).eval() for _ in range(count)]


def images(count=12):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- mean


def test_mean_ensemble_serves_the_mean_probability():
    parts = members(3)
    model = MeanEnsemble(parts)
    expected = torch.stack([part(images()).softmax(1) for part in parts]).mean(0)
    torch.testing.assert_close(model(images()).softmax(1), expected)
    assert not model.stochastic
    assert set(model.views()) == {"deployed"}
    assert model.views()["deployed"].rowwise


def test_one_member_gives_its_own_logits():
    (part,) = members(1)
    assert torch.equal(MeanEnsemble([part])(images()), part(images()))


def test_members_keep_order_and_identity():
    parts = members(3)
    for model in (MeanEnsemble(parts), Population(parts)):
        assert all(a is b for a, b in zip(model.members, parts, strict=True))
        assert {name.split(".")[1] for name in model.state_dict()} == {"0", "1", "2"}
        assert all(name.startswith("networks.") for name in model.state_dict())


@pytest.mark.parametrize("kind", [MeanEnsemble, Population])
def test_no_members(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs at least one member, found none"):
        kind([])


# ---------------------------------------------------------------- population


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_each_row_is_answered_by_its_member(count, seed):
    model = Population([Constant(index) for index in range(4)])
    answers = model.draw(images(count), generator(seed)).argmax(1)
    assert torch.equal(answers, model.choose(count, generator(seed)))


def test_members_are_equally_likely():
    model = Population([Constant(index) for index in range(4)])
    counts = model.draw(images(8000), generator("uniform")).argmax(1).bincount(minlength=4)
    chi_square = ((counts - 2000.0) ** 2 / 2000.0).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = .001
    assert len({tuple(model.choose(5, generator(k)).tolist()) for k in range(30)}) > 20


def test_one_member_for_a_whole_call():
    model = Population([Constant(index) for index in range(4)], granularity="batch")
    answers = [model.draw(images(9), generator(k)).argmax(1).unique() for k in range(40)]
    assert all(len(answer) == 1 for answer in answers)
    assert {int(answer) for answer in answers} == {0, 1, 2, 3}


def test_rows_do_not_see_their_mates():
    parts = members(3)
    model = Population(parts)
    x = images()
    chosen = model.choose(len(x), generator(5))
    scores = model.draw(x, generator(5))
    for row, member in enumerate(chosen.tolist()):
        torch.testing.assert_close(scores[row], parts[member](x[row : row + 1])[0])
    other = x.clone()
    other[1:] = 0.5
    torch.testing.assert_close(model.draw(other, generator(5))[0], scores[0])


def test_a_draw_is_pure():
    model = Population(members(3))
    before = torch.get_rng_state()
    assert torch.equal(model.draw(images(), generator(1)), model.draw(images(), generator(1)))
    assert not torch.equal(model.draw(images(), generator(1)), model.draw(images(), generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_only_the_chosen():
    model = Population(members(3))
    model.draw(images(1), generator(0)).sum().backward()
    touched = [part.backbone.conv1.weight.grad is not None for part in model.members]
    assert touched == [k == int(model.choose(1, generator(0))) for k in range(3)]


def test_forward_differs_from_call_to_call_and_repeats_after_reseed():
    model = Population(members(4))
    model.reseed("a")
    first = [model(images()) for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    model.reseed("a")
    assert all(torch.equal(a, model(images())) for a in first)


def test_served_modules_have_streams_of_their_own():
    model = Population(members(4))
    one, same, other = model.serve(1), model.serve(1), model.serve(2)
    x = images()
    first = one(x)
    model(x)
    other(x)
    assert torch.equal(same(x), first)
    assert torch.equal(same(x), one(x))


def test_expected_view_is_the_mean_probability():
    parts = members(3)
    views = Population(parts).views()
    assert set(views) == {"deployed", "one-draw", "expected"}
    x = images()
    torch.testing.assert_close(views["expected"].open(0)(x), log_mean([part(x) for part in parts]))
    assert views["expected"].rowwise
    assert not views["deployed"].rowwise


def test_one_draw_is_one_member_and_stays():
    parts = members(3)
    view = Population(parts).views()["one-draw"]
    x = images()
    opened = [view.open(seed) for seed in range(20)]
    assert all(any(module is part for part in parts) for module in opened)
    assert len({id(module) for module in opened}) == 3
    assert torch.equal(opened[0](x), opened[0](x))
    assert view.open(7) is view.open(7)


def test_a_population_needs_a_generator():
    with pytest.raises(ValueError, match="draw needs a generator"):
        Population(members(2)).draw(images(), None)


def test_copies_share_nothing():
    model = Population(members(2))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(model.parameters()).abs().sum() > 0
