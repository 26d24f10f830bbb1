"""Against scipy, published tables and brute force, and what holds of any two outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import optimize, stats
from torch import Tensor

from phalanx.evaluation.paired import compare, holm, mcnemar, sign_flip, tango
from phalanx.evaluation.statistics import Z95, bootstrap


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[Tensor, Tensor]:
    """Bits of two defenses: images that both, only the first, only the second, none gets right."""
    counts = torch.tensor([both, first, second, neither])
    return (
        torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat_interleave(counts),
        torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(counts),
    )


COMPLETE_RESPONSE = outcomes(59, 6, 16, 80)
"""Cavo et al. (2012), as analysed by Fagerland, Lydersen and Laake (2017), chapter 8."""


# ---------------------------------------------------------------- 0/1 outcomes


def test_a_published_table() -> None:
    found = compare(*COMPLETE_RESPONSE, seed=0)
    assert found.difference == pytest.approx(-0.0621, abs=5e-5)
    assert found.ci95 == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert found.p_value == pytest.approx(0.052479, abs=5e-7)
    assert found.test == "mcnemar"


@pytest.mark.parametrize("first", [0, 1, 4, 17, 60])
@pytest.mark.parametrize("second", [0, 1, 5, 17, 44])
def test_mcnemar_is_a_binomial_test_of_the_discordant_images(first: int, second: int) -> None:
    p = mcnemar(*outcomes(3, first, second, 2))
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_images_is_above_zero() -> None:
    assert mcnemar(*outcomes(0, 3000, 0, 0)) == 2.0**-1022
    assert mcnemar(*outcomes(0, 2600, 2400, 0)) == pytest.approx(
        stats.binomtest(2600, 5000).pvalue, rel=1e-9
    )


def test_mcnemar_takes_booleans() -> None:
    first, second = outcomes(1, 9, 1, 0)
    assert mcnemar(first.bool(), second.bool()) == mcnemar(first, second) == 22 / 1024


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_equal_outcomes_have_an_interval_of_some_width(n: int) -> None:
    """Nobody saw a difference: the closed form is z² / (n + z²) to either side."""
    half = Z95**2 / (n + Z95**2)
    assert tango(0, 0, n) == pytest.approx((-half, half), abs=1e-12)


@pytest.mark.parametrize(("b", "c", "n"), [(6, 16, 161), (1, 7, 21), (40, 20, 160), (5, 0, 9)])
def test_tango_inverts_a_score_test_with_numerically_fitted_shares(b: int, c: int, n: int) -> None:
    def statistic(delta: float) -> float:
        def loss(q: float) -> float:  # minus the likelihood, given that the shares differ by delta
            parts = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            return -sum(k * math.log(p) for k, p in parts if k)

        low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
        q = optimize.minimize_scalar(
            loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        ).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))

    for bound, z in zip(tango(b, c, n), (Z95, -Z95), strict=True):
        assert statistic(bound) == pytest.approx(z, abs=2e-4)


tables = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda counts: sum(counts) > 0)


@given(tables)
def test_what_holds_of_any_two_bit_vectors(counts: tuple[int, int, int, int]) -> None:
    first, second = outcomes(*counts)
    one, other = compare(first, second, seed=0), compare(second, first, seed=0)
    assert one.difference == -other.difference
    assert one.ci95 == (-other.ci95[1], -other.ci95[0])
    assert one.p_value == other.p_value
    assert 0.0 < one.p_value <= 1.0
    assert -1.0 <= one.ci95[0] <= one.difference <= one.ci95[1] <= 1.0
    _, b, c, _ = counts
    if b == c:
        assert one.p_value == 1.0
    # the interval leaves out 0 exactly where the score test, McNemar's, rejects
    assert (one.ci95[0] > 0 or one.ci95[1] < 0) == ((b - c) ** 2 > Z95**2 * (b + c))


def test_images_on_which_both_agree_change_no_p_value() -> None:
    assert mcnemar(*outcomes(0, 9, 2, 0)) == mcnemar(*outcomes(500, 9, 2, 300))


# ---------------------------------------------------------------- other outcomes


def test_few_differences_are_flipped_in_every_way() -> None:
    values = torch.tensor([0.5, 0.25, 0.1, -0.05, 0.3, 0.0, 0.2])
    reference = stats.permutation_test(
        (values.double().numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(values, seed=0) == pytest.approx(reference.pvalue, abs=1e-12)
    assert sign_flip(values, seed=1) == sign_flip(values, seed=0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=13))
def test_flips_of_bits_are_mcnemar(values: list[float]) -> None:
    d = torch.tensor(values)
    assert sign_flip(d, seed=0) == pytest.approx(mcnemar(d > 0, d < 0), abs=1e-12)


def test_sums_that_are_equal_up_to_rounding_are_equal() -> None:
    d = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    assert float(d.sum()) > 0.0  # by rounding; another order gives 0
    assert sign_flip(d, seed=0) == 1.0
    assert sign_flip(torch.arange(1, 12, dtype=torch.float64) / 10, seed=0) == 2 / 2**11


def test_drawn_flips_approach_the_exact_p_value() -> None:
    for first, second in [(60, 40), (55, 45), (70, 52)]:
        d = torch.tensor([0.3] * first + [-0.3] * second)
        exact = mcnemar(d > 0, d < 0)
        assert sign_flip(d, seed=0) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))


def test_drawn_flips_of_different_sizes_approach_all_flips() -> None:
    d = torch.randn(14, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.3
    signs = (torch.arange(2**14)[:, None] >> torch.arange(14)) & 1
    exact = float(((signs * 2.0 - 1.0).double() @ d.abs()).abs().ge(d.sum().abs() - 1e-9)
                  .double().mean())  # fmt: skip
    assert 0.05 < exact < 0.95
    assert sign_flip(d, seed=0) == pytest.approx(exact, abs=0.02)
    assert sign_flip(d, seed=0) != sign_flip(d, seed=1)


def test_the_smallest_p_value_of_drawn_flips_counts_the_data() -> None:
    assert sign_flip(torch.ones(200), seed=0) == 1 / 10_001


def test_flips_ignore_scale_order_and_direction() -> None:
    d = torch.randint(-20, 15, (60,), generator=torch.Generator().manual_seed(0)) / 20
    p = sign_flip(d, seed=5)
    assert sign_flip(-d, seed=5) == p
    assert sign_flip(d.flip(0), seed=5) == p
    assert sign_flip(1e-6 * d.double(), seed=5) == p
    assert sign_flip(torch.zeros(60), seed=5) == 1.0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 20)] * 2), min_size=1, max_size=25), st.integers(0, 9))
def test_what_holds_of_any_two_defenses(pairs: list[tuple[int, int]], seed: int) -> None:
    first, second = (torch.tensor(one, dtype=torch.float64) / 20 for one in zip(*pairs))
    one, other = compare(first, second, seed=seed), compare(second, first, seed=seed)
    assert one.difference == pytest.approx(-other.difference, abs=1e-15)
    assert one.p_value == other.p_value
    assert 0.0 < one.p_value <= 1.0
    assert -1.0 <= one.ci95[0] <= one.difference + 1e-12
    assert one.difference - 1e-12 <= one.ci95[1] <= 1.0
    same = compare(first, first, seed=seed)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.ci95 == tango(0, 0, len(first))


def test_shares_are_flipped_and_resampled_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(21, (300,), generator=generator) / 20
    second = (first - 0.05).clamp_min(0.0)
    found = compare(first, second, seed=2)
    assert found.test == "sign-flip"
    assert found.difference == pytest.approx(float((first - second).double().mean()))
    assert found.p_value == 1 / 10_001
    d = torch.where(first > 0, 0.05, 0.0).double()
    assert found.ci95 == pytest.approx(bootstrap(d, 2), abs=1e-7)
    assert 0.04 < found.ci95[0] < found.ci95[1] <= 0.05 + 1e-12


def test_equal_differences_have_the_width_of_bits() -> None:
    found = compare(torch.full((40,), 0.75), torch.full((40,), 0.5), seed=0)
    assert found.difference == 0.25
    assert found.ci95 == tango(10, 0, 40)
    assert found.ci95[0] < 0.25 < found.ci95[1]


def test_the_interval_covers_a_true_difference_of_bits() -> None:
    """Correlated bits of 100 images, 400 times: 95 % of the intervals hold the truth."""
    draws = torch.rand(400, 100, generator=torch.Generator().manual_seed(1))
    more, fewer = (draws < 0.2).sum(1).tolist(), ((draws > 0.2) & (draws < 0.3)).sum(1).tolist()
    bounds = [tango(b, c, 100) for b, c in zip(more, fewer, strict=True)]
    held = sum(lo <= 0.1 <= hi for lo, hi in bounds) / 400
    assert held == pytest.approx(0.95, abs=0.03)


# ---------------------------------------------------------------- several comparisons


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], level: float) -> None:
    adjusted, m = holm(p_values), len(p_values)
    rejected = set()
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if (m - rank) * p_values[index] > level:
            break
        rejected.add(index)
    assert {i for i in range(m) if adjusted[i] <= level} == rejected
    assert all(p <= one <= min(1.0, m * p) for p, one in zip(p_values, adjusted, strict=True) if p)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("first", "second", "shapes"),
    [
        (torch.ones(3), torch.ones(4), r"\(3,\) and \(4,\)"),
        (torch.ones(2, 2), torch.ones(2, 2), r"\(2, 2\) and \(2, 2\)"),
        (torch.ones(0), torch.ones(0), r"\(0,\) and \(0,\)"),
    ],
)
def test_outcomes_that_do_not_pair_up(first: Tensor, second: Tensor, shapes: str) -> None:
    text = "^a comparison is of two defenses on the same images, one outcome .N,. each, found "
    for function in (mcnemar, lambda a, b: compare(a, b, seed=0)):
        with pytest.raises(ValueError, match=f"{text}{shapes}$"):
            function(first, second)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_outcomes_that_are_no_shares(value: float) -> None:
    with pytest.raises(ValueError, match=r"^outcomes of images are shares in \[0, 1\], found ot"):
        compare(torch.tensor([0.5, value]), torch.ones(2), seed=0)


def test_mcnemar_of_shares() -> None:
    with pytest.raises(ValueError, match=r"^McNemar's test is of outcomes that are 0 or 1, found"):
        mcnemar(torch.tensor([0.5]), torch.tensor([1.0]))


def test_differences_that_cannot_be_flipped() -> None:
    text = r"^a sign-flip test needs one difference for each image, \(N,\), found \(2, 3\)$"
    with pytest.raises(ValueError, match=text):
        sign_flip(torch.ones(2, 3), seed=0)
    with pytest.raises(ValueError, match=r"finite differences, found NaN or infinity$"):
        sign_flip(torch.tensor([1.0, math.nan]), seed=0)


def test_p_values_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"^p-values are in \[0, 1\], found 1.2$"):
        holm([0.3, 1.2])
