"""Members whose transfer is known, a slow reference, and what a matrix leaves as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from evaluation_toys import Threshold, images
from torch import Generator, Tensor, nn

from phalanx.attack import Attack, attacking
from phalanx.attacks.config import BIMConfig, PGDConfig
from phalanx.attacks.gradient import BIM, PGD
from phalanx.config import AttackConfig
from phalanx.evaluation.matrix import members_transfer, own_and_transferred, transfer_matrix
from phalanx.randomness import generator
from phalanx.specs import Linf


def bim(eps: float, steps: int = 5) -> BIM:
    return BIM(BIMConfig(threat=Linf(eps), steps=steps))


def toy(n: int) -> tuple[Tensor, Tensor]:
    batch = images(n).test.fetch(slice(0, n))
    return batch.x, batch.y


class Half(nn.Module):
    """A threshold on the mean of the left or the right columns; it sees nothing else."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns
        self.threshold = Threshold()

    def forward(self, x: Tensor) -> Tensor:
        return self.threshold(x[..., self.columns])


LEFT, RIGHT = slice(0, 2), slice(2, 4)


def test_members_that_look_elsewhere_do_not_fall_together() -> None:
    x, y = toy(20)  # no mean is further than .35 from the threshold
    members = [Half(LEFT), Half(RIGHT), Threshold()]
    matrix = transfer_matrix(members, bim(0.4), x, y, generator=generator("test"))
    # an example of one half leaves the other; one of all pixels fools both
    assert matrix[:2].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert matrix[2, 2] == 0.0
    assert matrix.dtype == torch.float64
    own, transferred = own_and_transferred(matrix[:2, :2])
    assert (own, transferred) == (0.0, 1.0)


def test_rows_are_targets_and_columns_sources() -> None:
    """A member that no step can fool: its examples are the clean images, those of others not."""
    x, y = toy(16)

    class Blind(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.round())  # right, and its gradient is zero

    matrix = transfer_matrix([Blind(), Threshold()], bim(0.4), x, y, generator=generator("test"))
    assert matrix[1].tolist() == [1.0, 0.0]  # the threshold on Blind's examples, on its own
    assert matrix[0, 0] == 1.0
    assert matrix[0, 1] < 1.0  # Blind falls to the threshold's examples
    found = members_transfer(matrix, defense="adp", attack="bim", threat="linf:0.4", n=16)
    assert found.kind == "members"
    assert (found.defense, found.attack, found.threat, found.n) == ("adp", "bim", "linf:0.4", 16)
    assert found.targets == found.sources == ("member 1", "member 2")
    assert found.accuracy == tuple(map(tuple, matrix.tolist()))
    assert found.accuracy[1][0] == 1.0


@torch.no_grad()
def trained_looking(seed: int, x: Tensor) -> nn.Module:
    """Untrained, but not of one mind on all images: their mean score is 0 for each class."""
    torch.manual_seed(seed)
    network = timm.create_model("resnet20_cifar", num_classes=4, width=4)
    network.linear.bias -= network.eval()(x).mean(0)
    return network


@pytest.fixture(scope="module")
def networks() -> tuple[list[nn.Module], Tensor, Tensor]:
    """Two small residual networks and images that both label rightly."""
    x = torch.rand(40, 3, 16, 16, generator=generator("images"))
    members = [trained_looking(seed, x) for seed in (0, 1)]
    with torch.no_grad():
        first, second = (member(x).argmax(1) for member in members)
    agreed = first == second
    assert int(agreed.sum()) >= 8
    return members, x[agreed][:8], first[agreed][:8]


def test_a_matrix_is_that_of_single_cells(networks: tuple[list[nn.Module], Tensor, Tensor]) -> None:
    members, x, y = networks
    attack = bim(2 / 255, steps=4)
    matrix = transfer_matrix(members, attack, x, y, generator=generator("test"))
    slow = torch.zeros(2, 2, dtype=torch.float64)
    for j, source in enumerate(members):
        for image, label in zip(x.split(1), y.split(1)):
            with attacking(source):
                found = attack(source, image, label, generator=generator("test"))
            for i, target in enumerate(members):
                slow[i, j] += float(target(found).argmax(1) == label) / len(x)
    torch.testing.assert_close(matrix, slow)
    assert 0.0 < float(matrix.mean()) < 1.0  # so that the reference says something


