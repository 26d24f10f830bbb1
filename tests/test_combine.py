import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from phalanx.combine import log_max, log_mean


def scores(members, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(members)
    ]


def test_log_mean_by_hand():
    # softmax (1/2, 1/2) and (3/4, 1/4): mean (5/8, 3/8)
    first, second = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = torch.tensor([[math.log(5 / 8), math.log(3 / 8)]])
    torch.testing.assert_close(log_mean([first, second]), expected)


def test_log_max_by_hand():
    first, second = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = torch.tensor([[math.log(3 / 4), math.log(1 / 2)]])
    torch.testing.assert_close(log_max([first, second]), expected)


@settings(deadline=None, max_examples=50)
@given(members=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_log_mean_is_the_log_of_the_mean_probability(members, seed):
    z = scores(members, seed, scale=3.0)
    reference = torch.stack([part.softmax(-1) for part in z]).mean(0).log()
    torch.testing.assert_close(log_mean(z), reference)
    assert torch.allclose(log_mean(z).exp().sum(-1), torch.ones(5, dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(members=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_log_max_is_the_log_of_the_largest_probability(members, seed):
    z = scores(members, seed, scale=3.0)
    reference = torch.stack([part.softmax(-1) for part in z]).amax(0).log()
    torch.testing.assert_close(log_max(z), reference)
    assert (log_max(z) <= 0).all()
    assert (log_mean(z) <= log_max(z) + 1e-12).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), shift=st.floats(-1e3, 1e3))
def test_scores_may_be_shifted_and_members_reordered(seed, shift):
    z = scores(3, seed)
    shifted = [part + shift for part in z]
    for combine in (log_mean, log_max):
        torch.testing.assert_close(combine(shifted), combine(z), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(combine(z[::-1]), combine(z))


@pytest.mark.parametrize("combine", [log_mean, log_max])
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_confident_members_give_finite_gradients(combine, seed):
    """The mean of probabilities underflows at such logits; its log must not."""
    z = [part.float().requires_grad_() for part in scores(3, seed, scale=1000.0)]
    combined = combine(z)
    assert torch.isfinite(combined).all()
    loss = torch.nn.functional.cross_entropy(combined, torch.arange(5) % 4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, z))


def test_one_member_is_its_own_log_softmax():
    (z,) = scores(1, 0)
    torch.testing.assert_close(log_mean([z]), z.log_softmax(-1))
