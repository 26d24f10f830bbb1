"""Worked numbers of the papers' measures, closed forms of linear members, and what is left out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from phalanx.config import Backbone
from phalanx.evaluation.diversity import (
    MEANINGS,
    ambiguity,
    attention,
    discrimination_score,
    diversity,
    entropy_measure,
    interrater_agreement,
    model_robustness_average,
    pairwise_cosines,
    smooth_margin,
    squared_errors,
)
from phalanx.evaluation.diversity.members import VALUES, _rows
from phalanx.nn import build_member
from phalanx.specs import Task

# ---------------------------------------------------------------- right or wrong


def votes(right: list[int], members: int) -> Tensor:
    """A table in which image i is recognised by the first `right[i]` members."""
    return torch.arange(members)[:, None] < torch.tensor(right)[None, :]


@pytest.mark.parametrize(
    ("right", "members", "expected"),
    [([0, 1, 2, 3], 3, 0.5), ([2], 5, 1.0), ([1], 5, 0.5), ([2], 4, 1.0), ([0, 2], 2, 0.0)],
)
def test_entropy_measure_by_hand(right: list[int], members: int, expected: float) -> None:
    assert float(entropy_measure(votes(right, members))) == pytest.approx(expected)


def table(*rows: str) -> Tensor:
    """Right or wrong, an image a row, as members × images."""
    return torch.tensor([[int(bit) for bit in row] for row in rows]).T


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("110", "111", "000", "101"), 0.314286),
        (("11", "10", "01", "00"), 0.0),
        (("10", "01"), -1.0),
        (("111", "000", "111"), 1.0),
    ],
)
def test_agreement_by_hand(rows: tuple[str, ...], expected: float) -> None:
    assert interrater_agreement(table(*rows)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bit", [0, 1])
def test_agreement_of_equal_bits_is_undefined(bit: int) -> None:
    assert interrater_agreement(torch.full((3, 5), bit)).isnan()


def test_agreement_is_fleiss_kappa() -> None:
    """Fleiss' own formula on the two categories right and wrong, image by image."""
    correct = torch.rand(7, 60, generator=torch.Generator().manual_seed(2)) < 0.7
    raters, images = correct.shape
    agreements, right = [], 0
    for i in range(images):
        n = int(correct[:, i].sum())
        right += n
        agreements.append((n * (n - 1) + (raters - n) * (raters - n - 1)) / (raters * (raters - 1)))
    share = right / (raters * images)
    by_chance = share**2 + (1 - share) ** 2
    fleiss = (sum(agreements) / images - by_chance) / (1 - by_chance)
    assert interrater_agreement(correct).item() == pytest.approx(fleiss)


bit_tables = st.integers(2, 6).flatmap(
    lambda members: st.lists(
        st.lists(st.booleans(), min_size=members, max_size=members), min_size=1, max_size=8
    )
)


@given(bit_tables)
def test_what_holds_of_any_table(rows: list[list[bool]]) -> None:
    correct = torch.tensor(rows).T
    L, _ = correct.shape
    entropy, kappa = float(entropy_measure(correct)), float(interrater_agreement(correct))
    assert 0.0 <= entropy <= 1.0
    assert math.isnan(kappa) or -1 / (L - 1) - 1e-12 <= kappa <= 1.0
    assert (entropy == 0.0) == (correct == correct[0]).all()
    if entropy == 0.0 and not math.isnan(kappa):
        assert kappa == 1.0
    order = torch.randperm(L, generator=torch.Generator().manual_seed(L))
    for change in (correct[order], ~correct):  # members have no order, right and wrong no side
        assert float(entropy_measure(change)) == pytest.approx(entropy)
        assert float(interrater_agreement(change)) == pytest.approx(kappa, nan_ok=True)


@pytest.mark.parametrize("measure", [entropy_measure, interrater_agreement])
def test_measures_of_too_little(measure) -> None:
    with pytest.raises(
        ValueError, match=r"^diversity is between two classifiers or more, found 1$"
    ):
        measure(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"^diversity is measured on images, found none$"):
        measure(torch.ones(3, 0))


def test_mra_by_hand() -> None:
    correct = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]])
    assert float(model_robustness_average(correct)) == pytest.approx(0.75)
    assert float(model_robustness_average(correct[:1])) == pytest.approx(0.75)  # one: white box


