"""RayS against closed forms, against a slow reference, and in what it promises."""

import math

import pytest
import torch

from phalanx.api import L1, L2, Linf, Targeted, ThreatModelError, generator
from phalanx_blackbox.config import RaySConfig
from phalanx_blackbox.rays import RayS, along, ray_search


def slow_rays(fools, x, queries, *, tolerance=1e-3):
    """The search as the paper tells it, for one image ``(D,)``, iteration by iteration.

    Returns:
        Signs, length, queries with the clean image's, and the lengths after each iteration.
    """
    D = len(x)
    root, signs, best, used, path = math.sqrt(D), torch.ones_like(x), math.inf, 1, []

    def asks(candidate, length):
        nonlocal used
        used += 1
        reach = min(length, root)
        return fools((x + reach / root * candidate).clamp(0, 1))

    level = index = 0
    while used < queries:
        size = math.ceil(D / 2**level)
        start, end = index * size, min(D, (index + 1) * size)
        candidate = signs.clone()
        candidate[start:end] *= -1
        if asks(candidate, best):
            low, high = 0.0, min(best, root)
            while high - low > tolerance and used < queries:
                middle = (low + high) / 2
                if asks(candidate, middle):
                    high = middle
                else:
                    low = middle
            if high < best:
                signs, best = candidate, high
        index += 1
        if index == 2**level or end == D:
            level, index = level + 1, 0
        path.append(best)
    return signs, best, used, path


@pytest.fixture
def four(halfspace):
    """Four coordinates of .5, label 1 where x1 − x2 + x3 − x4 > .4: a distance of .1."""
    return halfspace([1.0, -1.0, 1.0, -1.0], 0.4), torch.full((1, 1, 2, 2), 0.5)


def test_four_coordinates_take_31_queries_after_the_clean_one(four):
    model, x = four
    found = ray_search(model, x, torch.tensor([0]), threat=Linf(0.1), queries=32, stop="budget")
    assert found.signs.flatten().tolist() == [1.0, -1.0, 1.0, -1.0]
    torch.testing.assert_close(found.length, torch.tensor([0.2002]), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.distance, torch.tensor([0.1001]), atol=1e-4, rtol=0.0)
    assert found.queries.tolist() == [model.rows] == [32]
    before = ray_search(model, x, torch.tensor([0]), threat=Linf(0.1), queries=27, stop="budget")
    assert before.length > found.length - 1e-3  # the last level's four blocks found nothing


def test_the_first_candidate_is_all_flipped(halfspace):
    model = halfspace([-1.0] * 4, -1.0)  # darker is label 1
    x = torch.full((1, 1, 2, 2), 0.5)
    found = ray_search(model, x, torch.tensor([0]), threat=Linf(0.6), queries=2)
    assert torch.equal(found.x, torch.zeros_like(x))  # the corner of the box, at an infinite d
    assert found.length.item() == 2.0


@pytest.mark.parametrize("seed", range(6))
def test_the_batch_does_what_a_slow_search_does_row_by_row(network, seed):
    model, x, y = network(seed)
    for queries in (2, 37, 150):
        found = ray_search(model, x, y, threat=Linf(0.1), queries=queries, stop="budget")
        for row in range(len(x)):

            def fools(z, label=y[row]):
                return model.scores(z[None]).argmax(1)[0] != label

            signs, length, used, path = slow_rays(fools, x[row].flatten(), queries)
            assert torch.equal(found.signs[row].flatten(), signs)
            assert found.length[row].item() == length
            assert found.queries[row].item() == used == queries
            assert path == sorted(path, reverse=True)  # d never grows
            if math.isfinite(length):
                assert fools(found.x[row].flatten())
                assert (found.x[row] - x[row]).abs().max() == found.distance[row]
            else:
                assert found.distance[row] == math.inf
                assert torch.equal(found.x[row], x[row])


@pytest.mark.parametrize("stop", ["success", "budget"])
@pytest.mark.parametrize("threat", [Linf(0.15), L2(0.8)])
def test_rows_are_searched_as_alone_and_within_their_budget(network, stop, threat):
    model, x, y = network(11, rows=8)
    settings = {"threat": threat, "queries": 60, "stop": stop}
    together = ray_search(model, x, y, **settings)
    assert model.rows == together.queries.sum()
    for row in range(len(x)):
        model.rows = 0
        alone = ray_search(model, x[row : row + 1], y[row : row + 1], **settings)
        assert model.rows == alone.queries.item() == together.queries[row].item() <= 60
        for one, all_ in zip(vars(alone).values(), vars(together).values()):
            assert torch.equal(one[0], all_[row])
    if stop == "success":
        assert ((together.distance <= threat.eps) == (together.queries < 60)).all()


