import pytest
import torch
from hypothesis import given, settings, strategies as st

from phalanx.attacks.balls import norm, project, random_start, steepest, within
from phalanx.errors import ThreatModelError
from phalanx.randomness import generator
from phalanx.specs import L1, L2, Linf, NoBall, Threat, Union

threats = st.one_of(
    st.floats(0.0, 1.0).map(Linf),
    st.floats(1e-3, 10.0).map(L2),
    st.floats(1e-3, 100.0).map(L1),
)
seeds = st.integers(0, 2**31)


def images(seed: int, *, spread: float = 2.0, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images, a third of their pixels on a wall, and arbitrary ones around them."""
    draws = generator("balls", seed)
    x = (1.5 * torch.rand((rows, 3, 5, 5), generator=draws) - 0.25).clamp(0, 1)
    return x, x + spread * torch.randn(x.shape, generator=draws)


@settings(deadline=None, max_examples=60)
@given(seeds, threats, st.sampled_from([0.01, 0.3, 3.0]))
def test_projection_ends_in_ball_and_box(seed: int, threat: Threat, spread: float):
    x, outside = images(seed, spread=spread)
    assert within(project(outside, x, threat), x, threat).all()


@settings(deadline=None, max_examples=60)
@given(seeds, threats)
def test_projection_is_idempotent(seed: int, threat: Threat):
    x, outside = images(seed)
    once = project(outside, x, threat)
    torch.testing.assert_close(project(once, x, threat), once, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seeds, threats)
def test_projection_leaves_what_is_inside(seed: int, threat: Threat):
    x, outside = images(seed)
    inside = x + 0.5 * (project(outside, x, threat) - x)
    torch.testing.assert_close(project(inside, x, threat), inside, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seeds, threats)
def test_rows_are_projected_one_by_one(seed: int, threat: Threat):
    x, outside = images(seed)
    together = project(outside, x, threat)
    alone = torch.cat([project(outside[i : i + 1], x[i : i + 1], threat) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def slow_l1(point: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """One row's Euclidean projection on L1 ball and box, by bisection on the multiplier."""
    delta = (point - x).double()
    low, high = -x.double(), 1.0 - x.double()

    def at(shrink: float) -> torch.Tensor:
        return (delta.sign() * (delta.abs() - shrink).clamp_min(0)).clamp(low, high)

    below, above = 0.0, float(delta.abs().max())
    if at(0.0).abs().sum() <= eps:
        return x + at(0.0)
    for _ in range(100):
        middle = (below + above) / 2
        if at(middle).abs().sum() > eps:
            below = middle
        else:
            above = middle
    return x + at(above)


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(1e-2, 60.0), st.sampled_from([0.05, 0.5, 3.0]))
def test_l1_projection_is_the_euclidean_one(seed: int, eps: float, spread: float):
    x, outside = images(seed, spread=spread, rows=2)
    slow = torch.stack([slow_l1(outside[i], x[i], eps) for i in range(2)]).float()
    torch.testing.assert_close(project(outside, x, L1(eps)), slow, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("delta", "projected"),
    [
        ((3.0, -1.0, 0.5, 0.2), (2.0, 0.0, 0.0, 0.0)),
        ((1.0, -1.0, 1.0, 0.2), (2 / 3, -2 / 3, 2 / 3, 0.0)),
        ((1.0, -1.0, 1.0, 1.0), (0.5, -0.5, 0.5, 0.5)),
        ((0.5, 0.3, 0.1, 0.0), (0.5, 0.3, 0.1, 0.0)),
    ],
)
def test_l1_projection_worked_examples(delta, projected):
    # A box of 1/10 of the size of the ball's own coordinates keeps the walls away.
    x = torch.full((1, 4), 0.5)
    found = project(x + 0.1 * torch.tensor([delta]), x, L1(0.2)) - x
    torch.testing.assert_close(found, 0.1 * torch.tensor([projected]))


def test_l2_projection_is_box_then_ball():
    x = torch.tensor([[0.9, 0.1]])
    found = project(x + 0.5, x, L2(0.5)) - x
    torch.testing.assert_close(found, torch.tensor([[0.098058, 0.490290]]))


