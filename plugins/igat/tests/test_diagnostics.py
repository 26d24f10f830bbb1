"""Curvature by its worked value, its limit, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from phalanx.api import MeanEnsemble, Population, UseAttack, generator
from phalanx.nn.backbones.small_cnn import SmallCNN
from phalanx.randomness import seeded
from phalanx_igat.diagnostics import (
    Curvature,
    curvature,
    curvatures,
    input_gradients,
    no_step,
)


def identity(x: Tensor) -> Tensor:
    return x


def network(seed: int = 0) -> SmallCNN:
    with seeded(seed, "network"):
        return SmallCNN(num_classes=4, in_chans=1, width=4)


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    g = generator(0, "images")
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(4, (n,), generator=g)


PGD = UseAttack.model_validate({"use": "pgd", "params": {"threat": "linf:0.1", "steps": 3}})


def test_worked_value() -> None:
    x, delta, y = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert input_gradients(identity, x, y).tolist() == [[-0.5, 0.5]]
    moved = input_gradients(identity, x + delta, y)
    assert moved.tolist()[0] == pytest.approx([-0.268941, 0.268941], abs=1e-6)
    assert float(curvatures(identity, x, y, delta)) == pytest.approx(0.326766, abs=1e-6)


def test_small_steps_tend_to_the_hessian() -> None:
    """Of ``CE(W x)`` the Hessian is ``Wᵀ (diag(p) − p pᵀ) W``."""
    g = generator(1)
    W = torch.randn(3, 5, generator=g, dtype=torch.float64)
    x = torch.randn(1, 5, generator=g, dtype=torch.float64)
    delta = 1e-6 * torch.randn(1, 5, generator=g, dtype=torch.float64)
    p = (x @ W.T).softmax(1)[0]
    H = W.T @ (torch.diag(p) - torch.outer(p, p)) @ W
    expected = (H @ delta[0]).norm() / delta.norm()
    found = curvatures(lambda z: z @ W.T, x, torch.tensor([2]), delta)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_rows_are_independent_and_no_step_is_nan() -> None:
    model, (x, y) = network().eval(), images()
    delta = 0.1 * torch.randn(x.shape, generator=generator(2))
    delta[3] = 0
    whole = curvatures(model, x, y, delta)
    alone = torch.cat(
        [curvatures(model, x[i : i + 1], y[i : i + 1], delta[i : i + 1]) for i in range(6)]
    )
    assert whole.isnan().tolist() == [False] * 3 + [True] + [False] * 2
    torch.testing.assert_close(whole, alone, equal_nan=True, rtol=1e-3, atol=1e-4)


def test_summary() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, 2.0, 10.0])
    found = Curvature.of(values, values.isnan())
    assert (found.mean, found.median, found.largest, found.skipped) == (4.0, 2.5, 10.0, 1)
    assert found.median < found.high < found.largest
    assert found.high == pytest.approx(3 + 0.85 * 7)
    nothing = Curvature.of(torch.tensor([math.nan]), torch.tensor([True]))
    assert math.isnan(nothing.mean)
    assert nothing.skipped == 1


def test_a_gradient_that_is_not_a_number_is_not_left_out() -> None:
    """A row without a step is skipped; a row whose gradient is NaN spoils the summary."""
    x, y = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    x[1] = -1.0
    delta = torch.full((3, 2), 0.1)
    delta[2] = 0.0
    found = curvatures(torch.sqrt, x, y, delta)
    assert found.isnan().tolist() == [False, True, True]
    summed = Curvature.of(found, no_step(delta))
    assert summed.skipped == 1
    assert all(math.isnan(v) for v in (summed.mean, summed.median, summed.high, summed.largest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_summary_stays_on_the_values_device(dtype: torch.dtype) -> None:
    """Nothing is made where new tensors are made by default."""
    values, still = torch.tensor([1.0, 3.0], dtype=dtype), torch.tensor([False, False])
    with torch.device("meta"):
        found = Curvature.of(values, still)
    assert (found.median, found.largest) == (2.0, 3.0)


def test_of_a_model_under_attack() -> None:
    model, (x, y) = MeanEnsemble([network(0), network(1)]).train(), images()
    modes = [part.training for part in model.modules()]
    before = torch.get_rng_state()
    attack = PGD.create()
    found, again = (
        curvature(model, x, y, attack=attack, generator=generator(5), batch=4) for _ in range(2)
    )
    assert torch.equal(found.values, again.values)
    assert found.values.shape == (6,)
    assert 0 < found.mean <= found.largest
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_mode_is_evaluation() -> None:
    """Batch statistics would couple the rows."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm2d(1), network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.norm(x))

    model, (x, y) = Normalised().train(), images()
    attack = PGD.create()
    whole = curvature(model, x, y, attack=attack, generator=generator(5))
    with torch.no_grad():
        assert model.norm.num_batches_tracked == 0
    other = curvature(model.eval(), x, y, attack=attack, generator=generator(5))
    assert torch.equal(whole.values, other.values)


def test_a_stochastic_model_is_refused() -> None:
    model, (x, y) = Population([network(0), network(1)]), images()
    with pytest.raises(ValueError, match=r"Population answers at random.*'one-draw'\]\.open"):
        curvature(model, x, y, attack=PGD.create(), generator=generator(0))
    one = model.views()["one-draw"].open(3)
    assert curvature(one, x, y, attack=PGD.create(), generator=generator(0)).mean > 0