def test_mra_of_transfer_alone() -> None:
    """If attacked members always fall and others keep accuracy a, it is (1 − 1/n)·a."""
    n, count = 10, 1000
    keeps = (torch.arange(count) // n) % 5 < 2  # a = 0.4
    correct = keeps & (torch.arange(n)[:, None] != torch.arange(count) % n)
    assert float(model_robustness_average(correct)) == pytest.approx(0.36)


# ---------------------------------------------------------------- probabilities and features


def test_krogh_and_vedelsby_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]])[:, None]
    y = torch.tensor([0])
    assert squared_errors(p.mean(0), y).item() == pytest.approx(0.242222, abs=1e-6)
    assert squared_errors(p, y).mean().item() == pytest.approx(0.273333, abs=1e-6)
    assert ambiguity(p).item() == pytest.approx(0.031111, abs=1e-6)


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(2, 7), st.floats(0.1, 50.0), st.integers(0, 999))
def test_the_error_of_the_mean_is_the_mean_error_less_the_ambiguity(
    L: int, K: int, sharpness: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(L, 9, K, generator=g, dtype=torch.float64).mul(sharpness).softmax(-1)
    y = torch.randint(K, (9,), generator=g)
    found = ambiguity(p)
    torch.testing.assert_close(squared_errors(p.mean(0), y), squared_errors(p, y).mean(0) - found)
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0 - 1.0 / min(L, K) + 1e-12


def test_sure_members_of_different_minds_reach_the_largest_ambiguity() -> None:
    assert ambiguity(torch.eye(4)[:, None]).tolist() == [0.75]
    assert ambiguity(torch.eye(4)[:1, None].expand(3, 1, 4)).tolist() == [0.0]


def test_discrimination_by_hand() -> None:
    # activated: {1, 3} and {3, 5}, with means 2 and 4 and variances 1 and 1; a negative one is not
    first, second = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[3.0, 5.0, -7.0, 0.0]])
    assert discrimination_score([first, second]).tolist() == [2.0]
    three = [torch.tensor([[a, a + 2.0]]) for a in (1.0, 3.0, 5.0)]
    assert discrimination_score(three).tolist() == [2.0 + 8.0 + 2.0]


def test_discrimination_without_variance() -> None:
    dead, alive = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])
    assert discrimination_score([dead, alive]).tolist() == [4.0]
    assert discrimination_score([dead, dead]).tolist() == [0.0]
    assert discrimination_score([dead, torch.ones(1, 2)]).isnan().all()


# ---------------------------------------------------------------- gradients


def test_cosines_by_hand() -> None:
    maps = [torch.tensor([one]) for one in ([3.0, 4.0], [4.0, 3.0], [0.0, 1.0])]
    torch.testing.assert_close(pairwise_cosines(maps)[:, 0], torch.tensor([0.96, 0.8, 0.6]))
    pair = [torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[2.0, 0.0, 1.0]])]
    assert pairwise_cosines(pair).item() == pytest.approx(0.596285, abs=1e-6)


def test_cosines_do_not_see_how_long_a_gradient_is() -> None:
    a = torch.tensor([[3e-30, 4e-30], [3e-30, 4e-30]])  # its squares are 0 in float32
    b = torch.tensor([[4e30, 3e30], [-4.0, -3.0]])
    torch.testing.assert_close(pairwise_cosines([a, b]), torch.tensor([[0.96, -0.96]]))


def test_what_has_no_direction_has_no_cosine() -> None:
    a = torch.tensor([[0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0], [1.0, 1.0]])
    found = pairwise_cosines([a, torch.ones(4, 2)])[0]
    assert found.isnan().tolist() == [True, True, True, False]


def test_the_margin_is_what_cross_entropy_is_softplus_of() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20, 5, generator=g, dtype=torch.float64).mul(4).requires_grad_()
    y = torch.randint(5, (20,), generator=g)
    loss = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(loss, F.softplus(smooth_margin(z, y)))
    (slope,) = torch.autograd.grad(loss.sum(), z)
    (own,) = torch.autograd.grad(smooth_margin(z, y).sum(), z)
    torch.testing.assert_close(F.normalize(slope), F.normalize(own))


