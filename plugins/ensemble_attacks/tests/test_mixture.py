"""The loss: worked numbers, autograd as reference, and what holds for any logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional

from phalanx.api import Combined, generator, log_mean, margin
from phalanx_ensemble_attacks.mixture import (
    LARGEST,
    TEMPERATURE,
    decision_scores,
    ensemble_scores,
    gap,
    log_derivative,
    member_weights,
    mixture,
    standing,
)

Z = torch.tensor([[[2.0, 1.0, 0.0]], [[0.5, 1.0, 0.0]]], dtype=torch.float64)
ZERO, ONE = torch.tensor([0]), torch.tensor([1])


def near(values: list[float]) -> object:
    return pytest.approx(values, abs=5e-5)


def test_worked_example() -> None:
    assert log_mean(list(Z)).exp()[0].tolist() == near([0.4862, 0.3756, 0.1382])
    assert log_derivative(Z, ZERO, ONE, tau=1.0).exp().flatten().tolist() == near([0.4135, 0.4927])
    assert member_weights(Z, ZERO, ONE, tau=1.0).flatten().tolist() == near([0.4563, 0.5437])


def test_gradients_of_the_averages_own_cross_entropy() -> None:
    z = Z.clone().requires_grad_()
    scores = ensemble_scores(Combined(z, "probabilities"))
    (slope,) = torch.autograd.grad(functional.cross_entropy(scores, ZERO), z)
    assert slope[0, 0].tolist() == near([-0.2290, 0.1674, 0.0616])
    assert slope[1, 0].tolist() == near([-0.2189, 0.1600, 0.0589])


def logits(seed: int, size: float, *, rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draws = generator("logits", seed)
    z = size * torch.randn((3, rows, 4), generator=draws, dtype=torch.float64)
    y = torch.randint(4, (rows,), generator=draws)
    return z, y, (y + torch.randint(1, 4, (rows,), generator=draws)) % 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(0.1, 8.0), st.sampled_from([0.2, 0.8, 1.0]))
def test_the_weight_is_the_derivative_by_autograd(seed: int, size: float, tau: float) -> None:
    z, y, j = logits(seed, size)
    soft = (tau * z).requires_grad_()
    log_q = log_mean(list(soft))
    lead = log_q.gather(1, j[:, None]) - log_q.gather(1, y[:, None])
    (slope,) = torch.autograd.grad(lead.sum(), soft)
    own = slope.gather(2, j.expand(3, -1)[..., None]).squeeze(2)
    torch.testing.assert_close(log_derivative(z, y, j, tau=tau).exp(), own)
    torch.testing.assert_close(member_weights(z, y, j, tau=tau), own / own.sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_all_saturated_still_have_weights(dtype: torch.dtype) -> None:
    z, y, j = logits(0, 1e4)
    z = z.to(dtype)
    z[:, torch.arange(len(y)), y] = 1e5
    z[:, torch.arange(len(y)), j] = 0.0
    w = member_weights(z, y, j, tau=1.0)
    torch.testing.assert_close(w, torch.full_like(w, 1 / 3))


def test_no_temperature_weighs_alike_and_unkept_members_have_none() -> None:
    z, y, j = logits(1, 3.0)
    torch.testing.assert_close(
        member_weights(z, y, j, tau=0.0), torch.full((3, 5), 1 / 3, dtype=z.dtype)
    )
    keep = torch.tensor([[True], [False], [True]]).expand(3, 5).clone()
    keep[:, 4] = False
    w = member_weights(z, y, j, tau=1.0, keep=keep)
    torch.testing.assert_close(w.sum(0), torch.tensor([1.0, 1, 1, 1, 0], dtype=z.dtype))
    assert w[1].eq(0).all()
    assert w[:, 4].eq(0).all()


def test_weights_of_two_of_three_keep_the_q_of_all() -> None:
    z, y, j = logits(1, 3.0)
    every = log_derivative(z, y, j, tau=1.0).exp()
    keep = torch.tensor([[True], [False], [True]]).expand(3, 5)
    w = member_weights(z, y, j, tau=1.0, keep=keep)
    torch.testing.assert_close(w[::2], every[::2] / every[::2].sum(0))


def by_hand(z: Tensor, y: int, j: int, beta: float, tau: float, *, masks: bool) -> Tensor:
    """z* of one row ``(n, K)`` of averaged probabilities or logits, written out."""
    n = len(z)
    p = (tau * z).softmax(-1)
    q = p.mean(0)
    w = [float(p[k, j] * (p[k, y] / q[y] + (1 - p[k, j]) / q[j])) for k in range(n)]
    if masks:
        w = [w[k] if int(z[k].argmax()) == y else 0.0 for k in range(n)]
    leads = [float(z[k].sort().values[-1] - z[k].sort().values[-2]) for k in range(n)]
    c = max(leads) / 10 if max(leads) > 10 else 1.0
    own = z.softmax(-1).mean(0).log() if masks else z.mean(0)
    top = own.sort().values
    total = sum(w)
    members = sum(w[k] * z[k] / c for k in range(n)) / total if total else torch.zeros_like(own)
    return (1 - beta) * own / (top[-1] - top[-2]) + beta * members


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(0.5, 20.0), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_mixture_row_by_row(seed: int, size: float, beta: float) -> None:
    z, y, _ = logits(seed, size)
    for rule in ("probabilities", "logits"):
        parts = Combined(z, rule)  # type: ignore[arg-type]  # a literal
        scores = ensemble_scores(parts)
        found = mixture(parts, scores, y, beta=beta, tau=0.2)
        for row in range(len(y)):
            label = int(y[row])
            rivals = scores[row].clone()
            rivals[label] = -torch.inf
            j = int(rivals.argmax())
            masks = rule == "probabilities"
            expected = by_hand(z[:, row], label, j, beta, 0.2, masks=masks)
            torch.testing.assert_close(found[row], expected)


def test_the_runner_up_is_the_ensembles_own() -> None:
    """The members' mean is second in class 2, two of three members in class 1."""
    z = torch.tensor([[[5.0, 4.0, 3.0]], [[5.0, 4.0, 3.0]], [[1.51, 0.0, 1.5]]]).double()
    parts = Combined(z, "probabilities")
    scores = ensemble_scores(parts)
    assert int(scores[0].argsort()[-2]) == 2
    assert int((0.2 * z).softmax(-1).mean(0)[0].argsort()[-2]) == 1
    found = mixture(parts, scores, ZERO, beta=1.0, tau=0.2)
    w = member_weights(z, ZERO, torch.tensor([2]), tau=0.2)
    torch.testing.assert_close(found, (w[..., None] * z).sum(0))
    assert not torch.allclose(w, member_weights(z, ZERO, ONE, tau=0.2))


