"""The worked checks of the method page: PRSE by hand, its calling times, the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from phalanx_clm.linking import (
    direction,
    is_prse_due,
    link_mask,
    other_weight,
    prse,
    prse_calls,
    similarity,
)

W1 = torch.tensor([0.10, 0.50, -0.20, 0.0])
W2 = torch.tensor([0.15, 0.90, -0.25, 0.30])
MASK = torch.tensor([1, 1, 0, 1])


def test_similarity_marks_the_near_weights():
    assert similarity(W1, W2, 0.1).tolist() == [True, False, True, False]


def test_similarity_is_strict():
    assert not similarity(torch.tensor([0.0]), torch.tensor([0.5]), 0.5).any()


@pytest.mark.parametrize(
    ("index", "expected"), [(0, [0.0, 0.5, -0.2, 0.0]), (1, [0.2, 0.5, -0.2, 0.0])]
)
def test_prse_by_hand(index, expected):
    before = W1.clone(), W2.clone()
    result = prse(W1, W2, MASK, alpha=0.1, delta=0.1, index=index)
    torch.testing.assert_close(result, torch.tensor(expected))
    assert torch.equal(W1, before[0])
    assert torch.equal(W2, before[1])


def test_prse_against_the_formula_as_printed():
    """Eq. (5) with its zero tensor O and its 1-based exponent, on a convolution's weight."""
    generator = torch.Generator().manual_seed(0)
    w_i, w_j = torch.randn(2, 6, 3, 5, 5, generator=generator) * 0.1
    mask = link_mask(w_i.shape, generator)
    for n in range(1, 5):
        beta = ((w_i - w_j).abs() < 0.1).float()
        expected = (torch.zeros_like(w_i) + (-1) ** n * 0.1) * beta * mask + w_i
        result = prse(w_i, w_j, mask, alpha=0.1, delta=0.1, index=n - 1)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        assert direction(n - 1) == (-1) ** n


def test_nothing_linked_or_no_threshold_changes_nothing():
    zeros = torch.zeros_like(MASK)
    assert torch.equal(prse(W1, W2, zeros, alpha=0.1, delta=0.1, index=0), W1)
    assert torch.equal(prse(W1, W1.clone(), MASK, alpha=0.1, delta=0.0, index=0), W1)


def test_prse_with_itself_is_refused():
    with pytest.raises(ValueError, match="PRSE compares two different sub-models, found sub-model"):
        prse(W1, W1, MASK, alpha=0.1, delta=0.1, index=3)


def test_one_prse_separates_what_it_touches():
    """|Δ| < δ before and a push of α leave at least α − δ between the touched weights."""
    generator = torch.Generator().manual_seed(1)
    w_i, w_j = torch.randn(2, 64, 3, 3, 3, generator=generator) * 0.1
    mask = torch.ones(1, 3, 3, 3, dtype=torch.bool)
    result = prse(w_i, w_j, mask, alpha=0.5, delta=0.1, index=0)
    assert (result != w_i).any()
    assert ((result - w_j).abs()[result != w_i] >= 0.4 - 1e-6).all()


def test_other_weight_never_is_the_own_and_is_uniform():
    weights = [torch.full((2,), float(j)) for j in range(5)]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([other_weight(weights, 2, generator)[0] for _ in range(4000)])
    counts = torch.bincount(drawn.long(), minlength=5)
    assert counts[2] == 0
    assert ((counts[[0, 1, 3, 4]] - 1000).abs() < 120).all()  # four deviations of a binomial


def test_other_weight_needs_another():
    with pytest.raises(ValueError, match="a population of one sub-model has none"):
        other_weight([W1], 0, torch.Generator())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 1, 5, 5), (1, 1, 5, 5)), ((64, 3, 3, 3), (1, 3, 3, 3)), ((10, 64), (1, 64))],
)
def test_mask_is_one_kernel_for_all_filters(shape, expected):
    mask = link_mask(shape, torch.Generator().manual_seed(0))
    assert mask.shape == expected
    assert mask.dtype == torch.bool
    assert torch.equal(mask, link_mask(shape, torch.Generator().manual_seed(0)))


def test_about_half_of_the_mask_is_linked():
    mask = link_mask((1, 100, 10, 10), torch.Generator().manual_seed(0))
    assert abs(mask.float().mean().item() - 0.5) < 0.02  # four deviations


@pytest.mark.parametrize(("batches", "calls"), [(391, 39), (469, 46), (10, 0), (11, 1), (0, 0)])
def test_number_of_calls(batches, calls):
    assert prse_calls(batches, 10) == calls
    assert sum(is_prse_due(3, index, period=10) for index in range(batches)) == calls


def test_first_calls_come_before_batches_11_and_21():
    due = [index + 1 for index in range(25) if is_prse_due(0, index, period=10)]
    assert due == [11, 21]


def counted(batches, period):
    """Reading A of Alg. 1 with its counter: c reset at each sub-model's epoch."""
    c, calls = 0, []
    for _ in range(batches):
        calls.append(c > period - 1)
        if calls[-1]:
            c = 0
        c += 1
    return calls


@given(st.integers(0, 200), st.integers(1, 30))
def test_stateless_times_equal_the_counter(batches, period):
    due = [is_prse_due(7, index, period=period) for index in range(batches)]
    assert due == counted(batches, period)
    assert sum(due) == prse_calls(batches, period)


def test_submodel_epochs_without_reset():
    """Alg. 1 without the reset: 4 calls in 5 epochs of 10 sub-models, always for the first."""
    due = [
        (epoch, index)
        for epoch in range(50)
        for index in range(3)
        if is_prse_due(epoch, index, period=10, unit="submodel_epoch")
    ]
    assert due == [(10, 0), (20, 0), (30, 0), (40, 0)]
    assert len(due) == prse_calls(50, 10)