def test_the_margin_has_a_gradient_where_cross_entropy_has_none_left() -> None:
    z = torch.tensor([[200.0, 0.0, -1.0]], requires_grad=True)
    y = torch.tensor([0])
    (slope,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    assert slope.abs().sum() == 0.0
    (own,) = torch.autograd.grad(smooth_margin(z, y).sum(), z)
    sure = torch.tensor([0.0, -1.0]).softmax(0).tolist()
    assert own[0].tolist() == pytest.approx([-1.0, *sure])


def test_attention_is_the_largest_size_over_channels() -> None:
    gradient = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])  # two channels of 1 × 2
    assert attention(gradient).tolist() == [[[3.0, 2.0]]]


# ---------------------------------------------------------------- all of them


class Linear(nn.Module):
    """Logits ``W x + b``."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def some(n: int, count: int = 3, *, classes: int = 4) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Random linear members and images."""
    g = torch.Generator().manual_seed(n)
    members = [Linear(torch.randn(classes, 12, generator=g)) for _ in range(count)]
    x = torch.rand(n, 3, 2, 2, generator=g)
    return [*members], x, torch.randint(classes, (n,), generator=g)


def test_linear_members_in_closed_form() -> None:
    members, x, y = some(30)
    found = diversity(members, x, y, adversarial=1 - x)
    assert list(found) == [name for name in MEANINGS if name != "discrimination"]
    with torch.no_grad():
        z = torch.stack([member(x) for member in members])
        other = torch.stack([member(1 - x) for member in members])
    W = torch.stack([member.weight.detach() for member in members])
    rest = z.scatter(2, y.view(1, -1, 1).expand(3, -1, -1), -torch.inf).softmax(2)
    gradients = torch.einsum("lnk,lkd->lnd", rest, W) - W[:, y]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = torch.stack(
        [F.cosine_similarity(gradients[i], gradients[j], dim=1) for i, j in pairs]
    )
    saliencies = torch.stack([F.cosine_similarity(W[i, y], W[j, y], dim=1) for i, j in pairs])
    looks = W[:, y].view(3, -1, 3, 4).abs().amax(2)
    looked = torch.stack([F.cosine_similarity(looks[i], looks[j], dim=1) for i, j in pairs])
    expected = {
        "entropy": entropy_measure(z.argmax(2) == y),
        "interrater_agreement": interrater_agreement(z.argmax(2) == y),
        "ambiguity": ambiguity(z.softmax(2)).mean(),
        "gradient_cosine": cosines.mean(),
        "gradient_cosine_smallest": cosines.amin(0).mean(),
        "saliency_cosine": saliencies.mean(),
        "attention_cosine": looked.mean(),
        "mra": (other.argmax(2) == y).double().mean(),
    }
    rounded = {name: float(value) for name, value in expected.items()}
    assert found == pytest.approx(rounded, abs=1e-6)  # of float32, where a cosine is nearly 0


def test_one_network_twice_is_not_diverse() -> None:
    members, x, y = some(20, 1)
    found = diversity([members[0], copy.deepcopy(members[0])], x, y)
    for name in MEANINGS:
        if "cosine" in name or name == "interrater_agreement":
            assert found[name] == pytest.approx(1.0, abs=1e-6)
    assert found["entropy"] == 0.0
    assert found["ambiguity"] == pytest.approx(0.0, abs=1e-12)


def test_batches_make_no_difference() -> None:
    members, x, y = some(23)
    whole, parts = (diversity(members, x, y, adversarial=1 - x, batch=size) for size in (99, 5))
    assert whole == pytest.approx(parts, abs=1e-6)
    turned = diversity(members[::-1], x.flip(0), y.flip(0), adversarial=(1 - x).flip(0))
    assert whole == pytest.approx(turned, abs=1e-6)


def test_the_maps_of_a_batch_have_a_bound() -> None:
    images = torch.zeros(50, 3, 224, 224)
    steps = [len(images[rows]) for rows in _rows([nn.Identity()] * 10, images, 256)]
    assert sum(steps) == 50
    assert max(steps) * 10 * images[0].numel() <= VALUES
    assert max(steps) == 11
    assert [rows.start for rows in _rows([nn.Identity()] * 2, torch.zeros(9, 1, 2, 2), 4)] == [
        0,
        4,
        8,
    ]


