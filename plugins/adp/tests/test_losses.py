"""The loss by its worked values, its invariances, and where float32 would fail."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_adp.losses import (
    cross_entropies,
    ensemble_entropy,
    gram,
    log_determinant,
    mean_cosine,
    wrong_scores,
)

WORKED = torch.tensor([[[0.6, 0.3, 0.1]], [[0.6, 0.1, 0.3]]])  # (K=2, B=1, C=3), probabilities


def led(scores: Tensor, y: Tensor) -> Tensor:
    return log_determinant(gram(scores, y))


def loss(scores: Tensor, y: Tensor, alpha: float = 2.0, beta: float = 0.5) -> Tensor:
    terms = cross_entropies(scores, y).sum() - alpha * ensemble_entropy(scores)
    return terms - beta * led(scores, y)


def random_scores(K: int, B: int, C: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(K, B, C, generator=generator(seed, "scores"), dtype=torch.float64)


def labels(B: int, C: int, seed: int = 0) -> Tensor:
    return torch.randint(C, (B,), generator=generator(seed, "labels"))


# ---------------------------------------------------------------- worked values


def test_worked_example() -> None:
    z, y = WORKED.log(), torch.tensor([0])
    assert float(cross_entropies(z, y).sum()) == pytest.approx(1.021651, abs=1e-6)
    assert float(ensemble_entropy(z)) == pytest.approx(0.950271, abs=1e-6)
    assert float(mean_cosine(gram(z, y))) == pytest.approx(0.6, abs=1e-6)
    assert float(gram(z, y).det()) == pytest.approx(0.64, abs=1e-6)
    assert float(led(z, y)) == pytest.approx(-0.446284, abs=1e-6)
    assert float(loss(z, y)) == pytest.approx(-0.655748, abs=1e-6)


@pytest.mark.parametrize(
    ("members", "expected"), [(2, -13.122363), (3, -26.532408), (5, -53.652604), (8, -94.629132)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_members(members: int, expected: float, dtype: torch.dtype) -> None:
    one = random_scores(1, 4, 10).to(dtype)
    value = led(one.expand(members, -1, -1), labels(4, 10))
    assert float(value) == pytest.approx(expected, abs=1e-4)
    closed = math.log(members + 1e-6) + (members - 1) * math.log(1e-6)
    assert float(value) == pytest.approx(closed, abs=1e-4)
    assert float(mean_cosine(gram(one.expand(members, -1, -1), labels(4, 10)))) == pytest.approx(1)


def test_orthogonal_members() -> None:
    z = torch.full((3, 1, 4), -60.0)
    for k in range(3):
        z[k, 0, k + 1] = 0.0  # each member its own wrong class
    assert float(led(z, torch.tensor([0]))) == pytest.approx(3e-6, abs=1e-8)
    assert float(mean_cosine(gram(z, torch.tensor([0])))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_uniform_prediction_has_the_largest_entropy(classes: int) -> None:
    value = ensemble_entropy(torch.zeros(3, 5, classes))
    assert float(value) == pytest.approx(math.log(classes), abs=1e-5)


def test_terms_are_means_over_the_batch() -> None:
    z, y = random_scores(3, 6, 5), labels(6, 5)
    for function in (led, loss, lambda s, _: ensemble_entropy(s)):
        single = [function(z[:, b : b + 1], y[b : b + 1]) for b in range(6)]
        torch.testing.assert_close(function(z, y), torch.stack(single).mean())


# ---------------------------------------------------------------- what is removed


def test_the_true_class_is_removed_not_the_predicted_one() -> None:
    z = torch.tensor([[[9.0, 1.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0]]])
    kept = wrong_scores(z, torch.tensor([0, 2, 3]))
    assert kept.tolist() == [[[1.0, 2.0, 3.0], [9.0, 1.0, 3.0], [9.0, 1.0, 2.0]]]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), K=st.integers(2, 5), C=st.integers(3, 12))
def test_logits_give_the_rows_of_the_probabilities(seed: int, K: int, C: int) -> None:
    """The definition: drop the true class's probability, then normalise to length 1."""
    z, y = random_scores(K, 3, C, seed, scale=3.0), labels(3, C, seed)
    cosines = gram(z, y)
    for b in range(3):
        rows = z[:, b].softmax(1)[:, [c for c in range(C) if c != y[b]]]
        rows = rows / rows.norm(dim=1, keepdim=True)
        torch.testing.assert_close(cosines[b], rows @ rows.T, atol=1e-9, rtol=1e-6)


