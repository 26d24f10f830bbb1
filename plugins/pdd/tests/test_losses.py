"""The worked examples of the paper's mathematics, slow references and invariants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_pdd.losses import (
    bin_indices,
    cross_entropies,
    discrimination_score,
    dispersion,
    diversified_mask,
    ensemble_cross_entropy,
    entropy_measure,
    keep_probabilities,
    pairwise_cosines,
)

WORKED = torch.tensor([[[0.0, 0.1, 0.9, 1.0], [0.1, 0.15, 0.5, 2.0]]])  # (1, K=2, D=4)


def skewed(batch: int, members: int, units: int, seed: int = 0) -> Tensor:
    """Non-negative features with many small values, as pooled ReLU outputs."""
    return torch.rand(batch, members, units, generator=generator(seed, "features")) ** 6 * 3


def keep_by_loops(
    sample: list[list[float]], bins: int, alpha: float, beta: float
) -> list[list[float]]:
    """Algorithm 1 and eq. (2) for one image, unit by unit, in plain Python."""
    values = [value for member in sample for value in member]
    low, high = min(values), max(values)

    def bin_of(value: float) -> int:
        return min(math.floor((value - low) * bins / max(high - low, 1e-12)), bins - 1)

    joint = [sum(bin_of(value) == m for value in values) for m in range(bins)]
    ranked = sorted(range(bins), key=lambda m: (-joint[m], m))
    result = []
    for k, member in enumerate(sample):
        own = [sum(bin_of(value) == m for value in member) for m in range(bins)]
        result.append(
            [
                alpha if bin_of(a) == ranked[k] else beta * (1 - own[bin_of(a)] / len(member))
                for a in member
            ]
        )
    return result


# ---------------------------------------------------------------- PDD


def test_worked_example() -> None:
    assert bin_indices(WORKED, 4).tolist() == [[[0, 0, 1, 2], [0, 0, 1, 3]]]
    keep = keep_probabilities(WORKED, 4, 0.9, 0.1)
    expected = torch.tensor([[[0.9, 0.9, 0.075, 0.075], [0.05, 0.05, 0.9, 0.075]]])
    torch.testing.assert_close(keep, expected)
    torch.testing.assert_close(keep.sum(2), torch.tensor([[1.95, 1.075]]))


def test_alpha_and_beta_one_keep_the_priority_bin_and_one_minus_density() -> None:
    keep = keep_probabilities(WORKED, 4, 1.0, 1.0)
    assert keep.tolist() == [[[1.0, 1.0, 0.75, 0.75], [0.5, 0.5, 1.0, 0.75]]]
    mask = diversified_mask(keep.expand(500, -1, -1), generator(0))
    assert bool((mask[:, 0, :2] == 1).all())
    assert bool((mask[:, 1, 2] == 1).all())


@pytest.mark.parametrize(("members", "bins"), [(2, 2), (3, 10), (5, 20)])
def test_equals_the_loop_reference(members: int, bins: int) -> None:
    features = skewed(6, members, 64, seed=members).double()
    expected = [keep_by_loops(sample, bins, 0.9, 0.1) for sample in features.tolist()]
    keep = keep_probabilities(features, bins, 0.9, 0.1)
    torch.testing.assert_close(keep, torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.integers(-64, 64), min_size=24, max_size=24),
    log_scale=st.integers(-4, 4),
    shift=st.integers(-100, 100),
)
def test_scale_and_shift_change_nothing(values: list[int], log_scale: int, shift: int) -> None:
    features = torch.tensor(values, dtype=torch.float64).view(2, 3, 4)
    keep = keep_probabilities(features, 8, 0.9, 0.1)
    moved = keep_probabilities(features * 2.0**log_scale + shift, 8, 0.9, 0.1)
    assert torch.equal(keep, moved)  # powers of two and integers: no rounding


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    members=st.integers(2, 5),
    extra=st.integers(0, 6),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
)
def test_keep_is_a_probability_and_rows_are_independent(
    seed: int, members: int, extra: int, alpha: float, beta: float
) -> None:
    features = skewed(3, members, 16, seed)
    keep = keep_probabilities(features, members + extra, alpha, beta)
    assert keep.shape == features.shape
    assert 0.0 <= keep.min() <= keep.max() <= 1.0
    assert torch.equal(keep[1:2], keep_probabilities(features[1:2], members + extra, alpha, beta))


def test_the_first_member_has_the_fullest_bin() -> None:
    features = skewed(16, 3, 512)
    keep = keep_probabilities(features, 10, 0.9, 0.1)
    lowest = bin_indices(features, 10) == 0
    assert bool((lowest.sum((1, 2)) > 3 * 512 / 2).all())  # skewed: bin 0 is the fullest
    first, others = keep[:, 0][lowest[:, 0]], keep[:, 1:][lowest[:, 1:]]
    assert bool((first == 0.9).all())
    assert others.max() < 0.1


def test_other_rates_follow_own_counts_not_joint_ones() -> None:
    features = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]])
    keep = keep_probabilities(features, 2, 0.9, 0.1)
    # joint counts are (4, 4); own counts (3, 1) and (1, 3)
    expected = torch.tensor([[[0.9, 0.9, 0.9, 0.075], [0.075, 0.9, 0.9, 0.9]]])
    torch.testing.assert_close(keep, expected)


def test_fewer_filled_bins_than_members() -> None:
    features = torch.zeros(2, 3, 8)
    features[:, :, 0] = 1.0  # two of ten bins are filled
    keep = keep_probabilities(features, 10, 0.9, 0.1)
    torch.testing.assert_close(keep[:, 0, 1:], torch.full((2, 7), 0.9))  # bin 0: member 1
    torch.testing.assert_close(keep[:, 1, 0], torch.full((2,), 0.9))  # bin 9: member 2
    # member 3 has empty bin 1, so nothing of it is preferred
    torch.testing.assert_close(keep[:, 2, 0], torch.full((2,), 0.1 * 7 / 8))
    torch.testing.assert_close(keep[:, 2, 1:], torch.full((2, 7), 0.1 / 8))


def test_equal_features_are_finite() -> None:
    keep = keep_probabilities(torch.full((2, 3, 8), 0.7), 10, 0.9, 0.1)
    torch.testing.assert_close(keep[:, 0], torch.full((2, 8), 0.9))
    assert bool((keep[:, 1:] == 0).all())


def test_half_precision_counts_are_exact() -> None:
    features = skewed(2, 3, 512).bfloat16()
    keep = keep_probabilities(features, 10, 0.9, 0.1)
    assert keep.dtype == torch.float32
    assert torch.equal(keep, keep_probabilities(features.float(), 10, 0.9, 0.1))


def test_keep_is_a_constant_for_autograd() -> None:
    features = skewed(2, 3, 8).requires_grad_()
    assert not keep_probabilities(features, 10, 0.9, 0.1).requires_grad


def test_mask_mean_over_20000_draws_is_keep() -> None:
    keep = keep_probabilities(WORKED, 4, 0.9, 0.1)
    mask = diversified_mask(keep.expand(20_000, -1, -1), generator(1))
    assert set(mask.unique().tolist()) == {0.0, 1.0}  # no rescaling
    torch.testing.assert_close(mask.mean(0), keep[0], atol=0.01, rtol=0)


def test_inverted_rescaling_has_mean_one() -> None:
    keep = torch.tensor([[[0.9, 0.25, 0.0]]]).expand(20_000, -1, -1)
    mask = diversified_mask(keep, generator(2), "inverted")
    assert bool(mask.isfinite().all())
    torch.testing.assert_close(mask.mean(0), torch.tensor([[1.0, 1.0, 0.0]]), atol=0.05, rtol=0)


def test_mask_is_keyed_by_its_generator() -> None:
    keep = torch.full((4, 3, 64), 0.5)
    assert torch.equal(diversified_mask(keep, generator(3)), diversified_mask(keep, generator(3)))
    assert not torch.equal(
        diversified_mask(keep, generator(3)), diversified_mask(keep, generator(4))
    )


# ---------------------------------------------------------------- losses


def test_ensemble_cross_entropy_is_mean_or_sum() -> None:
    labels = torch.tensor([0, 2])
    logits = [torch.randn(2, 3, generator=generator(k)) for k in range(3)]
    losses = cross_entropies(logits, labels)
    expected = sum(F.nll_loss(z.log_softmax(1), labels) for z in logits)
    torch.testing.assert_close(ensemble_cross_entropy(losses, "sum"), expected)
    torch.testing.assert_close(ensemble_cross_entropy(losses), expected / 3)


def test_worked_dispersion() -> None:
    gradients = [torch.tensor([row]) for row in ([3.0, 4.0], [4.0, 3.0], [0.0, 1.0])]
    torch.testing.assert_close(pairwise_cosines(gradients), torch.tensor([0.96, 0.8, 0.6]))
    torch.testing.assert_close(dispersion(gradients), torch.tensor(2.36))


def test_dispersion_is_mean_over_the_batch() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    b = torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    torch.testing.assert_close(dispersion([a, b]), torch.tensor(0.48))


@pytest.mark.parametrize(("members", "total"), [(2, 1.0), (3, 3.0), (5, 10.0)])
def test_identical_members_reach_the_upper_bound(members: int, total: float) -> None:
    gradient = torch.randn(4, 1, 8, 8, generator=generator(5))
    torch.testing.assert_close(dispersion([gradient] * members), torch.tensor(total))


def test_opposite_pair() -> None:
    gradient = torch.randn(4, 3, 8, 8, generator=generator(6))
    torch.testing.assert_close(dispersion([gradient, -gradient]), torch.tensor(-1.0))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), members=st.integers(2, 5), units=st.integers(1, 6))
def test_dispersion_is_bounded(seed: int, members: int, units: int) -> None:
    gradients = [torch.randn(3, units, generator=generator(seed, k)) for k in range(members)]
    value = float(dispersion(gradients))
    assert -members / 2 - 1e-5 <= value <= members * (members - 1) / 2 + 1e-5


def test_zero_gradients_have_finite_derivatives() -> None:
    zero = torch.zeros(2, 4, requires_grad=True)
    dispersion([zero, torch.ones(2, 4)]).backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


def test_cosines_are_float32_under_autocast() -> None:
    a = torch.randn(4, 64, generator=generator(7))
    b = torch.randn(4, 64, generator=generator(8))
    plain = pairwise_cosines([a, b])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pairwise_cosines([a, b]), plain)
    assert pairwise_cosines([a.bfloat16(), b.bfloat16()]).dtype == torch.float32


def linear_dispersion(weights: list[Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """Eq. (3) for members ``softmax(W_k x)``."""
    images = x.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(
            F.cross_entropy(images @ w.T, labels, reduction="sum"), images, create_graph=True
        )[0]
        for w in weights
    ]
    return dispersion(gradients)


def test_identical_heads_have_cosine_one_and_a_perturbation_lowers_it() -> None:
    x = torch.rand(5, 6, dtype=torch.float64, generator=generator(9))
    labels = torch.tensor([0, 1, 2, 0, 1])
    weight = torch.randn(3, 6, dtype=torch.float64, generator=generator(10))
    one = linear_dispersion([weight, weight], x, labels)
    torch.testing.assert_close(one, torch.ones((), dtype=torch.float64))
    other = weight + 0.3 * torch.randn(3, 6, dtype=torch.float64, generator=generator(11))
    assert linear_dispersion([weight, other], x, labels) < one


def test_gradient_of_the_penalty_matches_finite_differences() -> None:
    x = torch.rand(5, 6, dtype=torch.float64, generator=generator(12))
    labels = torch.tensor([0, 1, 2, 0, 1])
    weights = [torch.randn(3, 6, dtype=torch.float64, generator=generator(13, k)) for k in range(3)]
    weight = weights[1].clone().requires_grad_()
    (analytic,) = torch.autograd.grad(
        linear_dispersion([weights[0], weight, weights[2]], x, labels), weight
    )
    step = 1e-6
    for row, column in [(0, 0), (1, 3), (2, 5)]:
        ends = []
        for sign in (1, -1):
            moved = weights[1].clone()
            moved[row, column] += sign * step
            ends.append(linear_dispersion([weights[0], moved, weights[2]], x, labels))
        numeric = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(numeric, analytic[row, column], atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------- diversity measures


def votes(right: list[int], members: int) -> Tensor:
    """A table in which image i is recognised by the first `right[i]` members."""
    return torch.arange(members)[None, :] < torch.tensor(right)[:, None]


@pytest.mark.parametrize(
    ("right", "members", "expected"),
    [([0, 1, 2, 3], 3, 0.5), ([2], 5, 1.0), ([1], 5, 0.5), ([2], 4, 1.0), ([0, 2], 2, 0.0)],
)
def test_entropy_measure(right: list[int], members: int, expected: float) -> None:
    assert float(entropy_measure(votes(right, members))) == pytest.approx(expected)


def test_discrimination_score() -> None:
    # activated: {1, 3} and {3, 5}, with means 2 and 4 and variances 1 and 1
    features = torch.tensor([[[1.0, 3.0, 0.0], [3.0, 5.0, 0.0]]])
    assert discrimination_score(features).tolist() == [2.0]


def test_discrimination_of_three_members_sums_over_pairs() -> None:
    features = torch.tensor([[[1.0, 3.0], [3.0, 5.0], [5.0, 7.0]]])
    assert discrimination_score(features).tolist() == [2.0 + 8.0 + 2.0]


def test_discrimination_of_a_dead_member_is_finite() -> None:
    features = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    assert discrimination_score(features).tolist() == [4.0]
