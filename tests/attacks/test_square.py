import pytest
import torch

from phalanx.attacks.balls import norm, within
from phalanx.attacks.config import SquareConfig
from phalanx.attacks.square import Square, _Window, bump, first, propose, share_at, split_bump
from phalanx.randomness import generator
from phalanx.specs import L2, Linf


def test_schedule_of_the_paper():
    at = [1, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2001, 4001, 6001, 8001, 10_000]
    halvings = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 9]
    assert [share_at(q, 10_000, 0.8) for q in at] == [0.8 / 2**h for h in halvings]
    assert share_at(6, 5_000, 0.8) == share_at(12, 10_000, 0.8) == 0.4


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0)])
@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 28, 28), (1, 4, 4), (3, 8, 8)])
@pytest.mark.parametrize("p", [1.0, 0.8, 0.05, 0.001])
def test_starts_and_proposals_are_within(threat, shape, p, rng):
    x = torch.rand((5, *shape), generator=rng)
    best = first(x, threat, rng)
    assert within(best, x, threat).all()
    tried = propose(best, x, threat, p, rng)
    assert within(tried, x, threat).all()
    assert not torch.equal(tried, best)


def test_linf_start_is_vertical_stripes(rng):
    x = torch.full((2, 3, 6, 5), 0.5)
    delta = first(x, Linf(0.1), rng) - x
    torch.testing.assert_close(delta.abs(), torch.full_like(x, 0.1))
    assert (delta == delta[:, :, :1]).all()


def test_linf_proposal_changes_one_square_of_one_sign_per_channel(rng):
    x = torch.full((8, 3, 10, 10), 0.5)
    best = first(x, Linf(0.1), rng)
    tried = propose(best, x, Linf(0.1), 0.09, rng)  # a square of 3 by 3
    changed = (tried != best).any(1)
    for row in range(len(x)):
        lines, columns = changed[row].nonzero().T
        if len(lines):
            assert lines.max() - lines.min() < 3
            assert columns.max() - columns.min() < 3
    places = {tuple(changed[row].nonzero()[0].tolist()) for row in range(8) if changed[row].any()}
    assert len(places) > 1  # every row has a place of its own


def test_squares_lie_everywhere_but_at_the_last_place(rng):
    x = torch.zeros(400, 2, 6, 5)
    places = _Window(x, 3, rng)
    top, left = places.index[2][:, 0, 0, 0], places.index[3][:, 0, 0, 0]
    assert set(zip(top.tolist(), left.tolist())) == {(a, b) for a in range(3) for b in range(2)}
    whole = _Window(x, 5, rng)
    assert set(whole.index[3][:, 0, 0, 0].tolist()) == {0}


def test_l2_images_use_the_whole_budget(rng):
    x = torch.full((4, 3, 12, 12), 0.5)
    best = first(x, L2(0.5), rng)
    for p in (0.8, 0.1, 0.01):
        best = propose(best, x, L2(0.5), p, rng)
        torch.testing.assert_close(norm(best - x, L2(0.5)), torch.full((4,), 0.5))


def test_bump_is_a_pyramid_of_norm_one():
    like = torch.zeros(1)
    shape = bump(5, 5, like)
    torch.testing.assert_close(shape.norm(), torch.tensor(1.0))
    rings = torch.tensor([1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9])  # from the centre outwards
    torch.testing.assert_close(shape[2, 2:] / shape[2, 2] * rings[0], rings)
    assert torch.equal(shape, shape.T)


def test_split_bump_has_two_signs_and_both_directions(rng):
    shapes = split_bump(7, torch.zeros(64, 1, 1, 1), rng)
    torch.testing.assert_close(shapes.flatten(1).norm(dim=1), torch.ones(64))
    upright = (shapes[:, 0, :3].amin((1, 2)) > 0) & (shapes[:, 0, 3:].amax((1, 2)) < 0)
    assert 10 < int(upright.sum()) < 54
    assert torch.equal(shapes[~upright][0, 0].T, shapes[upright][0, 0])


@pytest.mark.parametrize("queries", [1, 2, 50])
def test_one_forward_a_query_and_no_gradient(queries, linear_case, rng):
    model, x, y = linear_case(4)
    Square(SquareConfig(threat=Linf(1e-6), queries=queries))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (queries, 0)


def test_fooled_rows_leave_only_where_rows_are_independent(linear_case, rng):
    for rowwise in (True, False):
        model, x, y = linear_case(2, rowwise=rowwise)
        eps = float(model.distances(x, y, Linf(0.1)).max())
        attack = Square(SquareConfig(threat=Linf(5 * eps), queries=30, restarts=2))
        attack(model, x, y, generator=rng)
        assert (model.rows == 60 * len(x)) is not rowwise


def test_loss_never_falls(linear_case):
    model, x, y = linear_case(3, rowwise=False)
    path = []
    attack = Square(SquareConfig(threat=Linf(0.05), queries=40))
    x_adv = attack(
        model, x, y, generator=generator(0), observe=lambda s, z, loss: path.append(loss.clone())
    )
    assert len(path) == 40
    assert (torch.stack(path).diff(dim=0) >= 0).all()
    scores = model(x_adv)
    lead = scores.scatter(1, y[:, None], -torch.inf).amax(1) - scores.gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(lead, path[-1])
