"""MRA (eq. 6) and similarity of saliency maps (eqs. 7 and 8)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from phalanx_clm.metrics import (
    cosine_similarity,
    matched_and_unmatched,
    model_robustness_average,
    saliency,
    saliency_similarity,
)

CORRECT = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]])


def test_mra_by_hand():
    assert model_robustness_average(CORRECT).item() == pytest.approx(0.75)


def test_one_member_has_the_ordinary_robust_accuracy():
    correct = torch.tensor([[True, False, False, True, False]])
    assert model_robustness_average(correct).item() == pytest.approx(0.4)
    matched, unmatched = matched_and_unmatched(correct, torch.zeros(5, dtype=torch.long))
    assert matched.item() == pytest.approx(0.4)
    assert unmatched.isnan()


def test_parts_of_the_mra():
    assignment = torch.tensor([0, 1, 2, 2])
    matched, unmatched = matched_and_unmatched(CORRECT, assignment)
    assert matched.item() == pytest.approx(3 / 4)  # (0,0) 1, (1,1) 0, (2,2) 1, (2,3) 1
    assert unmatched.item() == pytest.approx(6 / 8)
    n = len(CORRECT)
    whole = matched / n + (1 - 1 / n) * unmatched
    assert whole.item() == pytest.approx(model_robustness_average(CORRECT).item())


def test_transfer_accuracy_alone():
    """If matched pairs always fall and others keep accuracy a, the MRA is (1 − 1/n)·a."""
    n, count = 10, 1000
    assignment = torch.arange(count) % n
    keeps = (torch.arange(count) // n) % 5 < 2  # a = 0.4
    correct = keeps & (torch.arange(n)[:, None] != assignment)
    assert model_robustness_average(correct).item() == pytest.approx(0.36)


def test_cosine_by_hand_and_of_a_zero_map():
    left = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    right = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0], [-2.0, 0.0, 0.0]])
    expected = torch.tensor([4 / (3 * math.sqrt(5)), 0.0, -1.0])
    torch.testing.assert_close(cosine_similarity(left, right), expected)
    assert expected[0].item() == pytest.approx(0.596285, abs=1e-6)


def test_saliency_of_a_linear_model_is_its_row():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    y = torch.tensor([2, 0])
    maps = saliency(model, torch.rand(2, 1, 2, 2), y)
    torch.testing.assert_close(maps, model[1].weight[y].detach())
    assert model[1].weight.grad is None


def test_similarity_of_every_pair():
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(4)]
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():  # as evaluations run
        pairs = saliency_similarity(members, x, y)
    assert len(pairs) == 4 * 3 // 2
    weights = [member[1].weight.detach() for member in members]
    for (i, j), values in pairs.items():
        slow = [
            weights[i][k] @ weights[j][k] / (weights[i][k].norm() * weights[j][k].norm()) for k in y
        ]
        torch.testing.assert_close(values, torch.stack(slow))