def test_linear_distance_is_found_up_to_the_tolerance(halfspace):
    draws = generator("rays", "linear")
    w = torch.randn(108, generator=draws, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand((6, 3, 6, 6), generator=draws, dtype=torch.float64)
    lead = x.flatten(1) @ w
    model = halfspace(w, float(lead.max() + 2.0))  # all rows are 0
    y = torch.zeros(6, dtype=torch.long)
    found = ray_search(model, x, y, threat=Linf(0.1), queries=900, stop="budget")
    nearest = (lead.max() + 2.0 - lead) / w.abs().sum()
    assert (found.distance >= nearest).all()
    # A flip that shortens d by less than the tolerance is not seen, so small weights' signs may
    # stay wrong; all of them together cost little.
    torch.testing.assert_close(found.distance, nearest, rtol=0.02, atol=0.0)


def test_success_ends_a_row_at_its_first_example_within(four):
    model, x = four
    for threat in (Linf(0.25), L2(0.5)):
        found = ray_search(model, x, torch.tensor([0]), threat=threat)
        assert found.distance.item() <= threat.eps
        assert found.queries.item() < 20
        least = ray_search(model, x, torch.tensor([0]), threat=threat, stop="budget", queries=60)
        assert least.distance < found.distance


def test_wrong_rows_stay_as_they_are(four):
    model, x = four
    y = torch.tensor([1, 0])
    for stop in ("success", "budget"):
        model.rows = 0
        found = ray_search(
            model, x.expand(2, -1, -1, -1), y, threat=Linf(0.01), queries=40, stop=stop
        )
        assert found.distance[0] == 0.0
        assert torch.equal(found.x[:1], x)
        assert found.queries.tolist() == [1, 40]
        assert model.rows == 41


def test_nothing_found_is_the_clean_image_at_infinity(counting):
    model = counting(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), -1))
    x = torch.rand((3, 1, 4, 4), generator=generator("rays", 0))
    y = torch.zeros(3, dtype=torch.long)
    found = ray_search(model, x, y, threat=Linf(0.1), queries=50)
    assert found.distance.tolist() == found.length.tolist() == [math.inf] * 3
    assert torch.equal(found.x, x)
    attack = RayS(RaySConfig(threat=Linf(0.1), queries=50))
    assert torch.equal(attack(model, x, y, generator=generator(0)), x)


def test_rays_end_in_a_corner_of_the_box():
    x = torch.tensor([0.0, 0.3, 1.0, 0.9]).view(1, 1, 2, 2)
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    corner = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
    for length in (2.0, math.inf):
        assert torch.equal(along(x, signs, torch.tensor([length])), corner)
    short = along(x, signs, torch.tensor([0.4]))  # .2 a coordinate
    expected = torch.tensor([0.2, 0.1, 1.0, 0.7]).view(1, 1, 2, 2)
    torch.testing.assert_close(short, expected)


def test_towards_a_label(network):
    model, x, y = network(3, rows=8, classes=3)
    target = (y + 1) % 3
    targeted = ray_search(model, x, Targeted(target), threat=Linf(1.0), queries=200, stop="budget")
    found = targeted.distance.isfinite()
    assert found.sum() >= 4
    assert (model.scores(targeted.x).argmax(1) == target)[found].all()
    away = ray_search(model, x, y, threat=Linf(1.0), queries=200, stop="budget")
    assert away.distance.mean() < targeted.distance[found].mean()
    there = ray_search(model, x, Targeted(y), threat=Linf(1.0), queries=200)
    assert there.queries.tolist() == [1] * 8