TASK = Task(name="toy", shape=(3, 32, 32), classes=5, train_size=0, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_members_with_features_have_a_discrimination_score() -> None:
    torch.manual_seed(0)
    backbone = Backbone(use="resnet20_cifar", params={"width": 4})
    members = [build_member(backbone, TASK) for _ in range(2)]
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 5
    found = diversity(members, x, y)
    for member in members:
        member.eval()
    with torch.no_grad():
        scores = discrimination_score([member.features(x) for member in members])
    assert found["discrimination"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert "discrimination" not in diversity([members[0], members[1].backbone], x, y)


def test_members_are_left_as_they_were() -> None:
    members, x, y = some(12)
    norm = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), members[0])
    norm.train()
    members[1].weight.requires_grad_(False)
    kept = copy.deepcopy(norm.state_dict())
    state = torch.get_rng_state()
    with torch.no_grad():  # as evaluations run
        first, again = (diversity([norm, members[1]], x, y) for _ in range(2))
    assert first == again  # evaluation mode: no Dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.training
    assert norm[0].training
    assert norm[2].weight.requires_grad
    assert not members[1].weight.requires_grad
    assert norm[2].weight.grad is None
    assert all(torch.equal(kept[name], value) for name, value in norm.state_dict().items())
    assert not x.requires_grad


class Hard(nn.Module):
    """Votes of a linear member: no gradient reaches the images."""

    def __init__(self, member: nn.Module) -> None:
        super().__init__()
        self.member = member

    def forward(self, x: Tensor) -> Tensor:
        z = self.member(x)
        return F.one_hot(z.argmax(1), z.shape[1]).to(x.dtype)


def test_members_without_gradients_leave_them_out() -> None:
    members, x, y = some(20)
    found = diversity([members[0], Hard(members[1])], x, y)
    assert list(found) == ["entropy", "interrater_agreement", "ambiguity"]
    correct = torch.stack([member(x).argmax(1) == y for member in members[:2]])
    assert found["entropy"] == pytest.approx(float(entropy_measure(correct)))


class Constant(nn.Module):
    """The same logits for every image, with gradients that are zero."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0.0 * x.flatten(1).sum(1, keepdim=True)


def test_values_that_are_undefined_are_left_out() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    found = diversity([Constant([1.0, 0.0]), Constant([3.0, 0.0])], x, y)  # all right everywhere
    assert list(found) == ["entropy", "ambiguity"]


class Gate(nn.Module):
    """Logits that depend on dark images alone."""

    def __init__(self, member: nn.Module) -> None:
        super().__init__()
        self.member = member

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1, keepdim=True) < 0.5
        return torch.where(dark, self.member(x), 0.0)


def test_images_without_a_gradient_are_not_counted() -> None:
    members, x, y = some(40)
    dark = x.flatten(1).mean(1) < 0.5
    assert 0 < int(dark.sum()) < 40
    found = diversity([Gate(members[0]), members[1]], x, y)
    alone = diversity(members[:2], x[dark], y[dark])
    for name in ("gradient_cosine", "gradient_cosine_smallest", "saliency_cosine"):
        assert found[name] == pytest.approx(alone[name], abs=1e-6)
    # with a third member the other pair still has its cosine on bright images
    three = diversity([Gate(members[0]), *members[1:]], x, y)
    bright = diversity(members[1:], x[~dark], y[~dark])
    inside = diversity(members, x[dark], y[dark])
    share = float(dark.double().mean())
    for name in ("gradient_cosine", "gradient_cosine_smallest"):
        mean = share * inside[name] + (1 - share) * bright[name]
        assert three[name] == pytest.approx(mean, abs=1e-6)


def test_members_of_other_types() -> None:
    members, x, y = some(16)
    single = diversity(members, x, y)
    double = diversity([member.double() for member in members], x, y)
    assert double == pytest.approx(single, abs=1e-5)
    half = diversity([member.bfloat16() for member in members], x, y)
    assert half["gradient_cosine"] == pytest.approx(single["gradient_cosine"], abs=0.05)


def test_what_cannot_be_compared() -> None:
    members, x, y = some(5)
    with pytest.raises(ValueError, match=r"^diversity is between two members or more, found 1$"):
        diversity(members[:1], x, y)
    text = (
        r"^one label \(N,\) goes with each of N >= 1 images, found images \(5, 3, 2, 2\) and "
        r"labels \(4,\); adversarial examples are of the shape of the images, \(5, 3, 2, 2\), "
        r"found \(4, 3, 2, 2\)$"
    )
    with pytest.raises(ValueError, match=text):
        diversity(members, x, y[:4], adversarial=x[:4])


def test_every_meaning_says_which_way_is_diverse() -> None:
    for name, sentence in MEANINGS.items():
        assert "more diverse" in sentence or "most diverse" in sentence, name
        assert sentence.endswith(".")
