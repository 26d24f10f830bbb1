from __future__ import annotations

import math

import pytest
import torch
from check_toys import bits
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor

from phalanx.attacks.balls import within
from phalanx.evaluation import checks
from phalanx.evaluation.checks.outcomes import NO_BASE, mcnemar
from phalanx.evaluation.findings import Check
from phalanx.specs import L1, L2, Linf, NoBall, Threat, Union

N = 256
BASE = bits(100, N)
"""The first hundred images withstand the base."""


def newly(count: int) -> Tensor:
    """Breaks the first `count` of the images that withstand the base, and no other."""
    return (torch.arange(N) >= count).double()


@pytest.mark.parametrize(("count", "status"), [(3, "pass"), (4, "warn"), (10, "fail")])
def test_black_box_by_hand(count: int, status: str) -> None:
    found = checks.black_box(BASE, {"square": newly(count)})
    assert (found.status, found.count, found.n) == (status, count, N)
    assert found.value == count / N
    assert found.reason == f"{count} of 256 images are broken by square and not by the base."


def test_several_attacks_are_one_set() -> None:
    late = torch.ones(N)
    late[50:60] = 0.0
    found = checks.black_box(BASE, {"square": newly(6), "hop": late})
    assert (found.count, found.status) == (16, "fail")
    assert "square (6), hop (10)" in found.reason
    late[100:] = 0.0  # broken by the base already
    assert checks.black_box(BASE, {"hop": late}).count == 10


def test_shares_are_right_above_one_half() -> None:
    q = torch.ones(N)
    q[:20] = 0.5
    q[20:40] = 0.55
    assert checks.black_box(BASE, {"square": q}).count == 20


def test_all_right_is_the_and() -> None:
    found = checks.all_right([torch.tensor([1.0, 0.4, 1.0]), torch.tensor([0.6, 1.0, 0.5])])
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "found",
    [
        checks.black_box(None, {"square": BASE}),
        checks.transfer(None, {"twin": BASE}),
        checks.one_step(None, BASE),
        checks.noise_gain(None, BASE),
        checks.ensemble_reweight(None, BASE),
        checks.losses(None, {"dlr": BASE}),
        checks.converged_steps(None, BASE),
        checks.converged_restarts(None, BASE),
        checks.eot_k(None, BASE, BASE),
    ],
)
def test_without_a_base_nothing_is_compared(found: Check) -> None:
    assert (found.status, found.reason) == ("not-run", NO_BASE)


def test_transfer_without_a_source_names_the_option() -> None:
    found = checks.transfer(BASE, {})
    assert found.status == "not-run"
    assert "--surrogate" in found.reason
    assert checks.transfer(BASE, {"twin": newly(10)}).status == "fail"
    assert checks.black_box(BASE, {}).status == "not-run"
    assert checks.losses(BASE, {}).status == "not-run"


def test_required_shares_need_149_images_and_informing_ones_do_not() -> None:
    base, other = bits(50, 100), bits(0, 100)
    for found in (
        checks.black_box(base, {"square": other}),
        checks.transfer(base, {"twin": other}),
        checks.ensemble_reweight(base, other),
        checks.converged_steps(base, other),
        checks.unbounded(base),
        checks.eot_k(base, other, other),
    ):
        assert found.status == "not-run"
        assert found.reason.startswith("too few images: 149 are needed to exclude 2 %, found 100.")
    assert checks.one_step(base, other).status == "fail"
    assert checks.noise_gain(base, other).status == "fail"
    assert checks.losses(base, {"dlr": other}).status == "fail"


@pytest.mark.parametrize(
    ("check", "limits"),
    [
        (lambda q: checks.one_step(BASE, q), (4, 6)),
        (lambda q: checks.noise_gain(BASE, q), (4, 6)),
        (lambda q: checks.converged_steps(BASE, q), (4, 10)),
        (lambda q: checks.converged_restarts(BASE, q), (4, 10)),
        (lambda q: checks.ensemble_reweight(BASE, q), (6, 20)),
        (lambda q: checks.losses(BASE, {"dlr": q, "ce": BASE}), (6, 13)),
    ],
)
def test_gains_warn_and_fail_where_the_exact_interval_says(check, limits) -> None:
    """The first counts of 256 whose lower ends pass the thresholds, from scipy's quantiles."""
    warn, fail = limits
    statuses = [check(newly(count)).status for count in (warn - 1, warn, fail - 1, fail)]
    assert statuses == ["pass", "warn", "warn", "fail"]
    thresholds = checks.DEFAULTS.model_dump()[check(BASE).id]
    for count, key in ((warn, "warn"), (fail, "fail")):
        lower = stats.beta.ppf(0.05, [count, count - 1], [N - count + 1, N - count + 2])
        assert lower[1] <= thresholds[key] < lower[0]


def test_losses_takes_the_strongest() -> None:
    found = checks.losses(BASE, {"ce": newly(1), "dlr": newly(20), "margin": newly(3)})
    assert (found.count, found.status) == (20, "fail")
    assert "by dlr" in found.reason


def test_unbounded_counts_what_is_still_right() -> None:
    assert checks.unbounded(bits(0, N)).status == "pass"
    assert checks.unbounded(bits(4, N)).status == "warn"
    found = checks.unbounded(bits(6, N))
    assert (found.status, found.value) == ("fail", 6 / N)
    assert found.reason == "6 of 256 images are still right when the ball is the whole box."


def test_chance_is_taken_off() -> None:
    found = checks.chance(bits(30, 300), 10)
    assert (found.status, found.value) == ("pass", pytest.approx(0.0))
    lower = stats.beta.ppf(0.05, 60, 241)
    assert 0.15 < lower < 0.2
    assert checks.chance(bits(60, 300), 10).status == "warn"
    assert checks.chance(bits(90, 300), 10).status == "fail"
    assert checks.chance(bits(90, 300), 2).status == "pass"


