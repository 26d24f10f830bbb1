"""The two ways to put types together: by hand, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_multi.losses import by_type, worst_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "drawn"), dtype=torch.float64)


# ---------------------------------------------------------------- AVG


def test_each_types_loss_is_that_of_its_own_batch() -> None:
    scores, y = drawn(3, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    found = by_type(scores.reshape(15, 4), y, 3)
    torch.testing.assert_close(found, torch.stack([F.cross_entropy(z, y) for z in scores]))
    torch.testing.assert_close(found.mean(), F.cross_entropy(scores.reshape(15, 4), y.repeat(3)))


def test_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(3), 0.0], [math.log(3), 0.0]])
    found = by_type(scores, torch.tensor([0, 1]), 2)
    assert found.tolist() == pytest.approx([math.log(2), (math.log(4 / 3) + math.log(4)) / 2])


def test_every_type_weighs_the_same() -> None:
    scores = drawn(6, 4).requires_grad_()
    by_type(scores, torch.tensor([0, 1, 2]), 2).mean().backward()
    expected = (scores.detach().softmax(1) - F.one_hot(torch.tensor([0, 1, 2] * 2), 4)) / 6
    torch.testing.assert_close(scores.grad, expected)


# ---------------------------------------------------------------- MAX


def test_the_worst_is_taken_image_by_image() -> None:
    candidates = [torch.full((3, 1, 2, 2), float(k)) for k in range(3)]
    losses = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.5], [0.3, 0.3, 0.4]])
    images, chosen = worst_of(candidates, losses)
    assert chosen.tolist() == [1, 0, 0]  # of equal ones the first
    assert images[:, 0, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_one_type_is_itself() -> None:
    images, chosen = worst_of([drawn(4, 3)], drawn(1, 4))
    assert torch.equal(images, drawn(4, 3))
    assert chosen.tolist() == [0] * 4


def test_what_is_not_finite_counts_as_worst() -> None:
    losses = torch.tensor([[1.0, math.inf, math.nan], [math.nan, 2.0, 1.0], [3.0, 1.0, math.inf]])
    _, chosen = worst_of([torch.zeros(3, 1)] * 3, losses)
    assert chosen.tolist() == [1, 0, 0]  # NaN before infinity before any number


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), K=st.integers(1, 5), N=st.integers(1, 7))
def test_its_loss_is_the_maximum_and_rows_do_not_matter(seed: int, K: int, N: int) -> None:
    losses = drawn(K, N, seed=seed).mul(2).round().div(2)  # with ties
    candidates = list(torch.arange(K * N).view(K, N, 1))
    images, chosen = worst_of(candidates, losses)
    reached = losses.gather(0, chosen[None]).squeeze(0)
    assert torch.equal(reached, losses.amax(0))
    assert torch.equal(images.squeeze(1), chosen * N + torch.arange(N))
    first = [losses[:, n].tolist().index(float(reached[n])) for n in range(N)]
    assert chosen.tolist() == first
    order = torch.randperm(N, generator=generator(seed, "order"))
    moved, again = worst_of([one[order] for one in candidates], losses[:, order])
    assert torch.equal(moved, images[order])
    assert torch.equal(again, chosen[order])
