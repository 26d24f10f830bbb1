from __future__ import annotations

import pytest
import torch

from phalanx.evaluation import statistics


@pytest.mark.parametrize(
    ("right", "n", "lo", "hi"),
    [
        (0, 10, 0.0, 0.2775),  # Brown, Cai, DasGupta (2001) and R's prop.test(correct = FALSE)
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_numbers(right: int, n: int, lo: float, hi: float) -> None:
    assert statistics.wilson(right, n) == pytest.approx((lo, hi), abs=5e-5)


def test_zero_or_one_outcomes_get_wilson() -> None:
    values = torch.tensor([1.0] * 81 + [0.0] * 182)
    assert statistics.interval(values, 0) == statistics.wilson(81, 263)


def test_the_bootstrap_is_reproducible_and_moves_with_its_seed() -> None:
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert statistics.bootstrap(values, 3) == statistics.bootstrap(values, 3)
    assert statistics.bootstrap(values, 3) != statistics.bootstrap(values, 4)


def test_the_bootstrap_is_that_of_drawn_indices() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(21, (300,), generator=generator) / 20
    drawn = torch.randint(300, (20_000, 300), generator=generator)
    slow = values[drawn].double().mean(1).quantile(torch.tensor([0.025, 0.975]).double())
    assert statistics.bootstrap(values, 0) == pytest.approx(slow.tolist(), abs=2e-3)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_equal_shares_are_never_narrower_than_wilson(q: float) -> None:
    values = torch.full((50,), q)
    lo, hi = statistics.interval(values, 0)
    low, high = statistics.wilson(50 * q, 50)
    assert lo <= low + 1e-6
    assert hi >= high - 1e-6


def test_the_interval_is_of_images_not_of_bits() -> None:
    """500 images of which half are always right: +-4.4 points, however many draws there were."""
    values = torch.cat([torch.full((250,), 0.95), torch.full((250,), 0.05)])
    lo, hi = statistics.interval(values, 0)
    assert hi - lo == pytest.approx(2 * 1.96 * 0.45 / 500**0.5, rel=0.05)