def test_batches_make_no_difference_to_an_attack_without_draws(
    networks: tuple[list[nn.Module], Tensor, Tensor],
) -> None:
    members, x, y = networks
    attack = bim(2 / 255, steps=4)
    whole = transfer_matrix(members, attack, x, y, generator=generator("test"))
    parts = transfer_matrix(members, attack, x, y, generator=generator("test"), batch=3)
    torch.testing.assert_close(whole, parts)


class Seen(nn.Module):
    """Remembers the largest batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.largest = Threshold(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return self.network(x)


def test_at_most_256_images_are_attacked_at_once() -> None:
    x, y = toy(300)
    member = Seen()
    matrix = transfer_matrix([member], bim(0.4), x, y, generator=generator("test"), batch=10_000)
    assert member.largest == 256
    assert matrix.tolist() == [[0.0]]
    assert math.isnan(own_and_transferred(matrix)[1])


def test_equal_generators_give_equal_matrices() -> None:
    x, y = toy(30)
    attack = PGD(PGDConfig(threat=Linf(0.25), steps=1, step=0.05))
    members = [Half(LEFT), Threshold(0.45)]
    one, again = (transfer_matrix(members, attack, x, y, generator=generator(1)) for _ in range(2))
    assert torch.equal(one, again)
    state = generator(1)
    transfer_matrix(members, attack, x, y, generator=state)
    assert not torch.equal(state.get_state(), generator(1).get_state())  # it was drawn from


def test_members_are_left_as_they_were() -> None:
    x, y = toy(10)
    members = [nn.Sequential(nn.BatchNorm2d(1), Threshold()), Threshold()]
    members[0].train()
    members[1].cut.requires_grad_(False)
    kept, state = copy.deepcopy(members[0].state_dict()), torch.get_rng_state()
    transfer_matrix(members, bim(0.1), x, y, generator=generator("test"))
    assert members[0][0].training
    assert members[0][1].cut.requires_grad
    assert members[0][1].cut.grad is None
    assert not members[1].cut.requires_grad
    assert all(torch.equal(kept[name], value) for name, value in members[0].state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Cheat(Attack[AttackConfig]):
    """The first image leaves the ball, the second the box, the third is NaN."""

    def __call__(self, model: Any, x: Tensor, y: Any, *, generator: Generator,
                 observe: Any = None) -> Tensor:  # fmt: skip
        found = (x + 0.1 * (1.0 - 2.0 * y.to(x)).view(-1, 1, 1, 1)).clamp(0, 1)
        found[0] = 1.0 - x[0]
        found[1] = -x[1] - 1.0
        found[2] = torch.nan
        return found


def test_examples_that_break_the_rules_are_their_clean_images() -> None:
    x, y = toy(6)
    members = [Threshold()]
    matrix = transfer_matrix(
        members, Cheat(AttackConfig(threat=Linf(0.1))), x, y, generator=generator("test")
    )
    assert matrix.tolist() == [[1.0]]  # a shift of .1 fools nobody, and 1 - x would have


def test_the_expected_mra_is_the_mean_of_the_matrix() -> None:
    matrix = torch.rand(4, 4, generator=generator("test"), dtype=torch.float64)
    own, transferred = own_and_transferred(matrix)
    assert own / 4 + (1 - 1 / 4) * transferred == pytest.approx(float(matrix.mean()))


@pytest.mark.parametrize(
    ("members", "rows", "text"),
    [
        (0, 4, r"found 0 members, images \(4, 1, 4, 4\) and labels \(4,\)$"),
        (2, 3, r"found 2 members, images \(4, 1, 4, 4\) and labels \(3,\)$"),
    ],
)
def test_what_makes_no_matrix(members: int, rows: int, text: str) -> None:
    x, y = toy(4)
    with pytest.raises(ValueError, match=r"^a transfer matrix is of one member or more.*" + text):
        transfer_matrix([Threshold()] * members, bim(0.1), x, y[:rows], generator=generator("test"))
