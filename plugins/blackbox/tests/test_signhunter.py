"""SignHunter against closed forms, against a slow reference, and in what it promises."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from phalanx.api import L1, L2, Linf, Targeted, ThreatModelError, generator, project
from phalanx_blackbox.config import SignHunterConfig
from phalanx_blackbox.signhunter import SignHunter, sign_hunt


def slow_hunt(score, reached, x, threat, queries):
    """The search as the paper tells it, for one image ``(1, C, H, W)``, flip by flip.

    Args:
        score: an image's loss.
        reached: whether it fools.
        x: clean image, which does not fool.
        threat: the ball.
        queries: with the clean image's.

    Returns:
        The image that fooled, or None; queries; signs and loss of the round.
    """
    D = x.numel()
    size = threat.eps if isinstance(threat, Linf) else threat.eps / math.sqrt(D)
    origin, used = x, 1
    while True:
        signs, best, image = torch.ones(D, dtype=x.dtype), -math.inf, origin
        flips = [[]]
        for h in range(math.ceil(math.log2(D)) + 1):
            length = math.ceil(D / 2**h)
            for i in range(2**h):
                flips.append(range(i * length, min(D, (i + 1) * length)))
                if (i + 1) * length >= D:
                    break
        for flip in flips:
            if used == queries:
                return None, used, signs, best
            candidate = signs.clone()
            for place in flip:
                candidate[place] *= -1
            tried = project(origin + size * candidate.view_as(x), x, threat)
            used += 1
            if score(tried) >= best:
                signs, best, image = candidate, score(tried), tried
            if reached(tried):
                return tried, used, signs, best
        origin = image


@pytest.fixture
def linear(counting):
    """A model whose margin loss at label 0 is ``g·x``, counted from the image .5, minus a lead."""

    def make(lead=100.0, **rest):
        g = torch.tensor([1.0, -2.0, 3.0, -0.5])

        def scores(z):
            loss = (z.flatten(1) - 0.5) @ g - lead
            return torch.stack([torch.zeros_like(loss), loss], 1)

        return counting(scores, **rest)

    return make


GREY = torch.full((1, 1, 2, 2), 0.5)
ZERO = torch.tensor([0])
EPS = 0.25  # the page of examples has 1, which the box does not


def hunt(model, x=GREY, y=ZERO, **settings):
    return sign_hunt(model, x, y, **{"threat": Linf(EPS), "loss": "margin", **settings})


def test_four_coordinates_take_seven_flips(linear):
    model = linear()
    found = hunt(model, queries=9)  # the clean image, the start, 2D − 1 blocks
    assert found.signs.flatten().tolist() == [1.0, -1.0, 1.0, -1.0]
    assert found.loss.item() + 100.0 == pytest.approx(6.5 * EPS)  # the L1 norm of g
    assert found.queries.tolist() == [model.rows] == [9]
    assert not found.fooled.item()
    assert (found.x - GREY).flatten().tolist() == [EPS, -EPS, EPS, -EPS]


def test_the_first_candidates_are_all_ones_and_all_flipped(linear):
    model, path = linear(), []
    hunt(model, queries=4, observe=lambda n, x, loss: path.append((n, loss.item() + 100.0)))
    expected = [1.5, 1.5, 3.5]  # +1; its opposite at −1.5 is dropped; then (−, −, +, +)
    assert [n for n, _ in path] == [0, 1, 2]
    assert [loss / EPS for _, loss in path] == pytest.approx(expected, abs=1e-4)


def test_a_dropped_flip_is_turned_back_and_a_flip_of_equal_loss_stays(counting, linear):
    assert hunt(linear(), queries=3).signs.flatten().tolist() == [1.0] * 4
    flat = counting(lambda z: torch.tensor([[1.0, 0.0]]).expand(len(z), -1))
    assert hunt(flat, queries=3).signs.flatten().tolist() == [-1.0] * 4


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.25)])
def test_the_batch_does_what_a_slow_search_does_row_by_row(network, threat, loss):
    ends = set()
    for seed in range(4):
        model, x, y = network(seed)

        def score(z, label, model=model):
            scores = model.scores(z)
            if loss == "ce":
                return cross_entropy(scores, label[None]).item()
            rivals = scores[0, torch.arange(3) != label]
            return (rivals.max() - scores[0, label]).item()

        found = sign_hunt(model, x, y, threat=threat, queries=90, loss=loss)
        for row, label in enumerate(y):
            image, used, signs, best = slow_hunt(
                lambda z, label=label: score(z, label),
                lambda z, label=label, model=model: model.scores(z).argmax() != label,
                x[row : row + 1],
                threat,
                90,
            )
            assert found.queries[row].item() == used
            assert found.fooled[row].item() is (image is not None)
            assert torch.equal(found.signs[row].flatten(), signs)
            if image is None:
                assert found.loss[row].item() >= best - 1e-12
            else:
                assert torch.equal(found.x[row : row + 1], image)
            ends.add((image is None, used > 39))  # 38 queries: clean image, start, 36 blocks
    assert (False, False) in ends
    assert (True, True) in ends  # it reached the second round and beyond


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.35)])
def test_rows_are_searched_as_alone_and_within_their_budget(network, threat):
    model, x, y = network(12, rows=12)
    together = sign_hunt(model, x, y, threat=threat, queries=60)
    assert model.rows == together.queries.sum()
    assert 0 < together.fooled.sum() < 12
    for row in range(len(x)):
        model.rows = 0
        alone = sign_hunt(model, x[row : row + 1], y[row : row + 1], threat=threat, queries=60)
        assert model.rows == alone.queries.item() == together.queries[row].item() <= 60
        assert torch.equal(alone.x[0], together.x[row])
    assert ((together.queries < 60) <= together.fooled).all()
    assert ((model.scores(together.x).argmax(1) != y) == together.fooled).all()


def test_a_round_begins_around_the_image_reached(linear):
    model, asked = linear(), []
    first = hunt(model, queries=9)
    model.scores = lambda z, scores=model.scores: asked.append(z.clone()) or scores(z)
    second = hunt(model, queries=11)
    start = (first.x + EPS).clamp(GREY - EPS, GREY + EPS)  # all ones again, inside the ball
    assert torch.equal(asked[9], start)
    assert torch.equal(asked[10], first.x - EPS * torch.tensor([1, 0, 1, 0]).view(1, 1, 2, 2))
    assert torch.equal(second.x, first.x)  # of highest loss so far
    assert second.loss == first.loss


def test_only_images_within_threat_and_box_are_asked(network):
    model, x, y = network(8, rows=6)
    for threat in (Linf(0.3), L2(0.4)):
        worst = []

        def scores(z, threat=threat, worst=worst):
            delta = z.flatten(1) - x.flatten(1)[: len(z)]
            assert ((z >= 0) & (z <= 1)).all()
            worst.append(delta.norm(dim=1, p=2 if isinstance(threat, L2) else torch.inf).max())
            return torch.zeros(len(z), 3, dtype=z.dtype).index_fill_(1, y[:1], 1.0)

        watched = type(model)(scores)
        sign_hunt(watched, x, y[:1].expand(6), threat=threat, queries=100)
        assert max(worst) <= threat.eps * (1 + 1e-12)
        assert max(worst) > 0.99 * threat.eps


def test_a_queried_image_that_fools_ends_the_row_also_if_its_loss_is_lower(counting):
    loss = torch.tensor([0.0, 3.0, 2.0])  # clean, start, all flipped

    def scores(z):
        step = (z.flatten(1)[:, 0] - 0.5).sign().long() % 3  # 0, 1, −1 -> 2
        true = -loss[step]
        rest = torch.stack([true - 5.0, true - 5.0], 1)
        rest[step == 2, 0] = 0.0
        return torch.cat([true[:, None], rest], 1)

    # Cross-entropy: the rest is a hundredth at first; then label 1 wins, by which it rises.
    found = sign_hunt(counting(scores), GREY, ZERO, threat=Linf(0.1), queries=20)
    assert found.fooled.item()
    assert found.queries.item() == 3
    assert torch.equal(found.x, GREY - 0.1)


def test_wrong_rows_stay_as_they_are(linear):
    model = linear()
    found = hunt(model, GREY.expand(2, -1, -1, -1), torch.tensor([1, 0]), queries=40)
    assert found.queries.tolist() == [1, 40]
    assert model.rows == 41
    assert found.fooled.tolist() == [True, False]
    assert torch.equal(found.x[:1], GREY)


def test_success_ends_a_row_at_once(linear):
    model = linear(lead=1.0)  # 6.5 · .25 passes it, 3.5 · .25 does not
    found = hunt(model)
    assert found.fooled.item()
    assert found.loss.item() > 0
    assert found.queries.item() == model.rows < 9


def test_towards_a_label(network):
    model, x, y = network(3, rows=8)
    target = (y + 1) % 3
    for loss in ("ce", "margin"):
        towards = sign_hunt(model, x, Targeted(target), threat=Linf(0.3), queries=120, loss=loss)
        assert towards.fooled.sum() >= 3
        assert ((model.scores(towards.x).argmax(1) == target) == towards.fooled).all()
    there = sign_hunt(model, x, Targeted(y), threat=Linf(0.3), queries=120)
    assert there.queries.tolist() == [1] * 8


def test_more_draws_find_better_signs_of_a_noisy_loss(counting):
    draws = generator("signhunter", "noise")
    g = torch.randn(64, generator=draws)

    def scores(z):
        loss = (z.flatten(1) - 0.5) @ g - 100.0 + torch.randn(len(z), generator=draws)
        return torch.stack([torch.zeros_like(loss), loss], 1)

    x, y = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    agreement = []
    for k in (1, 50):
        noisy = counting(scores, rowwise=False)
        found = sign_hunt(noisy, x, y, threat=Linf(0.5), queries=129 * k, draws=k, loss="margin")
        assert found.queries.tolist() == [129 * k] * 4
        assert noisy.rows == 4 * 129 * k
        agreement.append(((found.x - x).flatten(1) @ g).mean() / (0.5 * g.abs().sum()))
    assert agreement[1] > 0.95
    assert agreement[0] < agreement[1] - 0.03


def test_whole_batches_are_asked_where_rows_depend_on_each_other(linear):
    model = linear(lead=-1.0, rowwise=False)  # all rows are wrong from the beginning
    found = hunt(model, GREY.expand(3, -1, -1, -1), ZERO.expand(3), queries=40, draws=3)
    assert found.queries.tolist() == [39] * 3
    assert model.rows == 3 * 39
    assert found.fooled.all()
    assert (found.loss > 6.4 * EPS + 1.0).all()  # and still they are made worse


def test_one_draw_is_enough_where_rows_are_independent(linear):
    assert hunt(linear(), queries=9, draws=5).queries.tolist() == [9]


def test_an_observer_sees_a_loss_that_never_falls_and_changes_nothing(network):
    model, x, y = network(9, rows=6)
    path = []
    attack = SignHunter(SignHunterConfig(threat=Linf(0.06), queries=60, loss="margin"))
    watched = attack(
        model,
        x,
        y,
        generator=generator(0),
        observe=lambda n, images, loss: path.append(loss.clone()),
    )
    assert torch.equal(watched, attack(model, x, y, generator=generator(1)))
    losses = torch.stack(path)
    assert losses.shape == (59, 6)
    assert (losses.diff(dim=0) >= 0).all()


def test_memory_format_and_gradients_do_not_matter(network):
    model, x, y = network(4)
    plain = sign_hunt(model, x, y, threat=Linf(0.05), queries=60)
    odd = x.clone(memory_format=torch.channels_last).requires_grad_()
    again = sign_hunt(model, odd, y, threat=Linf(0.05), queries=60)
    assert torch.equal(plain.x, again.x)
    assert not again.x.requires_grad


def test_the_function_refuses_other_threats_itself(linear):
    with pytest.raises(ThreatModelError, match=r"cannot take threat l1:3; it takes linf or l2"):
        hunt(linear(), threat=L1(3.0))
