"""What is drawn, from which generator, and what the settings refuse."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from phalanx.api import PerturbationType, Perturbing, UsePerturbation, generator
from phalanx.testing import check_component
from phalanx_natural.config import FogConfig, RotationConfig, SnowConfig
from phalanx_natural.functions import fog, rotate, snow
from phalanx_natural.perturbations import Fog, Rotation, Snow
from phalanx_natural.plugin import COMPONENTS


def images(count: int = 6, *, channels: int = 3) -> Tensor:
    return torch.rand((count, channels, 8, 8), generator=generator("images"))


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda one: one.name)
def test_conformance(component: Any) -> None:
    check_component(component)


@pytest.mark.parametrize(
    "params", [{"select": "below", "alpha": [0.33, 0.83], "darkness": 2.5}, {"per": "pixel"}]
)
def test_conformance_of_snows_other_forms(params: dict[str, Any]) -> None:
    check_component("perturbation/snow", params=params)


def test_defaults_are_the_papers() -> None:
    assert (FogConfig().t, FogConfig().light) == (0.4, 1.2)
    assert (SnowConfig().darkness, SnowConfig().alpha) == (8.0, (0.0, 0.5))
    assert (SnowConfig().select, SnowConfig().per) == ("above", "image")
    assert (RotationConfig().max_angle, RotationConfig().interpolation) == (180.0, "bilinear")


def test_fog_draws_nothing() -> None:
    draws = generator(0)
    before = draws.get_state()
    found = Fog(FogConfig())(images(), generator=draws)
    assert torch.equal(found, fog(images(), t=0.4, light=1.2))
    assert torch.equal(before, draws.get_state())


def test_snow_draws_a_threshold_for_each_image() -> None:
    found = Snow(SnowConfig(alpha=(0.1, 0.4)))(images(), generator=generator(3))
    u = torch.rand((6, 1, 1, 1), generator=generator(3))
    assert torch.equal(found, snow(images(), 0.1 + (0.4 - 0.1) * u, darkness=8.0))


def test_snow_draws_a_threshold_for_each_pixel() -> None:
    found = Snow(SnowConfig(per="pixel"))(images(), generator=generator(3))
    u = torch.rand((6, 1, 8, 8), generator=generator(3))
    assert torch.equal(found, snow(images(), 0.5 * u, darkness=8.0))


def test_rotation_draws_an_angle_for_each_image() -> None:
    found = Rotation(RotationConfig(max_angle=30))(images(), generator=generator(3))
    degrees = 30 * (2 * torch.rand(6, generator=generator(3)) - 1)
    assert torch.equal(found, rotate(images(), degrees))


def test_no_angle_leaves_the_images() -> None:
    still = Rotation(RotationConfig(max_angle=0))(images(), generator=generator(3))
    torch.testing.assert_close(still, images(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda one: one.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_call_draws_anew_and_no_images_are_possible(component: Any, channels: int) -> None:
    perturb = UsePerturbation.model_validate(component.name).create()
    draws = generator(1)
    first, second = (perturb(images(channels=channels), generator=draws) for _ in range(2))
    assert torch.equal(first, second) == (component.name == "fog")
    assert perturb(images(0, channels=channels), generator=draws).shape == (0, channels, 8, 8)


def test_they_take_a_place_among_types_by_name() -> None:
    for name in ("fog", "snow", "rotation"):
        made = Perturbing.of(PerturbationType.model_validate({"name": name, "perturbation": name}))
        assert made.perturbation is not None
        found = made(lambda x: x, images(), torch.zeros(6).long(), generator=generator(2))
        assert torch.equal(found, made.perturbation(images(), generator=generator(2)))


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (SnowConfig, {"alpha": [0.5, 0.1]}, r"alpha = \[0.5, 0.1\]: write the smaller one first"),
        (SnowConfig, {"alpha": [0, 127.5]}, r"should be less than or equal to 1, found 127.5"),
        (SnowConfig, {"darkness": 0}, r"should be greater than 0, found 0"),
        (SnowConfig, {"select": "over"}, r"should be 'above' or 'below', found 'over'"),
        (FogConfig, {"t": float("inf")}, r"should be a finite number, found inf"),
        (FogConfig, {"light": -1}, r"should be greater than or equal to 0, found -1"),
        (RotationConfig, {"max_angle": 270}, r"should be less than or equal to 180, found 270"),
    ],
)
def test_settings_that_cannot_be(kind: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(params)


def test_settings_are_torch_free() -> None:
    modules = "phalanx_natural.config, phalanx_natural.plugin"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