def test_the_true_classs_own_score_changes_no_diversity() -> None:
    z, y = random_scores(3, 4, 6), labels(4, 6)
    moved = z.scatter_add(2, y.expand(3, -1)[:, :, None], torch.full((3, 4, 1), 5.0).double())
    torch.testing.assert_close(gram(moved, y), gram(z, y))


# ---------------------------------------------------------------- invariances


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), order=st.permutations(range(4)))
def test_order_of_members_and_of_wrong_classes_is_indifferent(seed: int, order: list[int]) -> None:
    z, y = random_scores(4, 3, 5, seed), torch.zeros(3, dtype=torch.long)
    expected = loss(z, y)
    torch.testing.assert_close(loss(z[order], y), expected)
    classes = [0, *(c + 1 for c in order)]
    torch.testing.assert_close(loss(z[:, :, classes], y), expected)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), K=st.integers(2, 5), scale=st.floats(0.01, 30))
def test_bounds(seed: int, K: int, scale: float) -> None:
    z, y = random_scores(K, 3, 8, seed, scale), labels(3, 8, seed)
    assert 0.0 <= float(ensemble_entropy(z)) <= math.log(8) + 1e-9
    lowest = math.log(K + 1e-6) + (K - 1) * math.log(1e-6)  # of identical members
    assert lowest - 1e-6 <= float(led(z, y)) <= K * 1e-6 + 1e-9


# ---------------------------------------------------------------- numbers that break


def test_saturated_members_give_a_finite_loss_and_gradient() -> None:
    z = torch.tensor([[[200.0, 0.0, 0.0]], [[0.0, 200.0, 0.0]]], requires_grad=True)
    value = loss(z, torch.tensor([0]))
    (slope,) = torch.autograd.grad(value, z)
    assert bool(value.isfinite())
    assert bool(slope.isfinite().all())


def test_more_members_than_wrong_classes_is_singular_but_finite() -> None:
    value = led(random_scores(3, 4, 3), labels(4, 3))
    assert -20 < float(value) < math.log(3) + math.log(1e-6) + 2  # one direction is missing


def test_scores_that_are_not_finite_are_told_by_nan() -> None:
    z = random_scores(2, 2, 4)
    z[0, 0, 1] = math.nan
    assert math.isnan(float(led(z, torch.tensor([0, 0]))))


def test_gradcheck() -> None:
    z, y = random_scores(3, 2, 5).requires_grad_(), torch.tensor([0, 3])
    assert torch.autograd.gradcheck(lambda s: loss(s, y), z)


def test_gradient_reaches_every_member_through_every_term() -> None:
    z, y = random_scores(3, 2, 5).requires_grad_(), torch.tensor([0, 3])
    for term in (cross_entropies(z, y).sum(), ensemble_entropy(z), led(z, y)):
        (slope,) = torch.autograd.grad(term, z)
        assert bool((slope.abs().amax((1, 2)) > 1e-6).all())


def test_half_precision_scores_are_raised() -> None:
    z, y = random_scores(3, 4, 5).bfloat16(), labels(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = (ensemble_entropy(z), led(z, y))
    torch.testing.assert_close(under, (ensemble_entropy(z.float()), led(z.float(), y)))
    assert under[0].dtype == torch.float32
