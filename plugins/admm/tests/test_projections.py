"""Projections by their worked cases, against slow references, and as nearest points."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from phalanx_admm.projections import block_norms, blocks, filters, irregular, kept, largest

W = torch.tensor([[0.5, -0.1, 0.3, 0.05], [-0.7, 0.2, -0.02, 0.4]])
SQUARE = torch.arange(1.0, 17.0).view(4, 4)
ROWS = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [6.0, 8.0]])


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- worked cases


def test_the_largest_entries() -> None:
    assert torch.equal(irregular(W, rate=4), torch.tensor([[0.5, 0, 0, 0], [-0.7, 0, 0, 0]]))


def test_the_largest_filters() -> None:
    assert torch.equal(filters(ROWS, rate=4), ROWS * torch.tensor([[0], [0], [0], [1]]))
    assert torch.equal(filters(ROWS, rate=2), ROWS * torch.tensor([[1], [0], [0], [1]]))


def test_the_largest_blocks() -> None:
    norms = block_norms(SQUARE, block=(2, 2))
    torch.testing.assert_close(
        norms[..., 0], torch.tensor([[8.124, 11.747], [23.367, 27.313]]), atol=1e-3, rtol=0
    )
    expected = SQUARE.clone()
    expected[:2] = 0
    assert torch.equal(blocks(SQUARE, rate=2, block=(2, 2)), expected)


def test_of_equal_ones_the_first_are_kept() -> None:
    ties = torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0]).view(1, 5)  # a percentile would freeze one
    assert torch.equal(irregular(ties, rate=4), torch.tensor([[0, 0, 0, 4.0, 0]]))
    assert largest(torch.ones(2, 3), 2).tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("count", "rate", "expected"),
    [(8, 4, 2), (100, 8, 12), (64, 1, 64), (1, 4, 1), (3, 1000, 1), (27, 4, 7), (5, 4, 1)],
)
def test_how_many_stay(count: int, rate: float, expected: int) -> None:
    assert kept(count, rate) == expected
    assert count - expected == min(count - 1, round((1 - 1 / rate) * count))


def test_no_layer_is_emptied() -> None:
    for found in (
        irregular(weights(3, 2, 1, 1), rate=1000),
        filters(weights(3, 2, 1, 1), rate=1000),
        blocks(weights(3, 2, 3, 3), rate=1000, block=(4, 4)),
    ):
        assert bool(found.any())


# ---------------------------------------------------------------- blocks


def slow_blocks(weight: Tensor, rate: float, block: tuple[int, int], scheme: str) -> Tensor:
    """Blocks one by one, by their definition."""
    out, channels, *kernel = weight.shape
    rows, columns = min(block[0], out), min(block[1], channels)
    places = itertools.product(*(range(side) for side in kernel))
    positions = list(places) if scheme == "kgs" else [(slice(None),) * len(kernel)]
    parts = [
        (slice(row, row + rows), slice(column, column + columns), *position)
        for row in range(0, out, rows)
        for column in range(0, channels, columns)
        for position in positions
    ]
    ranked = sorted(parts, key=lambda part: -float(weight[part].square().sum()))
    found = torch.zeros_like(weight)
    for part in ranked[: kept(len(parts), rate)]:
        found[part] = weight[part]
    return found


@pytest.mark.parametrize("scheme", ["kgs", "vanilla"])
@pytest.mark.parametrize(
    "shape",
    [(8, 8, 3, 3), (6, 5, 3, 3), (8, 3, 3, 3), (4, 4, 1, 1), (5, 1, 3, 3), (6, 4, 3), (6, 7)],
)
def test_blocks_are_those_of_the_definition(shape: tuple[int, ...], scheme: str) -> None:
    weight = weights(*shape)
    for rate in (1.0, 2.0, 4.0):
        found = blocks(weight, rate=rate, block=(4, 4), scheme=scheme)
        assert torch.equal(found, slow_blocks(weight, rate, (4, 4), scheme))


def test_a_block_is_no_larger_than_the_layer() -> None:
    assert block_norms(weights(8, 3, 3, 3), block=(4, 4)).shape == (2, 1, 9)  # a stem: 4 x 3
    assert block_norms(weights(8, 3, 3, 3), block=(4, 4), scheme="vanilla").shape == (2, 1, 1)


def test_at_full_blocks_the_share_is_exact() -> None:
    found = blocks(weights(16, 8, 3, 3), rate=8, block=(4, 4))
    assert int((found != 0).sum()) == 16 * 8 * 9 // 8


# ---------------------------------------------------------------- nearest points


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_point_of_the_set_is_nearer(count: int) -> None:
    weight = weights(2, 3, seed=count)
    rate = 6 / count
    own = float((weight - irregular(weight, rate=rate)).norm())
    for support in itertools.combinations(range(6), count):
        other = torch.zeros(6)
        other[list(support)] = weight.flatten()[list(support)]
        assert own <= float((weight.flatten() - other).norm()) + 1e-6


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*(st.integers(1, 7) for _ in range(4))),
    rate=st.floats(1, 20),
    seed=st.integers(0, 1000),
)
def test_properties(shape: tuple[int, ...], rate: float, seed: int) -> None:
    weight = weights(*shape, seed=seed)
    untouched = weight.clone()
    out = shape[0]
    cases = {
        "irregular": lambda w: irregular(w, rate=rate),
        "filters": lambda w: filters(w, rate=rate),
        "kgs": lambda w: blocks(w, rate=rate, block=(3, 2)),
        "vanilla": lambda w: blocks(w, rate=rate, block=(3, 2), scheme="vanilla"),
    }
    for project in cases.values():
        found = project(weight)
        assert found.shape == weight.shape
        assert torch.equal(weight, untouched)  # no aliasing: the live weights stay
        assert torch.equal(project(found), found)
        assert torch.equal(found[found != 0], weight[found != 0])
        assert torch.equal(project(3 * weight), 3 * found)
    assert int((cases["irregular"](weight) != 0).sum()) == kept(weight.numel(), rate)
    assert int(cases["filters"](weight).flatten(1).any(1).sum()) == kept(out, rate)
    for scheme in ("kgs", "vanilla"):
        norms = block_norms(cases[scheme](weight), block=(3, 2), scheme=scheme)
        assert int((norms != 0).sum()) == kept(norms.numel(), rate)
