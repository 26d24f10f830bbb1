"""The page's worked numbers, eq. (7), and κ against Fleiss' formula."""

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
    interrater_agreement,
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


def table(*rows):
    """The oracle table as the page writes it (an image a row), as models × images."""
    return torch.tensor([[int(bit) for bit in row] for row in rows]).T


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("110", "111", "000", "101"), 0.314286),
        (("11", "10", "01", "00"), 0.0),
        (("10", "01"), -1.0),
        (("111", "000", "111"), 1.0),
    ],
)
def test_agreement_by_hand(rows, expected):
    assert interrater_agreement(table(*rows)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bit", [0, 1])
def test_agreement_of_equal_bits_is_undefined(bit):
    assert interrater_agreement(torch.full((3, 5), bit)).isnan()


def test_agreement_needs_two():
    with pytest.raises(ValueError, match="agreement is between two classifiers or more, found 1"):
        interrater_agreement(torch.ones(1, 4))


def test_agreement_is_fleiss_kappa():
    """Fleiss' own formula on the two categories right and wrong, image by image."""
    correct = torch.rand(7, 60, generator=torch.Generator().manual_seed(2)) < 0.7
    raters, images = correct.shape
    agreements, right = [], 0
    for i in range(images):
        n = int(correct[:, i].sum())
        right += n
        agreements.append((n * (n - 1) + (raters - n) * (raters - n - 1)) / (raters * (raters - 1)))
    share = right / (raters * images)
    by_chance = share**2 + (1 - share) ** 2
    fleiss = (sum(agreements) / images - by_chance) / (1 - by_chance)
    assert interrater_agreement(correct).item() == pytest.approx(fleiss)
