import math

import pytest
import torch
from hypothesis import given, strategies as st

from phalanx.api import L1, L2, Linf, NoBall, Targeted, ThreatModelError, goal_of
from phalanx_blackbox.search import ballot, blocks, carried, radius, step


@given(st.integers(1, 600))
def test_each_level_cuts_all_coordinates_into_blocks(D):
    starts, ends = (edge.tolist() for edge in blocks(D))
    levels = []
    for start, end in zip(starts, ends):
        if start == 0:
            levels.append([])
        levels[-1].append((start, end))
    assert len(levels) == math.ceil(math.log2(D)) + 1
    for level, cut in enumerate(levels):
        assert [start for start, _ in cut[1:]] == [end for _, end in cut[:-1]]
        assert cut[-1][1] == D
        assert {end - start for start, end in cut[:-1]} <= {math.ceil(D / 2**level)}
        assert 0 < cut[-1][1] - cut[-1][0] <= math.ceil(D / 2**level)
        assert len(cut) <= 2**level
    assert levels[0] == [(0, D)]
    assert levels[-1] == [(i, i + 1) for i in range(D)]


def test_blocks_of_four():
    starts, ends = blocks(4)
    assert starts.tolist() == [0, 0, 2, 0, 1, 2, 3]
    assert ends.tolist() == [4, 2, 4, 1, 2, 3, 4]


def test_a_sign_vector_of_that_step_has_the_threats_radius():
    assert step(Linf(0.1), 16) == radius(Linf(0.1)) == 0.1
    assert step(L2(2.0), 16) == 0.5
    assert radius(L2(2.0)) == 2.0


@pytest.mark.parametrize("threat", [L1(3.0), NoBall()])
def test_other_threats_are_refused(threat):
    with pytest.raises(ThreatModelError) as caught:
        step(threat, 4)
    assert str(caught.value) == (
        f"a search along sign vectors cannot take threat {threat}; it takes linf or l2, such as "
        "linf:8/255"
    )


def votes(*counts):
    return torch.tensor(counts, dtype=torch.float32)


def test_a_majority_is_needed_and_a_tie_is_none():
    ballots = votes((2, 1, 1), (1, 2, 0), (2, 2, 0), (0, 2, 2))
    y = torch.tensor([0, 0, 0, 0])
    assert carried(ballots, goal_of(y)).tolist() == [False, True, False, True]
    towards = goal_of(Targeted(torch.tensor([1, 1, 1, 1])))
    assert carried(ballots, towards).tolist() == [False, True, False, False]


def test_a_ballot_is_one_vote_for_the_label():
    scores = torch.tensor([[0.1, 5.0, 4.9], [-1.0, -2.0, -3.0]])
    assert ballot(scores).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
