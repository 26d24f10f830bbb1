import pytest
import torch

from phalanx.attacks.ascent import input_gradient
from phalanx.attacks.auto import Momentum, Sparse, _first, auto_ascend
from phalanx.attacks.losses import Away, margin
from phalanx.specs import L1, Linf


def test_checkpoints_of_the_paper():
    assert Momentum().checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 5, 20, 50, 1000])
def test_checkpoints_lie_within_the_run(steps):
    for rule in (Momentum(), Sparse(1.0)):
        marks = rule.checkpoints(steps)
        assert all(1 <= mark <= steps for mark in marks)
        assert marks == sorted(marks)


def rows(N: int = 4):
    x = torch.zeros(N, 1, 1, 1)
    state = _first(x, x + 0.5, Linf(0.5))
    state.best = x + 0.9
    state.best_slope = x + 3.0
    return state


def test_conditions_for_a_smaller_step():
    state = rows()
    state.rises = torch.tensor([7.0, 8.0, 8.0, 8.0])  # of 10 steps, ρ = .75
    state.halved = torch.tensor([False, False, False, True])
    state.checked = torch.tensor([0.0, 0.0, 1.0, 1.0])
    state.best_loss = torch.tensor([1.0, 1.0, 1.0, 1.0])
    Momentum(0.75).adapt(state, 10)
    # too few rises; neither; nothing gained at an unchanged step; nothing gained, just halved
    assert state.halved.tolist() == [True, False, True, False]
    torch.testing.assert_close(state.size, torch.tensor([0.5, 1.0, 0.5, 1.0]))
    torch.testing.assert_close(state.current.flatten(), torch.tensor([0.9, 0.5, 0.9, 0.5]))
    assert state.slope.flatten().tolist() == [3.0, 0.0, 3.0, 0.0]


def test_the_first_step_is_plain_and_the_next_has_momentum():
    state = rows(1)
    state.slope = torch.ones_like(state.x)
    state.size = torch.tensor([0.1])
    state.x, state.current, state.previous = (torch.full((1, 1, 1, 1), v) for v in (0.5, 0.5, 0.3))
    torch.testing.assert_close(Momentum().move(state, Linf(0.5), 0).item(), 0.6)
    moved = Momentum().move(state, Linf(0.5), 1).item()
    torch.testing.assert_close(moved, 0.5 + 0.75 * 0.1 + 0.25 * 0.2)


def test_the_sparse_rule_follows_the_best_point():
    x = torch.zeros(2, 1, 1, 30)
    state = _first(x, x, L1(1.0))
    state.top = torch.tensor([6, 6])
    state.best = x.clone()
    state.best[0, ..., :3] = 0.1  # 3 / 1.5 = 2 coordinates, sparser than 6
    state.best[1, ..., :9] = 0.1  # 9 / 1.5 = 6, as before
    state.size = torch.tensor([0.2, 0.14])
    Sparse(1.0).adapt(state, 4)
    assert state.top.tolist() == [2, 6]
    torch.testing.assert_close(state.size, torch.tensor([1.0, 0.1]))
    assert torch.equal(state.current[0], state.best[0])
    assert torch.equal(state.current[1], x[1])


def run(model, x, y, *, decides, observe=None, eps=0.1, steps=30):
    return auto_ascend(
        model,
        x,
        Away(y, margin),
        Linf(eps),
        start=x,
        steps=steps,
        rho=0.75,
        gradient=input_gradient,
        decides=decides,
        observe=observe,
    )


def test_returns_the_highest_point_of_the_path(linear_case):
    model, x, y = linear_case(5)
    path = []
    found = run(model, x, y, decides=False, observe=lambda step, z, loss: path.append(loss))
    assert len(path) == 31
    torch.testing.assert_close(margin(model(found.x), y), torch.stack(path).amax(0))
    torch.testing.assert_close(found.lead, torch.stack(path).amax(0))
    assert not found.reached.any()


def test_a_decided_row_leaves_with_the_example_that_fooled_it(linear_case):
    model, x, y = linear_case(5)
    found = run(model, x, y, decides=True)
    assert torch.equal(found.reached, model(found.x).argmax(1) != y)
    assert torch.equal(found.lead == torch.inf, found.reached)
    watched = run(model, x, y, decides=True, observe=lambda *_: None)
    torch.testing.assert_close(found.x, watched.x)


def test_dropping_rows_does_not_change_the_others(linear_case):
    model, x, y = linear_case(2)
    eps = float(model.distances(x, y, Linf(0.1)).median())
    found = run(model, x, y, decides=True, eps=eps)
    rest = ~found.reached
    assert rest.any()
    assert found.reached.any()
    alone = run(model, x[rest], y[rest], decides=True, eps=eps)
    torch.testing.assert_close(found.x[rest], alone.x)
