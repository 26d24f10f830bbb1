from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from phalanx.evaluation import scoring


def bits(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_a_cell_by_hand() -> None:
    table = bits([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0]])
    assert scoring.shares(table).tolist() == [1.0, 0.5, 0.25, 0.25]
    assert scoring.accuracy(table) == 0.5
    assert scoring.majority(table) == 0.25  # q > 1/2, so one half does not count
    assert scoring.worst_draw(table) == 0.5
    assert scoring.worst_draw(bits([[1, 1, 1], [0, 0, 1]])) == pytest.approx(1 / 3)


def test_eight_equal_cells_of_ninety_percent() -> None:
    """A worked case: .900 by choosing and reading on other draws, .798 by the minimum."""
    generator = torch.Generator().manual_seed(0)
    cells = [(torch.rand(20, 20_000, generator=generator) < 0.9).to(torch.uint8) for _ in range(8)]
    assert float(scoring.worst_shares(cells, "fresh").mean()) == pytest.approx(0.900, abs=0.003)
    assert float(scoring.worst_shares(cells, "exact").mean()) == pytest.approx(0.798, abs=0.003)
    every = torch.stack(cells).flatten(0, 1).bool().all(0).double().mean()
    assert float(every) < 1e-3  # the AND of draws, which is never taken


def test_the_cell_is_chosen_on_the_first_half_and_read_on_the_second() -> None:
    one = bits([[1], [1], [0], [0]])
    other = bits([[1], [0], [1], [1]])
    assert scoring.worst_shares([one, other], "fresh").tolist() == [1.0]  # other is chosen
    assert scoring.worst_shares([one, other], "exact").tolist() == [0.5]


def test_ties_take_the_cell_that_is_lower_over_all_images() -> None:
    weak = bits([[1, 0], [1, 0], [1, 0], [0, 0]])
    strong = bits([[1, 1], [1, 1], [1, 1], [1, 1]])
    for cells in ([weak, strong], [strong, weak]):
        assert scoring.worst_shares(cells, "fresh").tolist() == [0.5, 0.0]


def test_a_deterministic_model_is_the_and_of_its_cells() -> None:
    cells = [bits([[1, 1, 0, 1]]), bits([[1, 0, 1, 1]])]
    assert scoring.worst_shares(cells, "exact").tolist() == [1.0, 0.0, 0.0, 1.0]


tables = st.integers(1, 4).flatmap(
    lambda r: st.lists(
        st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=r, max_size=r),
        min_size=1,
        max_size=4,
    )
)


@given(tables)
def test_worst_is_at_most_every_cell_and_falls_with_more_cells(rows: list[list[list[int]]]) -> None:
    cells = [bits(one) for one in rows]
    worst = scoring.worst_shares(cells, "exact")
    assert all(bool((worst <= scoring.shares(cell)).all()) for cell in cells)
    assert float(worst.mean()) <= min(scoring.accuracy(cell) for cell in cells) + 1e-12
    assert bool((worst <= scoring.worst_shares(cells[:1], "exact")).all())


@given(tables)
def test_accuracies_are_ordered(rows: list[list[list[int]]]) -> None:
    cell = bits(rows[0])
    assert scoring.worst_draw(cell) <= scoring.accuracy(cell) + 1e-12
    assert 0.0 <= scoring.majority(cell) <= 1.0


def test_conditional_on_the_clean_image() -> None:
    clean = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert scoring.conditional(torch.tensor([1.0, 0.0, 1.0, 1.0]), clean) == pytest.approx(2 / 3)
    assert scoring.conditional(torch.ones(4), torch.zeros(4)) is None


def test_spread_over_chunks() -> None:
    table = bits([[1, 1, 0, 0, 1, 0]])
    assert scoring.spread(table, 2) == pytest.approx(0.5)  # of 1, 0, .5
    assert scoring.spread(table, 6) == 0.0
