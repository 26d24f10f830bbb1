import pytest
import torch
from hypothesis import given, settings, strategies as st

from phalanx.attacks.balls import norm
from phalanx.attacks.config import FABTConfig
from phalanx.attacks.fab import FABT, towards_plane
from phalanx.randomness import generator
from phalanx.specs import L1, L2, Linf

BALLS = (Linf(1.0), L2(1.0), L1(1.0))
seeds = st.integers(0, 2**31)


def slow_step(x, w, c, threat):
    """One row's shortest step onto the plane, by bisection or, for L1, a greedy loop."""
    x, w = x.double().flatten(), w.double().flatten()
    way = -torch.sign(w * c)
    wall = torch.where(way > 0, 1 - x, x)
    if isinstance(threat, L1):
        step, left = torch.zeros_like(x), abs(c)
        for i in w.abs().argsort(descending=True):
            if w[i] == 0 or left <= 0:
                break
            step[i] = min(float(wall[i]), left / float(w[i].abs()))
            left -= float(step[i] * w[i].abs())
        return way * step
    speed = w.abs() if isinstance(threat, L2) else (w != 0).double()
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if float((w.abs() * torch.minimum(middle * speed, wall)).sum()) < abs(c):
            low = middle
        else:
            high = middle
    return way * torch.minimum(high * speed, wall)


@settings(deadline=None, max_examples=80)
@given(seeds, st.sampled_from(BALLS), st.floats(-3, 3), st.booleans())
def test_step_to_the_plane_is_the_shortest(seed, threat, c, sparse):
    draws = generator("plane", seed)
    x = (1.4 * torch.rand((3, 1, 3, 3), generator=draws) - 0.2).clamp(0, 1)
    w = torch.randn(x.shape, generator=draws)
    if sparse:
        w = w * (torch.rand(x.shape, generator=draws) < 0.3)
    step = towards_plane(x, w, torch.full((3,), c), threat)
    slow = torch.stack([slow_step(x[i], w[i], c, threat) for i in range(3)]).view_as(x).float()
    assert ((x + step > -1e-5) & (x + step < 1 + 1e-5)).all()
    torch.testing.assert_close(
        (w * step).flatten(1).sum(1), (w * slow).flatten(1).sum(1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(norm(step, threat), norm(slow, threat), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threat", BALLS)
def test_no_plane_no_step(threat):
    x = torch.full((1, 1, 2, 2), 0.5)
    for w, c in ((0.0, 1.0), (1.0, 0.0)):
        step = towards_plane(x, torch.full_like(x, w), torch.tensor([c]), threat)
        assert torch.equal(step, torch.zeros_like(x))


@pytest.mark.parametrize("threat", BALLS)
@pytest.mark.parametrize("classes", [2, 4])
def test_found_distance_is_the_least(threat, classes, linear_case, rng):
    model, x, y = linear_case(classes)
    nearest = model.distances(x, y, threat)
    x_min, distance = FABT(FABTConfig(threat=threat, steps=40)).minimal(model, x, y, generator=rng)
    torch.testing.assert_close(norm(x_min - x, threat), distance)
    assert (model(x_min).argmax(1) != y).all()
    if isinstance(threat, L1):  # one coordinate alone would leave the box
        free = nearest < 0.35
        distance, nearest = distance[free], nearest[free]
    assert (distance / nearest).max() <= 1.05
    assert (distance / nearest).min() >= 0.999


def test_rows_that_are_wrong_already_have_distance_zero(linear_case, rng):
    model, x, y = linear_case(4)
    x_min, distance = FABT(FABTConfig(threat=L2(1.0))).minimal(model, x, (y + 1) % 4, generator=rng)
    assert torch.equal(x_min, x)
    assert torch.equal(distance, torch.zeros(len(x)))


def test_a_row_with_no_gradient_stays_clean(rng):
    def model(z):
        return torch.tensor([1.0, 0.0]) + 0.0 * z.flatten(1).sum(1, keepdim=True)

    x = torch.rand(3, 1, 2, 2)
    y = torch.zeros(3, dtype=torch.long)
    attack = FABT(FABTConfig(threat=Linf(0.1), steps=5))
    x_min, distance = attack.minimal(model, x, y, generator=rng)
    assert torch.equal(x_min, x)
    assert distance.isinf().all()
    assert torch.equal(attack(model, x, y, generator=rng), x)


def test_passes(linear_case, rng):
    model, x, y = linear_case(4)
    FABT(FABTConfig(threat=L2(1e-6), steps=20, search=0))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (1 + 3 * 21, 3 * 20)
    model, x, y = linear_case(4)
    FABT(FABTConfig(threat=L2(1e-6), steps=20, search=3))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (1 + 3 * 21 + 2 + 3, 3 * 20)


def test_rows_found_within_eps_leave_the_batch(linear_case, rng):
    model, x, y = linear_case(2)
    eps = float(1.2 * model.distances(x, y, L2(1.0)).max())
    FABT(FABTConfig(threat=L2(eps)))(model, x, y, generator=rng)
    assert model.forwards < 10


class Noisy(torch.nn.Module):
    """Each draw gives one row in ten the scores of another class."""

    def __init__(self, model):
        super().__init__()
        self.model, self.draws = model, generator("noisy")

    def forward(self, z):
        scores = self.model(z)
        lucky = torch.rand(len(z), 1, generator=self.draws) < 0.1
        return torch.where(lucky, scores.roll(1, 1), scores)


@pytest.mark.parametrize("threat", BALLS)
def test_one_lucky_draw_decides_nothing(threat, linear_case, rng):
    model, x, y = linear_case(4, 64)
    eps = float(1.2 * model.distances(x, y, threat).max())
    attack = FABT(FABTConfig(threat=type(threat)(eps), steps=20))
    broken = model(attack(model, x, y, generator=rng)).argmax(1) != y
    assert broken.float().mean() > 0.9
    found = attack(Noisy(model), x, y, generator=rng)
    changed = (found != x).flatten(1).any(1)
    assert changed[broken].all()
    assert (model(found).argmax(1) != y)[broken].float().mean() > 0.8
    distance = norm(found - x, attack.threat)
    assert (distance <= eps * (1 + 1e-5)).all()


def test_a_lucky_draw_on_the_clean_image_is_no_example(linear_case, rng):
    model, x, y = linear_case(4, 64)
    attack = FABT(FABTConfig(threat=L2(1.0), steps=5))
    x_min, distance = attack.minimal(Noisy(model), x, y, generator=rng)
    assert (distance > 0).all()
    assert (x_min != x).flatten(1).any(1)[distance.isfinite()].all()


def test_note_is_empty():
    assert FABT(FABTConfig(threat=Linf(0.1))).note(2) == ""
