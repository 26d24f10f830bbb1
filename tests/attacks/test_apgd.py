import pytest
import torch

from phalanx.attacks.apgd import APGDCE, APGDDLR, APGDT
from phalanx.attacks.config import APGDConfig, APGDTConfig
from phalanx.randomness import generator
from phalanx.specs import L1, L2, Linf


@pytest.mark.parametrize("rowwise", [True, False])
def test_passes_of_a_run_where_nobody_is_fooled(rowwise, linear_case, rng):
    model, x, y = linear_case(4, rowwise=rowwise)
    APGDCE(APGDConfig(threat=L2(1e-6)))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (101, 101)
    assert model.rows == 101 * len(x)


@pytest.mark.parametrize(("classes", "runs"), [(2, 1), (4, 3), (12, 9)])
def test_passes_towards_each_class(classes, runs, linear_case, rng):
    model, x, y = linear_case(classes)
    APGDT(APGDTConfig(threat=L2(1e-6), steps=20))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (1 + 21 * runs, 21 * runs)


def test_passes_with_eot_and_restarts(linear_case, rng):
    model, x, y = linear_case(4, rowwise=False)
    APGDCE(APGDConfig(threat=L2(0.1), steps=5, eot=3, restarts=2))(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (36, 36)


def test_an_l1_run_goes_through_three_balls(linear_case, rng):
    model, x, y = linear_case(4)
    APGDCE(APGDConfig(threat=L1(1e-6)))(model, x, y, generator=rng)
    assert model.forwards == 103


def test_fooled_rows_leave_the_batch(linear_case, rng):
    model, x, y = linear_case(2)
    eps = float(2.0 * model.distances(x, y, Linf(0.1)).max())
    APGDCE(APGDConfig(threat=Linf(eps)))(model, x, y, generator=rng)
    assert model.forwards < 5


def test_rows_wrong_from_the_start_are_left_as_they_are_by_targets(linear_case, rng):
    model, x, y = linear_case(4)
    wrong = (y + 1) % 4
    x_adv = APGDT(APGDTConfig(threat=Linf(0.1)))(model, x, wrong, generator=rng)
    assert torch.equal(x_adv, x)
    assert model.forwards == 1


class Noisy(torch.nn.Module):
    """Scores of a linear model with noise on them: now and then any row is fooled by luck."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.draws = generator("noisy")
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        scores = self.model(x)
        return scores + 0.3 * torch.randn(scores.shape, generator=self.draws)


@pytest.mark.parametrize("kind", [APGDCE, APGDDLR, APGDT])
def test_no_lucky_draw_decides_where_rows_are_not_independent(kind, linear_case, rng):
    model, x, y = linear_case(4)
    noisy = Noisy(model)
    eps = float(model.distances(x, y, Linf(0.1)).median())
    config = (APGDTConfig if kind is APGDT else APGDConfig)(threat=Linf(eps), steps=30)
    x_adv = kind(config)(noisy, x, y, generator=rng)
    assert set(noisy.batches) == {len(x)}
    # A first lucky draw would have returned the start; the ascent went on instead.
    broken = model(x_adv).argmax(1) != y
    assert broken[model.distances(x, y, Linf(0.1)) < eps / 2].float().mean() > 0.5


def test_notes():
    linf = Linf(0.1)
    ce, dlr = APGDCE(APGDConfig(threat=linf)), APGDDLR(APGDConfig(threat=linf))
    targeted = APGDT(APGDTConfig(threat=linf))
    assert [attack.note(10) for attack in (ce, dlr, targeted)] == ["", "", ""]
    assert ce.note(2) == ""
    assert dlr.note(2) == "With 2 classes DLR is undefined: the margin max z_j - z_y was ascended."
    for classes in (2, 3):
        assert (
            targeted.note(classes)
            == f"With {classes} classes targeted DLR is undefined: z_t - z_y was ascended."
        )
