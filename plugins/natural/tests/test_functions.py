"""The formulas: worked values, an independent reference, invariants, gradients."""

from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx.api import generator
from phalanx_natural.functions import fog, hls_to_rgb, rgb_to_hls, rotate, snow

CORNERS = [(float(r), float(g), float(b)) for r, g, b in itertools.product((0, 1), repeat=3)]
GREYS = [(v, v, v) for v in (0.1, 0.25, 0.5, 0.75, 0.9)]


def pixels(*colours: tuple[float, float, float]) -> Tensor:
    """Colours as an image ``(1, 3, 1, n)``, float64."""
    return torch.tensor(colours, dtype=torch.float64).T.reshape(1, 3, 1, len(colours))


def colours(x: Tensor) -> list[list[float]]:
    return x.flatten(2)[0].T.tolist()


def images(seed: int = 0, *, channels: int = 3, size: tuple[int, int] = (5, 7)) -> Tensor:
    draws = generator(seed, "images")
    return torch.rand((4, channels, *size), generator=draws, dtype=torch.float64)


def alpha(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# ---------------------------------------------------------------- fog


def test_fog_by_its_worked_values() -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    found = fog(x, t=0.4, light=1.2).flatten().tolist()
    assert found == pytest.approx([0.48157, 0.63125, 0.78092, 0.93059, 1.0], abs=1e-5)
    unclipped = fog(x / 2, t=0.4, light=1.2 / 2).flatten()[-1] * 2  # linear in image and light
    assert float(unclipped) == pytest.approx(1.08026, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(a=st.floats(0, 0.86594), b=st.floats(0, 0.86594))
def test_fog_is_affine_below_its_saturation(a: float, b: float) -> None:
    one, other = (
        fog(torch.tensor([[[[v]]]], dtype=torch.float64), t=0.4, light=1.2) for v in (a, b)
    )
    assert float(one - other) == pytest.approx(0.598688 * (a - b), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("t", [40.0, 1e6])
def test_much_t_is_no_fog_and_little_t_is_the_light(t: float) -> None:
    x = images()
    torch.testing.assert_close(fog(x, t=t, light=1.2), x)
    torch.testing.assert_close(fog(x, t=-t, light=0.7), torch.full_like(x, 0.7))
    assert torch.equal(fog(x, t=-t, light=1.2), torch.ones_like(x))


@pytest.mark.parametrize("t", [-2.0, 0.0, 0.4, 2.0])
def test_the_share_of_the_image_is_the_sigmoid_of_t(t: float) -> None:
    x = images()
    s = 1 / (1 + math.exp(-t))
    torch.testing.assert_close(fog(x, t=t, light=0.5), s * x + (1 - s) * 0.5)


# ---------------------------------------------------------------- HLS


def reference(x: Tensor) -> Tensor:
    """Pixel by pixel with Python's own conversion."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    found = torch.tensor([colorsys.rgb_to_hls(*row) for row in rows], dtype=torch.float64)
    N, _, H, W = x.shape
    return found.view(N, H, W, 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize("x", [images(), pixels(*CORNERS), pixels(*GREYS)])
def test_agrees_with_pythons_conversion(x: Tensor) -> None:
    hls = rgb_to_hls(x)
    torch.testing.assert_close(hls, reference(x), atol=1e-7, rtol=0)
    back = [colorsys.hls_to_rgb(*colour) for colour in colours(hls)]
    torch.testing.assert_close(colours(hls_to_rgb(hls)), [list(c) for c in back], atol=1e-7, rtol=0)


def test_hls_by_its_worked_values() -> None:
    found = colours(rgb_to_hls(pixels((0.2, 0.4, 0.6), (0.9, 0.3, 0.3), (0.02, 0.03, 0.01))))
    expected = [[0.583333, 0.4, 0.5], [0.0, 0.6, 0.75], [0.25, 0.02, 0.5]]
    assert [value for row in found for value in row] == pytest.approx(
        [value for row in expected for value in row], abs=1e-6
    )


channel = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1e-13, 1 / 255]))


@settings(deadline=None, max_examples=200)
@given(r=channel, g=channel, b=channel)
def test_there_and_back_is_the_same_colour(r: float, g: float, b: float) -> None:
    x = pixels((r, g, b))
    torch.testing.assert_close(hls_to_rgb(rgb_to_hls(x)), x, atol=1e-12, rtol=0)
    single = x.float()
    torch.testing.assert_close(hls_to_rgb(rgb_to_hls(single)), single, atol=1e-6, rtol=0)
    hls = rgb_to_hls(x)
    assert bool(((hls >= 0) & (hls <= 1)).all())
    assert bool((hls[:, 0] < 1).all())


# ---------------------------------------------------------------- snow


@pytest.mark.parametrize(
    ("colour", "threshold", "expected"),
    [
        ((0.2, 0.4, 0.6), 0.4 - 1e-9, (1.0, 1.0, 1.0)),
        ((0.2, 0.4, 0.6), 0.45, (0.2, 0.4, 0.6)),
        ((0.1, 0.1, 0.1), 0.1, (0.8, 0.8, 0.8)),
        ((0.9, 0.3, 0.3), 0.5, (1.0, 1.0, 1.0)),
        ((0.02, 0.03, 0.01), 0.02, (0.16, 0.24, 0.08)),
    ],
)
def test_snow_by_its_worked_values(
    colour: tuple[float, ...], threshold: float, expected: tuple[float, ...]
) -> None:
    (found,) = colours(snow(pixels(colour), alpha(threshold), darkness=8.0))  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_other_direction_changes_the_other_pixels() -> None:
    x = images()
    above = snow(x, alpha(0.4), darkness=8.0)
    below = snow(x, alpha(0.4), darkness=8.0, select="below")
    moved, other = (above != x).any(1), (below != x).any(1)
    assert not bool((moved & other).any())
    assert torch.equal(moved, rgb_to_hls(x)[:, 1] >= 0.4)
    assert torch.equal(other, rgb_to_hls(x)[:, 1] < 0.4)


@pytest.mark.parametrize(("lightness", "share"), [(0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (0.8, 1.0)])
def test_how_often_a_pixel_is_whitened(lightness: float, share: float) -> None:
    n = 4000
    thresholds = 0.5 * torch.rand((n, 1, 1, 1), generator=generator("snow"), dtype=torch.float64)
    x = pixels((lightness, lightness, lightness)).expand(n, -1, -1, -1)
    changed = (snow(x, thresholds, darkness=20.0) == 1).all(1).double().mean()
    assert float(changed) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / n) + 1e-9)


def test_bright_images_always_turn_white() -> None:
    x = 0.5 + images() / 2
    assert bool((snow(x, alpha(0.5), darkness=8.0) == 1).all())


def test_a_grey_image_is_its_own_lightness() -> None:
    x = images(channels=1)
    found = snow(x, alpha(0.3), darkness=3.0)
    torch.testing.assert_close(found, torch.where(x < 0.3, x, (3 * x).clamp_max(1)))
    colour = snow(x.expand(-1, 3, -1, -1), alpha(0.3), darkness=3.0)
    torch.testing.assert_close(colour, found.expand(-1, 3, -1, -1))


def test_a_threshold_for_each_pixel() -> None:
    x = images()
    thresholds = images(1, channels=1) / 2
    found = snow(x, thresholds, darkness=8.0)
    for row, column in itertools.product(range(5), range(7)):
        here = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
        assert torch.equal(found[here], snow(x[here], thresholds[here], darkness=8.0))


def test_darkness_below_one_darkens() -> None:
    x = images()
    found = rgb_to_hls(snow(x, alpha(0.0), darkness=0.5))
    torch.testing.assert_close(found[:, 1], rgb_to_hls(x)[:, 1] / 2)
    torch.testing.assert_close(found[:, 0], rgb_to_hls(x)[:, 0])


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snow needs grey or RGB images, .* found \(4, 2, 5, 7\)"):
        snow(images(channels=2), alpha(0.1), darkness=8.0)


# ---------------------------------------------------------------- rotation


def turned(x: Tensor, angle: float) -> Tensor:
    return rotate(x, torch.full((len(x),), angle))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (5, 5)])
@pytest.mark.parametrize("quarter", [-2, -1, 0, 1, 2])
def test_quarter_turns_of_square_images(size: tuple[int, int], quarter: int) -> None:
    x = images(size=size)
    expected = torch.rot90(x, quarter, (2, 3))
    torch.testing.assert_close(turned(x, 90.0 * quarter), expected, atol=1e-12, rtol=0)
    single = turned(x.float(), 90.0 * quarter)
    torch.testing.assert_close(single, expected.float(), atol=1e-4, rtol=0)
    nearest = rotate(x, torch.full((4,), 90.0 * quarter), interpolation="nearest")
    assert torch.equal(nearest, expected)


def test_half_a_turn_of_images_that_are_not_square() -> None:
    x = images(size=(6, 11))
    torch.testing.assert_close(turned(x, 180.0), x.flip(2, 3), atol=1e-12, rtol=0)
    torch.testing.assert_close(turned(x, 0.0), x, atol=1e-12, rtol=0)


def test_a_disc_stays_and_corners_are_filled_with_zeros() -> None:
    grid = torch.arange(33) - 16
    disc = (grid[:, None] ** 2 + grid**2 <= 144).double().view(1, 1, 33, 33)
    assert float((turned(disc, 37.0) - disc).abs().mean()) < 0.03
    white = turned(torch.ones(1, 1, 33, 33, dtype=torch.float64), 45.0)
    assert float(white[0, 0, 0, 0]) == 0.0
    torch.testing.assert_close(white[0, 0, 16, 16], torch.tensor(1.0).double())


def test_not_square_images_keep_their_shapes() -> None:
    x = torch.zeros(1, 1, 9, 21, dtype=torch.float64)
    x[0, 0, 4, 7:14] = 1.0  # a line of seven pixels about the centre
    upright = turned(x, 90.0)[0, 0]
    torch.testing.assert_close(upright[1:8, 10], torch.ones(7).double())
    assert float(upright.sum()) == pytest.approx(7.0)


def test_each_image_has_its_own_angle() -> None:
    x, angles = images(), torch.tensor([0.0, 30.0, -75.0, 180.0])
    found = rotate(x, angles)
    for n, angle in enumerate(angles):
        torch.testing.assert_close(found[n : n + 1], rotate(x[n : n + 1], angle[None]))


def test_counter_clockwise() -> None:
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[0, 0, 4, 8] = 1.0  # east
    place = turned(x, 45.0)[0, 0].argmax()
    assert (int(place) // 9, int(place) % 9) in {(1, 6), (1, 7), (2, 6), (2, 7)}  # north-east


def test_under_autocast_coordinates_are_not_rounded() -> None:
    x = images(size=(32, 32)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = turned(x, 31.0)
    torch.testing.assert_close(found, turned(x, 31.0))


# ---------------------------------------------------------------- all of them

ALL = {
    "fog": lambda x: fog(x, t=0.4, light=1.2),
    "snow": lambda x: snow(x, torch.full((1, 1, 1, 1), 0.2), darkness=8.0),
    "snow-below": lambda x: snow(x, torch.full((1, 1, 1, 1), 0.2), darkness=2.5, select="below"),
    "rotation": lambda x: rotate(x, torch.full((len(x),), 33.0)),
    "rotation-nearest": lambda x: rotate(x, torch.full((len(x),), 33.0), interpolation="nearest"),
}
HARD = torch.cat([pixels(*CORNERS), pixels(*GREYS), pixels((0.5, 0.5, 0.2), (1e-13, 0, 0))], 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_range_and_type_are_kept_and_the_input_too(name: str, dtype: torch.dtype) -> None:
    x = images().to(dtype)
    before = x.clone()
    found = ALL[name](x)
    assert (found.shape, found.dtype, found.device) == (x.shape, dtype, x.device)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_colours_are_hard(name: str, dtype: torch.dtype) -> None:
    x = HARD.to(dtype).repeat(1, 1, 3, 1).requires_grad_()
    (slope,) = torch.autograd.grad(ALL[name](x).sum(), x)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("name", ["fog", "snow", "snow-below", "rotation"])
def test_gradients_are_those_of_the_values(name: str) -> None:
    x = (0.02 + 0.08 * images(3, size=(3, 3))[:1]).requires_grad_()  # where nothing clips
    assert torch.autograd.gradcheck(ALL[name], x)
