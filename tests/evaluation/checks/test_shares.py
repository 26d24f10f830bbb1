from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from phalanx.evaluation.checks import shares
from phalanx.evaluation.checks.thresholds import DEFAULTS, Above, Below, Shares, Thresholds


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=40, deadline=None)
def test_the_lower_end_is_clopper_and_pearsons(share: tuple[int, int]) -> None:
    count, n = share
    found = stats.binomtest(count, n, alternative="greater").proportion_ci(0.95, method="exact")
    assert shares.lower_end(count, n) == pytest.approx(found.low, abs=1e-9)


def test_closed_forms_of_the_lower_end() -> None:
    assert shares.lower_end(0, 20) == 0.0
    assert shares.lower_end(20, 20) == pytest.approx(0.05 ** (1 / 20))
    assert shares.lower_end(1, 20) == pytest.approx(1 - 0.95 ** (1 / 20))


@pytest.mark.parametrize(("count", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_no_share_is_an_error(count: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"0 <= count <= n and n >= 1: {count} of {n}$"):
        shares.lower_end(count, n)


def test_149_images_exclude_two_percent() -> None:
    assert shares.images_needed(0.02) == 149
    assert 0.98**149 < 0.05 < 0.98**148
    with pytest.raises(ValueError, match="a share to exclude lies between 0 and 1, found 0"):
        shares.images_needed(0.0)
    assert shares.too_few(149) == ""
    assert shares.too_few(148) == ("too few images: 149 are needed to exclude 2 %, found 148")


@pytest.mark.parametrize(
    ("count", "n", "status"),
    [
        (0, 148, "not-run"),
        (148, 148, "not-run"),
        (0, 149, "pass"),
        (0, 0, "not-run"),
        (1, 256, "pass"),  # one image of 256 decides nothing
        (3, 256, "pass"),  # lower ends: 3 of 256 .0032, 4 .0054, 9 .0184, 10 .0213
        (4, 256, "warn"),
        (9, 256, "warn"),
        (10, 256, "fail"),
    ],
)
def test_a_share_decides_by_its_lower_end(count: int, n: int, status: str) -> None:
    assert shares.share_status(count, n, warn=0.005, fail=0.02) == status


def test_informing_shares_take_any_number_of_images() -> None:
    assert shares.share_status(0, 1, warn=0.005, fail=0.01, excluded=None) == "pass"
    assert shares.share_status(5, 5, warn=0.005, fail=0.01, excluded=None) == "fail"
    assert shares.share_status(5, 5, warn=0.005, fail=None, excluded=None) == "warn"


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_a_net_difference_is_significant_where_mcnemar_is(more: int, fewer: int) -> None:
    lower = shares.net_lower_end(more, fewer, 100)
    m = more + fewer
    p = stats.binomtest(more, m, alternative="greater").pvalue if m else 1.0
    assert (lower > 0) == (p < 0.05)
    assert lower <= (more - fewer) / 100 + 1e-12


def test_net_difference_by_hand() -> None:
    # eight images one way and none the other: L = .05^(1/8) = .6876
    assert shares.net_lower_end(8, 0, 256) == pytest.approx((2 * 0.05**0.125 - 1) * 8 / 256)
    assert shares.net_lower_end(0, 0, 256) == 0.0


def test_right_is_more_than_half() -> None:
    q = torch.tensor([0.0, 0.5, 0.55, 1.0])
    assert shares.right(q).tolist() == [False, False, True, True]
    assert shares.right(torch.tensor([0, 1], dtype=torch.uint8)).tolist() == [False, True]


# ---------------------------------------------------------------- thresholds


def test_zero_reads_half_a_percent_of_shares() -> None:
    assert Thresholds().grad_bad == Shares(warn=0.005, fail=0.05)
    assert Shares(warn=0.0).warn == 0.005
    assert Shares(warn=0.001).warn == 0.001
    assert Above(fail=0.0).fail == 0.0


def test_words_of_thresholds() -> None:
    assert DEFAULTS.black_box.words() == (
        "warns above 0.5 %, fails above 2 % (lower end of the exact interval)"
    )
    assert DEFAULTS.grad_fd.words() == "warns below 0.95, fails below 0.7"
    assert DEFAULTS.stochastic.words() == "fails above 0.0001"
    assert Above().words() == "never fails"


def test_nan_fails_numbers() -> None:
    assert Above(warn=0.5).status(math.nan) == "warn"
    assert Above(fail=0.5).status(math.nan) == "fail"
    assert Below(warn=0.9, fail=0.6).status(math.nan) == "fail"
    assert [Below(warn=0.9, fail=0.6).status(v) for v in (0.9, 0.6, 0.59)] == [
        "pass",
        "warn",
        "fail",
    ]


def test_a_share_warns_before_it_fails() -> None:
    with pytest.raises(ValueError, match=r"warns from 0\.2 on, so it cannot fail at 0\.1"):
        Shares(warn=0.2, fail=0.1)


def test_thresholds_are_written_and_read() -> None:
    changed = Thresholds(black_box={"warn": 0.01, "fail": 0.03})
    assert Thresholds.model_validate(changed.model_dump()) == changed
    with pytest.raises(ValueError, match="did you mean 'black_box'"):
        Thresholds.model_validate({"blackbox": {}})
