from __future__ import annotations

import pytest
import torch
from check_toys import generator
from torch import Tensor, nn

from phalanx.attacks.balls import norm, random_start, within
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.evaluation.checks import BinarizationConfig, Binarized, binarization, binarize
from phalanx.evaluation.checks.planting import Readout, fit, sphere
from phalanx.specs import L1, L2, Linf, Threat

THREAT = Linf(0.1)
CONFIG = BinarizationConfig(inner=40, random=20, validation=20)


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 6, 6, generator=generator(5))


def identity(x: Tensor) -> Tensor:
    return x.flatten(1)


def quantised(x: Tensor) -> Tensor:
    return ((20 * x).round() / 20).flatten(1)


def pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = PGD(PGDConfig(threat=THREAT, steps=10))
    return attack(model, x, y, generator=generator(1))


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.7), L1(2.0)])
@pytest.mark.parametrize("place", ["surface", "corners"])
def test_points_lie_on_the_sphere_and_in_the_box(threat: Threat, place: str) -> None:
    x = images(20)
    found = sphere(x, threat, place=place, generator=generator())
    assert norm(found - x, threat).tolist() == pytest.approx([threat.eps] * 20, rel=1e-4)
    assert within(found, x, threat).all()
    if isinstance(threat, Linf) and place == "corners":
        assert torch.allclose((found - x).abs(), torch.tensor(0.2), atol=1e-6)


def test_a_fit_tells_the_points_apart_at_the_cut() -> None:
    inner = torch.randn(50, 8, generator=generator())
    outer = torch.randn(3, 8, generator=generator(1)) + 6.0
    fitted = fit(inner, outer, 0.9)
    assert fitted is not None
    readout = Readout(identity, *fitted)
    assert float(readout.logit(inner).max()) == pytest.approx(-0.9)
    assert float(readout.logit(outer).min()) == pytest.approx(0.1)
    scores = readout(outer)
    assert scores.dtype == outer.dtype
    assert scores.argmax(1).tolist() == [1, 1, 1]
    assert torch.allclose(scores[:, 0], -scores[:, 1])


def test_points_that_no_line_separates_are_left_out() -> None:
    inner = torch.tensor([[-1.0], [1.0]])
    assert fit(inner, torch.tensor([[0.0]]), 0.999) is None


def test_an_attack_that_follows_the_gradient_finds_what_was_planted() -> None:
    result = binarize(identity, pgd, images(), threat=THREAT, generator=generator(), config=CONFIG)
    assert result.separable.all()
    assert result.found.all()
    assert (result.gain > -0.01).all()
    assert (result.dimension, result.points) == (36, 41)
    found = binarization(result)
    assert (found.count, found.n, found.value) == (0, 6, 0.0)
    assert found.status == "pass"
    assert not result.random.any()


def test_a_masked_gradient_finds_nothing() -> None:
    result = binarize(
        quantised, pgd, images(10), threat=THREAT, generator=generator(), config=CONFIG
    )
    assert result.separable.all()
    assert not result.found.any()
    assert result.random.double().mean() <= 0.5
    assert binarization(result).status == "fail"


def test_an_example_outside_the_ball_is_no_find() -> None:
    def cheats(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weight = model.get_buffer("weight").view_as(x)
        return (x + 0.3 * weight.sign()).clamp(0, 1).float()

    result = binarize(
        identity, cheats, images(3), threat=THREAT, generator=generator(), config=CONFIG
    )
    assert not result.found.any()
    assert result.gain.tolist() == pytest.approx([-1.0] * 3)


def test_the_same_generator_gives_the_same_result() -> None:
    def noise(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return random_start(x, THREAT, generator(2))

    one, other = (
        binarize(identity, noise, images(3), threat=THREAT, generator=generator(), config=CONFIG)
        for _ in range(2)
    )
    assert torch.equal(one.gain, other.gain)
    assert torch.equal(one.validation, other.validation)


def made(found: int, random: int, n: int = 60, separable: int = 60) -> Binarized:
    at = torch.arange(n)
    return Binarized(at < separable, at < found, at < random, torch.ones(n), torch.zeros(n), 64, 50)


def test_the_check_by_hand() -> None:
    assert binarization(made(60, 0)).status == "pass"
    assert binarization(made(52, 0)).status == "warn"  # 8 of 60 missed: lower end .068
    assert binarization(made(30, 0)).status == "fail"
    assert binarization(made(60, 30)).status == "pass"
    easy = binarization(made(60, 31))
    assert easy.status == "not-run"
    assert "too easy to tell anything" in easy.reason
    nothing = binarization(made(0, 0, separable=0))
    assert (nothing.status, nothing.reason) == (
        "not-run",
        "No linear read-out on 64 features tells 50 points apart: take fewer points.",
    )