def test_weights_and_scales_carry_no_gradient() -> None:
    z = Z.clone().requires_grad_()
    parts = Combined(z, "probabilities")
    found = mixture(parts, ensemble_scores(parts), ZERO, beta=1.0, tau=1.0)
    (slope,) = torch.autograd.grad(found[0, 0], z)
    assert slope.tolist() == [[[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]  # only the first is right


@pytest.mark.parametrize(("size", "largest"), [(1.0, None), (50.0, LARGEST)])
def test_no_margin_exceeds_ten(size: float, largest: float | None) -> None:
    z = torch.zeros(1, 1, 3, dtype=torch.float64)
    z[..., 0] = size
    found = mixture(Combined(z, "logits"), z.mean(0), ZERO, beta=1.0, tau=0.2)
    assert float(gap(found)) == pytest.approx(size if largest is None else largest)


def test_rows_that_no_member_gets_right_keep_the_ensembles_own_loss() -> None:
    z = torch.tensor([[[0.0, 3.0, 1.0]], [[0.0, 1.0, 3.0]]], dtype=torch.float64)
    parts = Combined(z, "probabilities")
    scores = ensemble_scores(parts)
    assert mixture(parts, scores, ZERO, beta=1.0, tau=0.2).eq(0).all()
    half = mixture(parts, scores, ZERO, beta=0.5, tau=0.2)
    torch.testing.assert_close(half, 0.5 * scores / gap(scores)[:, None])


def test_equal_scores_give_a_finite_loss() -> None:
    for rule in TEMPERATURE:
        parts = Combined(torch.zeros(2, 1, 3), rule)  # type: ignore[arg-type]  # a literal
        assert mixture(parts, ensemble_scores(parts), ZERO, beta=0.5, tau=0.2).isfinite().all()


# ---------------------------------------------------------------- votes


def votes_for(classes: list[int], *, confidence: tuple[float, ...] = (3.0, 3.0, 3.0)) -> Combined:
    z = functional.one_hot(torch.tensor(classes), 3).double()
    return Combined(z[:, None] * torch.tensor(confidence).double()[:, None, None], "votes")


def test_votes_count_alike_however_confident() -> None:
    one = ensemble_scores(votes_for([0, 0, 1]))
    torch.testing.assert_close(
        one, ensemble_scores(votes_for([0, 0, 1], confidence=(1, 0.1, 1000)))
    )
    e = torch.e
    assert float(one[0, 1].exp()) == pytest.approx((2 / (e + 2) + e / (e + 2)) / 3)


@pytest.mark.parametrize(
    ("classes", "fooled"),
    [([0, 0, 0], False), ([0, 0, 1], False), ([0, 1, 2], False), ([0, 1, 1], True)],
)
def test_a_strict_majority_fools(classes: list[int], fooled: bool) -> None:
    parts = votes_for(classes)
    lead, found = standing(parts, ensemble_scores(parts), ZERO)
    assert bool(found) == fooled
    shares = torch.tensor(classes).bincount(minlength=3) / 3
    assert abs(float(lead) - float(shares[1:].max() - shares[0])) < 0.5 / 3 + 1e-9


def test_scores_rank_classes_with_as_many_votes() -> None:
    z = torch.tensor([[[4.0, 0.0, 1.0]], [[4.0, 0.0, 1.0]]], dtype=torch.float64)
    parts = Combined(z, "votes")
    assert decision_scores(parts, ensemble_scores(parts))[0].argsort().tolist() == [1, 2, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_the_lead_of_probabilities_and_logits_is_their_margin(seed: int) -> None:
    z, y, _ = logits(seed, 3.0)
    for rule, own in (("probabilities", z.softmax(-1).mean(0).log()), ("logits", z.mean(0))):
        parts = Combined(z, rule)  # type: ignore[arg-type]  # a literal
        lead, fooled = standing(parts, ensemble_scores(parts), y)
        torch.testing.assert_close(lead, margin(own, y))
        assert torch.equal(fooled, own.argmax(1) != y)