@pytest.mark.parametrize("threat", [Linf(0.04), L2(0.3)])
def test_examples_are_within_or_at_the_edge(network, threat):
    model, x, y = network(5, rows=10)
    attack = RayS(RaySConfig(threat=threat, queries=120))
    x_adv = attack(model, x, y, generator=generator(0))
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    delta = (x_adv - x).flatten(1)
    length = delta.abs().amax(1) if isinstance(threat, Linf) else delta.norm(dim=1)
    assert (length <= threat.eps * (1 + 1e-12)).all()
    found = ray_search(model, x, y, threat=threat, queries=120)
    near = found.distance <= threat.eps
    assert 0 < near.sum() < 10
    assert ((model.scores(x_adv).argmax(1) != y) >= near).all()
    if isinstance(threat, Linf):  # elsewhere: the shortest ray at full length
        edge = (x + threat.eps * found.signs).clamp(0, 1)
        torch.testing.assert_close(x_adv[~near], edge[~near])
    assert torch.equal(x_adv, attack(model, x, y, generator=generator(1)))


def test_l2_searches_the_same_rays_and_only_measures_otherwise(network):
    model, x, y = network(7)
    one, two = (
        ray_search(model, x, y, threat=threat, queries=150, stop="budget")
        for threat in (Linf(0.1), L2(0.1))
    )
    assert torch.equal(one.signs, two.signs)
    assert torch.equal(one.length, two.length)
    torch.testing.assert_close(two.distance, (two.x - x).flatten(1).norm(dim=1))


def test_votes_withstand_labels_that_turn_at_random(four, unreliable):
    model, x = four
    x, y = x.expand(8, -1, -1, -1), torch.zeros(8, dtype=torch.long)
    once, voted = (
        ray_search(
            unreliable(model, 0.2), x, y, threat=Linf(0.1), queries=q, votes=r, stop="budget"
        )
        for q, r in ((400, 1), (2525, 25))
    )
    assert once.queries.tolist() == [400] * 8
    assert voted.queries.tolist() == [2525] * 8
    assert (once.length < 0.1).all()  # labels that turned by chance have shortened d for good
    torch.testing.assert_close(voted.length, torch.full((8,), 0.2), atol=1e-3, rtol=0.0)


def test_whole_batches_are_asked_where_rows_depend_on_each_other(four, unreliable):
    model, x = four
    noisy = unreliable(model, 0.1)
    y = torch.tensor([0, 1, 0])  # the second row is wrong from the beginning
    found = ray_search(noisy, x.expand(3, -1, -1, -1), y, threat=Linf(0.5), queries=50, votes=3)
    assert found.queries.tolist() == [48] * 3
    assert noisy.rows == 3 * 48
    assert found.distance[1] == 0.0


def test_where_answers_vary_examples_go_to_the_edge(halfspace):
    clean = halfspace([1.0, -1.0, 1.0, -1.0], 0.4)
    draws = generator("rays", "noise")

    def scores(z):  # a boundary that trembles
        return clean.scores(z + 0.02 * torch.randn(z.shape, generator=draws))

    noisy = type(clean)(scores, rowwise=False)
    x, y = torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.long)
    attack = RayS(RaySConfig(threat=Linf(0.15), queries=300, votes=5))
    x_adv = attack(noisy, x, y, generator=generator(0))
    found = ray_search(noisy, x, y, threat=Linf(0.15), queries=300, votes=5)
    broken = [
        torch.stack([scores(z).argmax(1) != y for _ in range(50)]).float().mean()
        for z in (found.x, x_adv)
    ]
    assert broken[0] < 0.8
    assert broken[1] > 0.95
    torch.testing.assert_close((x_adv - x).abs().amax((1, 2, 3)), torch.full((6,), 0.15))


def test_only_labels_are_read(network):
    model, x, y = network(2)
    labels = type(model)(lambda z: torch.nn.functional.one_hot(model.scores(z).argmax(1), 3) * 1.0)
    one, two = (ray_search(m, x, y, threat=Linf(0.1), queries=100) for m in (model, labels))
    for a, b in zip(vars(one).values(), vars(two).values()):
        assert torch.equal(a, b)


def test_memory_format_and_gradients_do_not_matter(network):
    model, x, y = network(4)
    plain = ray_search(model, x, y, threat=Linf(0.1), queries=80)
    odd = x.clone(memory_format=torch.channels_last).requires_grad_()
    again = ray_search(model, odd, y, threat=Linf(0.1), queries=80)
    assert torch.equal(plain.x, again.x)
    assert not again.x.requires_grad


def test_the_function_refuses_other_threats_itself(four):
    model, x = four
    with pytest.raises(ThreatModelError, match=r"cannot take threat l1:3; it takes linf or l2"):
        ray_search(model, x, torch.tensor([0]), threat=L1(3.0))