def test_norms():
    delta = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert norm(delta, Linf(0.1)).tolist() == [4.0, 0.0]
    assert norm(delta, L2(1)).tolist() == [5.0, 0.0]
    assert norm(delta, L1(1)).tolist() == [7.0, 0.0]


def test_steepest_of_l2_is_the_unit_vector():
    found = steepest(torch.tensor([[3.0, 4.0]]), L2(1))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1), L1(1)])
def test_steepest_of_zero_and_of_nan_is_zero(threat: Threat):
    gradient = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [torch.inf, -torch.inf]])
    assert torch.equal(steepest(gradient, threat), torch.zeros(3, 2))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1), L1(1)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_steepest_does_not_depend_on_the_gradients_size(threat: Threat, scale: float):
    gradient = torch.tensor([[3.0, -4.0, 0.5]])
    torch.testing.assert_close(steepest(scale * gradient, threat), steepest(gradient, threat))


def test_l1_step_moves_the_largest_that_can_move():
    gradient = torch.tensor([[5.0, -4.0, 3.0, 2.0, -1.0, 0.5]])
    x = torch.tensor([[1.0, 0.5, 0.0, 0.5, 0.5, 0.5]])
    assert steepest(gradient, L1(1), x, top=2).tolist() == [[0, -0.5, 0.5, 0, 0, 0]]
    assert steepest(gradient, L1(1), top=2).tolist() == [[0.5, -0.5, 0, 0, 0, 0]]


def test_l1_step_with_a_sparsity_per_row():
    gradient = torch.tensor([[3.0, -4.0, 1.0], [3.0, -4.0, 1.0]])
    found = steepest(gradient, L1(1), top=torch.tensor([1, 2]))
    assert found.tolist() == [[0, -1, 0], [0.5, -0.5, 0]]


def test_l1_step_of_a_single_entry_moves_only_it():
    gradient = torch.tensor([[0.0, 0.0, -7.0, 0.0]])
    assert (steepest(gradient, L1(1), top=3) != 0).tolist() == [[False, False, True, False]]


@settings(deadline=None, max_examples=40)
@given(seeds, threats)
def test_random_start_is_within_and_follows_its_generator(seed: int, threat: Threat):
    x, _ = images(seed)
    before = torch.get_rng_state()
    first, second = (random_start(x, threat, generator(seed)) for _ in range(2))
    assert within(first, x, threat).all()
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.2), L1(0.2)])
def test_random_start_fills_the_ball(threat: Threat):
    x = torch.full((4000, 2), 0.5)
    radii = norm(random_start(x, threat, generator(0)) - x, threat) / 0.2
    assert abs((radii**2).mean() - 0.5) < 0.03  # uniform in a plane's ball: E r² = 1/2


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1), L1(0.1)])
def test_within_sees_norm_box_and_nan(threat: Threat):
    x = torch.tensor([[0.0, 0.5]]).repeat(5, 1)
    x_adv = x.clone()
    x_adv[1, 1] += 0.1  # on the sphere
    x_adv[2, 1] += 0.1001
    x_adv[3, 0] -= 0.001
    x_adv[4, 1] = torch.nan
    assert within(x_adv, x, threat).tolist() == [True, True, False, False, False]


def test_within_a_union_and_without_a_ball():
    x = torch.full((3, 4), 0.5)
    x_adv = x.clone()
    x_adv[1] += 0.05  # L1 distance .2
    x_adv[2, 0] += 0.3
    assert within(x_adv, x, Union(parts=(Linf(0.05), L1(0.15)))).tolist() == [True, True, False]
    assert within(x_adv, x, NoBall()).tolist() == [True, True, True]
    assert within(x_adv - 1.0, x, NoBall()).tolist() == [False, False, False]


@pytest.mark.parametrize("threat", [NoBall(), Union(parts=(Linf(0.1), L2(1.0)))])
def test_what_is_no_ball_is_refused(threat: Threat, rng):
    x = torch.zeros(1, 1, 2, 2)
    message = (
        f"^threat {str(threat).replace('+', '[+]')} is no single ball; "
        "this needs linf, l2 or l1, such as linf:8/255$"
    )
    for call in (
        lambda: project(x, x, threat),
        lambda: norm(x, threat),
        lambda: steepest(x, threat),
        lambda: random_start(x, threat, rng),
    ):
        with pytest.raises(ThreatModelError, match=message):
            call()
