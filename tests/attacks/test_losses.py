import torch
from hypothesis import given, strategies as st

from phalanx.attack import Targeted
from phalanx.attacks import losses
from phalanx.attacks.losses import Across, Away, Towards, goal_of, substitute, wrong_classes
from phalanx.randomness import generator

classes = st.integers(2, 12)
seeds = st.integers(0, 2**31)


def scores_of(seed: int, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = generator("losses", seed)
    z = 5 * torch.randn((6, K), generator=draws)
    y = torch.randint(K, (6,), generator=draws)
    t = (y + torch.randint(1, K, (6,), generator=draws)) % K
    return z, y, t


def close(found: torch.Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def slow_margin(z: list[float], y: int) -> float:
    return max(v for j, v in enumerate(z) if j != y) - z[y]


@given(seeds, classes)
def test_margin(seed: int, K: int):
    z, y, _ = scores_of(seed, K)
    wanted = [slow_margin(row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)]
    close(losses.margin(z, y), wanted)
    assert torch.equal(losses.margin(z, y) > 0, z.argmax(1) != y)


@given(seeds, classes)
def test_dlr(seed: int, K: int):
    z, y, _ = scores_of(seed, K)
    wanted = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        wanted.append(slow_margin(row, label) / (ranked[0] - ranked[2] if K > 2 else 1.0))
    close(losses.dlr(z, y), wanted)


@given(seeds, classes)
def test_targeted_dlr(seed: int, K: int):
    z, y, t = scores_of(seed, K)
    wanted = []
    for row, label, target in zip(z.tolist(), y.tolist(), t.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        spread = ranked[0] - (ranked[2] + ranked[3]) / 2 if K > 3 else 1.0
        wanted.append((row[target] - row[label]) / spread)
    close(losses.targeted_dlr(z, y, t), wanted)


@given(seeds, classes)
def test_cross_entropy(seed: int, K: int):
    z, y, _ = scores_of(seed, K)
    wanted = [float(-row.double().softmax(0)[label].log()) for row, label in zip(z, y, strict=True)]
    close(losses.cross_entropy(z, y), wanted)


@given(seeds, st.integers(3, 8))
def test_dlr_ignores_shift_and_scale(seed: int, K: int):
    z, y, _ = scores_of(seed, K)
    torch.testing.assert_close(losses.dlr(3 * z + 7, y), losses.dlr(z, y), rtol=1e-3, atol=1e-4)


def test_no_loss_is_infinite_where_scores_tie():
    z, y, t = torch.ones(1, 5), torch.tensor([0]), torch.tensor([1])
    assert losses.dlr(z, y).tolist() == [0.0]
    assert losses.targeted_dlr(z, y, t).tolist() == [0.0]


def test_substitutes_are_said():
    assert (
        substitute("dlr", 2)
        == "With 2 classes DLR is undefined: the margin max z_j - z_y was ascended."
    )
    assert (
        substitute("targeted dlr", 3)
        == "With 3 classes targeted DLR is undefined: z_t - z_y was ascended."
    )
    assert [substitute("dlr", 3), substitute("targeted dlr", 4), substitute("ce", 2)] == [""] * 3


def test_goals():
    z = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    y = torch.tensor([0, 0])
    away, towards = goal_of(y, losses.margin), goal_of(Targeted(y), losses.margin)
    assert isinstance(away, Away)
    assert isinstance(towards, Towards)
    assert away.reached(z).tolist() == [False, True]
    assert towards.reached(z).tolist() == [True, False]
    assert away.loss(z).tolist() == away.lead(z).tolist() == [-2.0, 3.0]
    assert towards.loss(z).tolist() == towards.lead(z).tolist() == [2.0, -3.0]
    across = Across(y, torch.tensor([1, 1]))
    assert across.loss(z).tolist() == [-2.0, 1.0]
    assert across.reached(z).tolist() == [False, True]
    assert across.lead(z).tolist() == [-2.0, 3.0]
    last = torch.tensor([False, True])
    for goal in (away, towards, across):
        assert goal[last].loss(z[1:]).tolist() == goal.loss(z)[1:].tolist()


def test_wrong_classes_are_ranked_and_leave_out_the_label():
    z = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert wrong_classes(z, torch.tensor([1]), 9).tolist() == [[2, 3, 0]]
    assert wrong_classes(z, torch.tensor([2]), 2).tolist() == [[1, 3]]


def test_towards_a_label_the_margin_stands_in_for_dlr():
    # With the wanted class in third place, DLR is constant: (z_t − z_1) / (z_1 − z_3) = −1.
    y = torch.tensor([2])
    assert goal_of(Targeted(y), losses.dlr).loss(torch.tensor([[4.0, 3.0, 1.0]])).tolist() == [-3.0]
    assert goal_of(y, losses.dlr).criterion is losses.dlr
    assert goal_of(Targeted(y), losses.cross_entropy).criterion is losses.cross_entropy
