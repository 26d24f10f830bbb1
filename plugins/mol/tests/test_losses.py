"""Eqs. (12) and (13) by their worked values, and who gets gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_mol.losses import (
    aggregate,
    weighted_losses,
    weights,
    worst_expert,
    worst_expert_per_image,
)

A = torch.tensor([[0.7, 0.2, 0.1]])
LOGITS = [torch.tensor([row]) for row in ([2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0])]
Y = torch.tensor([0])


def drawn(m: int, n: int, k: int, seed: int) -> tuple[Tensor, list[Tensor], Tensor]:
    g = generator(seed, "losses")
    a = torch.randn(n, m, generator=g).softmax(1)
    return a, list(3 * torch.randn(m, n, k, generator=g)), torch.randint(k, (n,), generator=g)


# ---------------------------------------------------------------- worked values


def test_the_systems_logits() -> None:
    system = aggregate(A, LOGITS)
    torch.testing.assert_close(system, torch.tensor([[1.5, 0.2, -0.4]]))
    assert float(F.cross_entropy(system, Y)) == pytest.approx(0.35213, abs=1e-5)


def test_each_experts_loss() -> None:
    found = torch.cat(weighted_losses(A, LOGITS, Y))
    torch.testing.assert_close(found, torch.tensor([0.31412, 1.10194, 1.20892]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("worst", [worst_expert, worst_expert_per_image])
def test_the_worst_is_the_third(worst: object) -> None:
    loss, chosen = worst(weighted_losses(A, LOGITS, Y))  # type: ignore[operator]
    assert float(loss) == pytest.approx(1.20892, abs=1e-5)
    assert chosen.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("classes", "loss"), [(10, 2.302585), (200, 5.298317)])
def test_an_expert_without_weight_is_undecided(classes: int, loss: float) -> None:
    logits = torch.randn(4, classes, generator=generator(0, "logits"))
    (found,) = weighted_losses(torch.zeros(4, 1), [logits], torch.arange(4))
    assert math.log(classes) == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(found, torch.full((4,), loss))


def test_weightings() -> None:
    scores = torch.tensor([[1.0, -2.0, 0.5]])
    assert torch.equal(weights(scores, "linear"), scores)
    torch.testing.assert_close(weights(scores, "sigmoid"), 1 / (1 + (-scores).exp()))
    softmax = weights(scores, "softmax")
    torch.testing.assert_close(softmax, scores.exp() / scores.exp().sum())


def test_no_experts() -> None:
    with pytest.raises(ValueError, match="a system has one expert at least, found none"):
        aggregate(torch.zeros(2, 0), [])


# ---------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 7), n=st.integers(1, 6), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_as_the_slow_loops_say(m: int, n: int, k: int, seed: int) -> None:
    a, experts, y = drawn(m, n, k, seed)
    stacked = torch.stack(experts)
    torch.testing.assert_close(aggregate(a, experts), torch.einsum("nm,mnk->nk", a, stacked))
    table = torch.tensor(
        [
            [float(F.cross_entropy(a[i, j] * stacked[j, i], y[i])) for i in range(n)]
            for j in range(m)
        ]
    )
    losses = weighted_losses(a, experts, y)
    torch.testing.assert_close(torch.stack(losses), table)
    loss, chosen = worst_expert(losses)
    torch.testing.assert_close(loss, table.mean(1).max())
    assert chosen.sum() == 1
    assert int(chosen.argmax()) == int(torch.stack(losses).mean(1).argmax())
    loss, share = worst_expert_per_image(losses)
    torch.testing.assert_close(loss, table.max(0).values.mean())
    torch.testing.assert_close(share.sum(), torch.tensor(1.0))
    assert float(loss) >= float(worst_expert(losses)[0]) - 1e-5


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 7), seed=st.integers(0, 99))
def test_equal_experts_are_one_expert(m: int, seed: int) -> None:
    a, experts, _ = drawn(m, 5, 4, seed)
    torch.testing.assert_close(aggregate(a, [experts[0]] * m), experts[0])


# ---------------------------------------------------------------- gradients


def reached(loss: Tensor, experts: list[Tensor]) -> list[bool]:
    found = torch.autograd.grad(loss, experts, allow_unused=True)
    return [gradient is not None for gradient in found]


def test_one_expert_gets_a_gradient_and_the_others_none_at_all() -> None:
    a, experts, y = drawn(5, 6, 4, 0)
    for logits in experts:
        logits.requires_grad_()
    loss, chosen = worst_expert(weighted_losses(a, experts, y))
    assert reached(loss, experts) == chosen.bool().tolist()


def test_experts_that_are_worst_on_no_image_get_none_at_all() -> None:
    a, experts, y = drawn(7, 3, 4, 1)  # three images have three worst experts at most
    for logits in experts:
        logits.requires_grad_()
    loss, share = worst_expert_per_image(weighted_losses(a, experts, y))
    assert reached(loss, experts) == (share > 0).tolist()
    assert 1 <= int((share > 0).sum()) <= 3


def test_every_expert_of_the_system_gets_one() -> None:
    a, experts, y = drawn(4, 6, 3, 2)
    for logits in experts:
        logits.requires_grad_()
    assert all(reached(F.cross_entropy(aggregate(a, experts), y), experts))


def test_the_first_of_equal_experts_is_the_worst() -> None:
    a = torch.full((2, 2), 0.5)
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    _, chosen = worst_expert(weighted_losses(a, [logits, logits.clone()], torch.tensor([0, 0])))
    assert chosen.tolist() == [1, 0]