# ---------------------------------------------------------------- net differences


def test_frozen_randomness_must_not_make_the_attack_weaker() -> None:
    assert checks.eot_k(BASE, BASE, BASE).status == "pass"
    weaker = torch.ones(N)  # breaks nothing, where the attack in expectation breaks 156
    found = checks.eot_k(BASE, BASE, weaker)
    assert (found.status, found.count, found.value) == ("fail", 156, 156 / N)
    assert checks.eot_k(BASE, BASE, newly(256)).status == "pass"  # stronger: as it should be


def test_images_that_the_frozen_draw_gets_wrong_anyway_speak_for_nothing() -> None:
    """Twenty that freezing misses, and twenty "broken" ones that were wrong without an attack."""
    frozen, clean = BASE.clone(), torch.ones(N, dtype=torch.bool)
    frozen[BASE.nonzero()[:20]], clean[BASE.nonzero()[:20]] = 0.0, False
    frozen[(BASE == 0).nonzero()[:20]] = 1.0
    assert checks.eot_k(BASE, BASE, frozen).status == "pass"
    found = checks.eot_k(BASE, BASE, frozen, clean=clean)
    assert (found.status, found.count, found.value) == ("fail", 20, 20 / N)


def test_more_draws_must_not_gain() -> None:
    found = checks.eot_k(BASE, newly(20) * BASE, BASE)
    assert (found.status, found.count, found.value) == ("warn", 20, 20 / N)
    assert found.reason == (
        "2K draws break 20 of 256 images that K do not, and miss 0; with the randomness frozen 0 "
        "are missed and 0 more broken."
    )
    assert checks.eot_k(BASE, newly(4) * BASE, BASE).status == "pass"


def test_images_that_fall_either_way_decide_nothing() -> None:
    """30 images gained and 30 lost are noise of the judge, not a gain of draws."""
    noisy = BASE.clone()
    noisy[:30], noisy[100:130] = 0.0, 1.0
    assert checks.eot_k(BASE, noisy, noisy).status == "pass"
    assert checks.monotone({0.1: BASE, 0.2: noisy}).status == "pass"


def test_a_larger_radius_must_not_lose() -> None:
    found = checks.monotone({0.3: bits(20, N), 0.1: bits(200, N), 0.2: BASE})
    assert (found.status, found.value) == ("pass", 0.0)
    found = checks.monotone({0.1: bits(200, N), 0.2: BASE, 0.3: bits(140, N)})
    assert (found.status, found.count, found.value) == ("fail", 40, 40 / N)
    assert found.reason == (
        "From eps 0.2 to 0.3, 40 of 256 images are no longer broken and 0 are newly broken."
    )
    assert checks.monotone({0.1: BASE}).status == "not-run"


# ---------------------------------------------------------------- the adaptive attack


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_mcnemar_is_the_binomial_test(more: int, fewer: int) -> None:
    m = more + fewer
    expected = stats.binomtest(more, m, alternative="greater").pvalue if m else 1.0
    assert mcnemar(more, fewer) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("count", "status"),
    [(4, "pass"), (5, "warn")],  # 1/16 and 1/32
)
def test_the_rest_must_not_be_stronger_than_the_adaptive_attack(count: int, status: str) -> None:
    found = checks.adaptive(BASE, newly(count) * BASE)
    assert (found.status, found.count, found.value) == (status, count, count / N)
    assert checks.adaptive(newly(count) * BASE, BASE).status == "pass"
    assert checks.adaptive(None, BASE).status == "not-run"


# ---------------------------------------------------------------- budget


def test_excess_by_hand() -> None:
    x = torch.full((4, 1, 1, 2), 0.5, dtype=torch.float64)
    moved = x.clone()
    moved[0] += 0.1
    moved[1, 0, 0] = torch.tensor([1.25, 0.5])
    moved[2, 0, 0, 0] = math.nan
    assert checks.excess(moved, x, Linf(0.1)).tolist() == pytest.approx(
        [0.0, 0.75 - 0.1 * 1.00001 - 0.0, math.inf, 0.0]
    )
    assert checks.excess(moved, x, NoBall()).tolist() == pytest.approx([0.0, 0.25, math.inf, 0.0])
    assert checks.excess(moved, x, L1(0.15))[0] == pytest.approx(0.2 - 0.15 * 1.00001)
    either = Union(parts=(L1(0.15), Linf(0.1)))
    assert checks.excess(moved, x, either)[0] == 0.0


@given(st.sampled_from([Linf(0.1), L2(0.3), L1(0.8)]), st.floats(0.0, 0.4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_excess_is_within(threat: Threat, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 1, 2, 2, generator=generator) * 0.2 + 0.4
    moved = x + size * torch.randn(x.shape, generator=generator)
    kept = within(moved, x, threat)
    assert torch.equal(kept, (checks.excess(moved, x, threat) <= 1e-6) & kept)
    outside = ~kept & ((moved >= 0) & (moved <= 1)).flatten(1).all(1)
    assert (checks.excess(moved, x, threat)[outside] > 9e-7).all()


def test_budget_fails_by_its_excess() -> None:
    assert checks.budget(0, 500).status == "pass"
    found = checks.budget(3, 500, excess=0.01)
    assert (found.status, found.value, found.count, found.n) == ("fail", 0.01, 3, 500)
    assert found.reason == (
        "3 of 500 examples left ball or box or were not finite, by at most 0.01; such an image "
        "does not count as broken."
    )
    assert checks.budget(3, 500).status == "fail"
    assert checks.budget(0, 500, excess=1e-7).status == "pass"
    assert checks.budget(1, 500, excess=math.inf).status == "fail"
