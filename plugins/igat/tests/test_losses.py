"""The loss by values worked by hand, closed forms, a slow reference, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_igat.losses import (
    combined,
    distributed,
    is_wrong,
    misclassification,
    owner_right,
    owners,
    rank_probabilities,
    true_class,
)

WORKED = torch.tensor([[[0.2, 0.7, 0.1]], [[0.5, 0.3, 0.2]]]).log()  # (N=2, B=1, C=3)
RULES = ("soft", "hard", "random", "opposite")
FORMS = ("sum", "max", "paper")


def random_scores(N: int, B: int, C: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(N, B, C, generator=generator(seed, "scores"), dtype=torch.float64)


def labels(B: int, C: int, seed: int = 0) -> Tensor:
    return torch.randint(C, (B,), generator=generator(seed, "labels"))


# ---------------------------------------------------------------- worked values


@pytest.mark.parametrize(("form", "expected"), [("max", 1.203973), ("sum", 1.560648)])
def test_worked_regulariser(form: str, expected: float) -> None:
    y = torch.tensor([0])
    wrong = is_wrong(WORKED, y, "average")
    assert wrong.tolist() == [True]
    assert combined(WORKED, "average").exp().tolist()[0] == pytest.approx([0.35, 0.5, 0.15])
    assert float(misclassification(WORKED, y, wrong, form)) == pytest.approx(expected, abs=1e-6)
    twice = 2 * misclassification(WORKED, y, wrong, "max")  # the code's second form
    assert float(twice) == pytest.approx(2.407946, abs=1e-6)


def test_worked_regulariser_is_zero_where_the_ensemble_is_right() -> None:
    y = torch.tensor([1])
    wrong = is_wrong(WORKED, y, "average")
    assert wrong.tolist() == [False]
    assert [float(misclassification(WORKED, y, wrong, form)) for form in FORMS] == [0, 0, 0]


def test_worked_maximum() -> None:
    scores = combined(WORKED, "max")
    assert scores.exp().tolist()[0] == pytest.approx([0.5, 0.7, 0.2])
    value = F.cross_entropy(scores, torch.tensor([0]))
    assert float(value) == pytest.approx(1.029619, abs=1e-6)  # of the normalised maximum


def test_worked_gradient_of_a_sure_wrong_answer() -> None:
    z = torch.tensor([[[10.0, 0.0, 0.0]]], requires_grad=True)
    value = misclassification(z, torch.tensor([1]), torch.tensor([True]), "sum")
    (slope,) = torch.autograd.grad(value, z)
    assert value.item() == pytest.approx(9.306944, abs=1e-6)
    assert slope.flatten().tolist() == pytest.approx([0.999909, -0.499955, -0.499955], abs=1e-6)


def test_members_decide_the_class_and_the_ensemble_decides_whether() -> None:
    """δ is of the combined prediction: a member that is right is still pressed down."""
    h = torch.tensor([[[0.6, 0.4]], [[0.1, 0.9]]])
    y = torch.tensor([0])
    assert is_wrong(h.log(), y, "average").tolist() == [True]
    assert is_wrong(h.log(), y, "max").tolist() == [True]
    value = misclassification(h.log(), y, is_wrong(h.log(), y, "average"), "sum")
    assert float(value) == pytest.approx(-math.log(0.6) - math.log(0.1), abs=1e-6)


def test_the_combiners_may_disagree_about_what_is_wrong() -> None:
    h = torch.tensor([[[0.51, 0.49]], [[0.5, 0.5]], [[0.44, 0.56]]]).log()
    y = torch.tensor([0])
    assert is_wrong(h, y, "average").tolist() == [True]
    assert is_wrong(h.flip(2), y, "max").tolist() == [False]


def test_the_papers_form_may_press_down_the_true_class() -> None:
    """Ours never does: the reason for leaving it out of the maximum."""
    h = torch.tensor([[[0.9, 0.1, 0.0001]], [[0.05, 0.8, 0.15]], [[0.05, 0.8, 0.15]]])
    y, wrong = torch.tensor([0]), torch.tensor([True])
    slopes = {}
    for form in FORMS:
        z = h.log().requires_grad_()
        (slope,) = torch.autograd.grad(misclassification(z, y, wrong, form), z)
        slopes[form] = slope[0, 0, 0].item()
    assert slopes["paper"] > 0  # descending lowers the true class's logit
    assert slopes["sum"] < 0
    assert slopes["max"] == 0  # another member is chosen


# ---------------------------------------------------------------- distributing


@pytest.mark.parametrize(
    ("N", "expected"),
    [
        (2, [2 / 3, 1 / 3]),
        (3, [4 / 7, 2 / 7, 1 / 7]),
        (8, [0.50196, 0.25098, 0.12549, 0.06275, 0.03137, 0.01569, 0.00784, 0.00392]),
    ],
)
def test_rank_probabilities(N: int, expected: list[float]) -> None:
    assert rank_probabilities(N).tolist() == pytest.approx(expected, abs=1e-5)
    assert float(rank_probabilities(N).sum()) == pytest.approx(1, abs=1e-12)


def test_soft_rule_statistics() -> None:
    sureness = torch.tensor([0.2, 0.9, 0.5])[:, None].expand(3, 70_000)
    counts = owners(sureness, "soft", generator(0)).bincount(minlength=3)
    for found, expected in zip(counts.tolist(), (10_000, 40_000, 20_000), strict=True):
        assert abs(found - expected) < 5 * math.sqrt(expected)


def test_random_rule_is_uniform_and_asks_nobody() -> None:
    sureness = torch.tensor([0.0, 0.9, 0.1])[:, None].expand(3, 30_000)
    counts = owners(sureness, "random", generator(0)).bincount(minlength=3)
    assert all(abs(found - 10_000) < 500 for found in counts.tolist())


def test_hard_and_opposite_are_the_surest_and_the_least_sure() -> None:
    sureness = torch.tensor([[0.2, 0.9, 0.3], [0.9, 0.1, 0.3], [0.5, 0.5, 0.1]])
    assert owners(sureness, "hard", generator(0)).tolist() == [1, 0, 0]  # a tie: the first
    assert owners(sureness, "opposite", generator(0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", RULES)
def test_owners_follow_the_generator(rule: str) -> None:
    sureness = true_class(random_scores(4, 200, 5), labels(200, 5))
    first, again = (owners(sureness, rule, generator(3)) for _ in range(2))
    other = owners(sureness, rule, generator(4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is (rule in ("hard", "opposite"))
    assert int(first.min()) >= 0
    assert int(first.max()) < 4
    assert len(owners(sureness[:, :0], rule, generator(0))) == 0


def test_sureness_is_the_true_classs_probability_without_gradient() -> None:
    z, y = random_scores(3, 5, 4).requires_grad_(), labels(5, 4)
    sureness = true_class(z, y)
    assert not sureness.requires_grad
    for n in range(3):
        for b in range(5):
            expected = float(z.detach().softmax(2)[n, b, y[b]])
            assert math.exp(float(sureness[n, b])) == pytest.approx(expected)


# ---------------------------------------------------------------- a slow reference


def slow_distributed(z: Tensor, y: Tensor, owner: Tensor, keep: Tensor) -> float:
    N, B, _ = z.shape
    total = 0.0
    for member in range(N):
        for b in range(B):
            if owner[b] == member and keep[b]:
                total -= math.log(float(z[member, b].softmax(0)[y[b]]))
    return total / B


def slow_misclassification(z: Tensor, y: Tensor, wrong: Tensor, form: str) -> float:
    N, B, C = z.shape
    h, total = z.softmax(2), 0.0
    for b in range(B):
        if not wrong[b]:
            continue
        allowed = [c for c in range(C) if form == "paper" or c != y[b]]
        worst = [max(float(h[n, b, c]) for c in allowed) for n in range(N)]
        chosen = worst if form == "sum" else [max(worst)]
        total -= sum(math.log(1 - p) for p in chosen)
    return total / B


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), N=st.integers(2, 5), B=st.integers(1, 7), C=st.integers(2, 6))
def test_against_loops(seed: int, N: int, B: int, C: int) -> None:
    z, y = random_scores(N, B, C, seed), labels(B, C, seed)
    wrong = is_wrong(z, y, "average")
    mean = z.softmax(2).mean(0).argmax(1)
    assert wrong.tolist() == [bool(mean[b] != y[b]) for b in range(B)]
    for form in FORMS:
        value = float(misclassification(z, y, wrong, form))
        assert value == pytest.approx(slow_misclassification(z, y, wrong, form), abs=1e-9)
    owner = owners(true_class(z, y), "soft", generator(seed))
    for keep in (wrong, torch.ones_like(wrong)):
        value = float(distributed(z, y, owner, keep))
        assert value == pytest.approx(slow_distributed(z, y, owner, keep), abs=1e-9)


def test_a_row_trains_its_owner_alone() -> None:
    z, y = random_scores(3, 4, 5).requires_grad_(), labels(4, 5)
    owner, keep = torch.tensor([2, 0, 1, 1]), torch.tensor([True, True, False, True])
    (slope,) = torch.autograd.grad(distributed(z, y, owner, keep), z)
    reached = slope.abs().amax(2) > 0
    assert reached.T.tolist() == [
        [False, False, True],
        [True, False, False],
        [False, False, False],
        [False, True, False],
    ]


def test_the_maximum_presses_one_member_a_row_and_the_sum_all() -> None:
    z, y = random_scores(3, 6, 5).requires_grad_(), labels(6, 5)
    wrong = torch.ones(6, dtype=torch.bool)
    for form, count in (("sum", 3), ("max", 1), ("paper", 1)):
        (slope,) = torch.autograd.grad(misclassification(z, y, wrong, form), z)
        assert (slope.abs().amax(2) > 0).sum(0).tolist() == [count] * 6


# ---------------------------------------------------------------- zeros and hard numbers


@pytest.mark.parametrize("form", FORMS)
def test_nothing_wrong_is_a_zero_tensor_with_a_graph(form: str) -> None:
    z, y = random_scores(3, 4, 5).requires_grad_(), labels(4, 5)
    nothing = torch.zeros(4, dtype=torch.bool)
    owner = torch.zeros(4, dtype=torch.long)
    for value in (distributed(z, y, owner, nothing), misclassification(z, y, nothing, form)):
        assert value.item() == 0.0
        (slope,) = torch.autograd.grad(value, z)
        assert bool((slope == 0).all())


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_at_all_is_zero(form: str) -> None:
    z, y = torch.zeros(3, 0, 5), torch.zeros(0, dtype=torch.long)
    nothing = torch.zeros(0, dtype=torch.bool)
    assert float(misclassification(z, y, nothing, form)) == 0.0
    assert float(distributed(z, y, y, nothing)) == 0.0
    assert [float(share) for share in owner_right(z, y, y, nothing)] == [0.0, 0.0]


@pytest.mark.parametrize("form", FORMS)
def test_saturated_members_have_a_finite_loss_and_gradient(form: str) -> None:
    z = torch.tensor([[[200.0, 0.0, 0.0]], [[0.0, 300.0, 0.0]]], requires_grad=True)
    value = misclassification(z, torch.tensor([2]), torch.tensor([True]), form)
    (slope,) = torch.autograd.grad(value, z)
    assert bool(value.isfinite())
    assert bool(slope.isfinite().all())
    assert float(slope.abs().max()) == pytest.approx(1.0, abs=1e-6)  # not clipped away


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str) -> None:
    z, y = random_scores(3, 4, 5).requires_grad_(), labels(4, 5)
    wrong = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda s: misclassification(s, y, wrong, form), z)


def test_half_precision_scores_are_raised() -> None:
    z, y = random_scores(3, 4, 5).bfloat16(), labels(4, 5)
    wrong, owner = torch.ones(4, dtype=torch.bool), torch.tensor([0, 1, 2, 0])
    for function in (
        lambda s: misclassification(s, y, wrong, "sum"),
        lambda s: distributed(s, y, owner, wrong),
    ):
        assert function(z).dtype == torch.float32
        assert torch.equal(function(z), function(z.float()))


# ---------------------------------------------------------------- the check on the mechanism


def test_owner_right_by_hand() -> None:
    answers = torch.tensor([[0, 1, 2], [0, 0, 0], [1, 1, 0]])  # (N, B), argmax of each member
    z = F.one_hot(answers, 3).float()
    y, owner = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    own, anybody = owner_right(z, y, owner, torch.tensor([True, True, True]))
    assert float(own) == pytest.approx(1 / 3)
    assert float(anybody) == pytest.approx((2 + 2 + 1) / 9)
    own, anybody = owner_right(z, y, owner, torch.tensor([False, True, True]))
    assert float(own) == 0.0
    assert float(anybody) == pytest.approx((2 + 1) / 6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_the_rules_order_what_owners_know(seed: int) -> None:
    """Surest owners are right at least as often as any other choice, the least sure at most.

    With two classes a member is right where its true class has more than a half.
    """
    z, y = random_scores(4, 50, 2, seed), labels(50, 2, seed)
    everything = torch.ones(50, dtype=torch.bool)
    sureness = true_class(z, y)
    right = {
        rule: float(owner_right(z, y, owners(sureness, rule, generator(seed)), everything)[0])
        for rule in RULES
    }
    assert right["opposite"] <= min(right.values()) + 1e-9
    assert right["hard"] >= max(right.values()) - 1e-9
