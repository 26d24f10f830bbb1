"""The page's worked numbers and eq. (7)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from phalanx_rls.losses import (
    ambiguity,
    group_mse,
    group_nll,
    individual_cross_entropy,
    individual_mse,
)

PREDICTIONS = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]], dtype=torch.float64)
"""Of K = 3 sampled models, for one image of class 0."""
Y = torch.tensor([0])


def test_group_loss_by_hand():
    f = PREDICTIONS[:, None]
    assert f.mean(0)[0].tolist() == pytest.approx([0.6, 0.7 / 3, 0.5 / 3])
    assert group_mse(f, Y).item() == pytest.approx(0.242222, abs=1e-6)
    assert individual_mse(f, Y).item() == pytest.approx(0.273333, abs=1e-6)
    assert ambiguity(f).item() == pytest.approx(0.031111, abs=1e-6)


def test_nll_by_hand():
    scores = [p.log()[None] + shift for p, shift in zip(PREDICTIONS, (0.0, 3.0, -7.0))]
    assert group_nll(scores, Y).item() == pytest.approx(0.510826, abs=1e-6)
    assert individual_cross_entropy(scores, Y).item() == pytest.approx(0.520216, abs=1e-6)


def test_decomposition_of_eq_7():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(5, 40, 10, generator=g, dtype=torch.float64).mul(3).softmax(-1)
    y = torch.randint(10, (40,), generator=g)
    torch.testing.assert_close(group_mse(f, y), individual_mse(f, y) - ambiguity(f))
    assert ambiguity(f) > 0.1
    assert ambiguity(f[:1].expand(5, -1, -1)).item() == pytest.approx(0.0)


def test_mse_is_a_sum_over_classes_and_a_mean_over_images():
    f = torch.zeros(1, 4, 100)
    f[..., 7] = 1.0
    y = torch.tensor([7, 7, 0, 1])
    assert group_mse(f, y).item() == pytest.approx(1.0)  # 0, 0, 2, 2


def test_one_model_has_the_ordinary_cross_entropy():
    scores = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    y = torch.arange(6)
    assert torch.equal(group_nll([scores], y), F.cross_entropy(scores, y))
