"""Channels are followed through what is known, and stay where somebody would miss them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.api import generator
from phalanx.nn.size import size_of
from phalanx.randomness import seeded
from phalanx_admm.compaction import compact_filters


@torch.no_grad()
def shaken(network: nn.Module) -> nn.Module:
    """A network in evaluation mode whose batch normalisations do something."""
    draw = generator(0, "shaken")
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5, generator=draw)
            part.running_var.uniform_(0.5, 1.5, generator=draw)
            if part.affine:
                part.weight.uniform_(1.0, 2.0, generator=draw)
                part.bias.uniform_(-0.5, 0.5, generator=draw)
    return network.eval()


def images(*shape: int) -> Tensor:
    return torch.rand(4, *shape, generator=generator(0, "images"))


@torch.no_grad()
def assert_equal_answers(own: nn.Module, found: nn.Module, x: Tensor) -> None:
    """To 1e-5 of the largest score, on networks that tell the images apart; in training too."""
    expected = own(x)
    largest = float(expected.abs().max())
    assert float((found(x) - expected).abs().max()) <= 1e-5 * largest
    assert float(expected.std(0).max()) > 1e-3 * largest
    own, found = (copy.deepcopy(one).double().train() for one in (own, found))
    assert torch.allclose(found(x.double()), own(x.double()), rtol=1e-5)


# ---------------------------------------------------------------- worked


class Chain(nn.Module):
    """Two convolutions with all that may stand between them."""

    def __init__(self, between: nn.Module, *, bias: bool = False, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, bias=bias)
        self.between = between
        self.second = nn.Conv2d(4, 4, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def chain(between: nn.Module | None = None, **keywords: object) -> Chain:
    with seeded(0, "chain"):
        network = Chain(between or nn.Identity(), **keywords)
    with torch.no_grad():
        network.first.weight[[1, 3]] = 0.0
    return shaken(network)


def test_worked_chain() -> None:
    network = chain(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)))
    norm = network.between[0]
    with torch.no_grad():
        norm.weight[[1, 3]] = 0.0
        norm.bias[[1, 3]] = 0.0
    network.first.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    found = compact_filters(network)
    assert found.first.weight.shape == (2, 2, 3, 3)
    assert torch.equal(found.first.weight, network.first.weight[[0, 2]])
    assert torch.equal(found.second.weight, network.second.weight[:, [0, 2]])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(found.between[0], name), getattr(norm, name)[[0, 2]])
    assert (found.first.in_channels, found.first.out_channels) == (2, 2)
    assert (found.second.in_channels, found.second.out_channels) == (2, 4)
    assert found.between[0].num_features == 2
    assert not found.first.weight.requires_grad
    assert found.second.weight.requires_grad
    x = images(2, 8, 8)
    assert_equal_answers(network, found, x)
    found(x).sum().backward()
    assert bool(found.second.weight.grad.isfinite().all())
    assert network.second.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.first.out_channels == 4


@pytest.mark.parametrize("training", [True, False])
def test_modes_stay(training: bool) -> None:
    network = chain(nn.BatchNorm2d(4)).train(training)
    network.second.train(not training)
    found = compact_filters(network)
    for one in (network, found):
        assert [part.training for part in one.modules()] == [
            *(training,) * 3,
            not training,
        ]


def test_one_channel_stays_where_all_are_silent() -> None:
    network = chain(nn.ReLU())
    nn.init.zeros_(network.first.weight)
    found = compact_filters(network)
    assert found.first.weight.shape == (1, 2, 3, 3)
    assert torch.equal(found(images(2, 8, 8)), network(images(2, 8, 8)))


def test_channels_that_nobody_reads_go_too() -> None:
    network = chain(nn.Sigmoid())
    with torch.no_grad():
        network.second.weight[:, 0] = 0.0
    found = compact_filters(network)
    assert torch.equal(found.first.weight, network.first.weight[1:])
    assert_equal_answers(network, found, images(2, 8, 8))


def test_what_is_silent_is_followed_through_several_layers() -> None:
    """A filter whose only inputs are silent is silent."""
    network = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Tanh(), nn.Conv2d(4, 4, 1))
    network = nn.Sequential(network, nn.ReLU(), nn.Conv2d(4, 3, 1))
    first, second = network[0][0], network[0][2]
    with torch.no_grad():
        first.weight[0] = 0.0
        second.weight[1, 1:] = 0.0
        second.bias[1] = 0.0
    found = compact_filters(network)
    assert found[0][2].weight.shape == (3, 3, 1, 1)
    assert found[2].weight.shape == (3, 3, 1, 1)
    assert_equal_answers(network, found, images(2, 8, 8))


# ---------------------------------------------------------------- what stays


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5


class Reshaped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape).view(x.size())


class Scaled(nn.Module):
    """Depends on how many channels there are."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[1]


class Doubled(nn.Module):
    """A convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        nn.init.zeros_(self.conv.weight[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Borrowing(Doubled):
    """A convolution whose weight is used besides."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x), self.conv.weight)


def hooked() -> nn.Module:
    part = nn.ReLU()
    part.register_forward_hook(lambda module, inputs, output: output + 1.0)
    return part


SPEAKING = {
    "sigmoid": nn.Sigmoid,
    "shift": lambda: nn.BatchNorm2d(4),
    "no scale": lambda: nn.BatchNorm2d(4, affine=False),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "prelu": lambda: nn.PReLU(4),
    "groups": lambda: nn.Conv2d(4, 4, 1, groups=2),
    "softmax": lambda: nn.Softmax(1),
    "unknown": lambda: nn.PixelShuffle(1),
    "number": Shifted,
    "reshaped": Reshaped,
    "scaled": Scaled,
    "used twice": Doubled,
    "borrowed": Borrowing,
    "hook": hooked,
}


@pytest.mark.parametrize("name", SPEAKING)
def test_channels_stay_where_they_say_something_or_nobody_knows(name: str) -> None:
    with seeded(0, "between"):
        network = chain(SPEAKING[name]())
    found = compact_filters(network)
    assert size_of(found).parameters == size_of(network).parameters
    assert torch.equal(found(images(2, 8, 8)), network(images(2, 8, 8)))


def test_a_bias_speaks() -> None:
    network = chain(nn.ReLU(), bias=True)
    with torch.no_grad():
        network.first.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    found = compact_filters(network)
    assert torch.equal(found.first.bias, network.first.bias[:3])
    assert_equal_answers(network, found, images(2, 8, 8))


@pytest.mark.parametrize("attribute", ["weight", "bias"])
def test_a_normalisation_speaks_unless_scale_and_shift_are_zero(attribute: str) -> None:
    network = chain(nn.BatchNorm2d(4))
    with torch.no_grad():
        getattr(network.between, attribute)[[1, 3]] = 0.0
    assert compact_filters(network).first.out_channels == 4


def test_a_weight_that_stands_elsewhere_stays() -> None:
    network = chain(nn.ReLU())
    network.other = nn.Conv2d(2, 4, 3, bias=False)
    network.other.weight = network.first.weight
    assert compact_filters(network).first.out_channels == 4


def test_inputs_of_grouped_convolutions_stay() -> None:
    network = chain(nn.ReLU(), groups=2)
    assert compact_filters(network).first.out_channels == 4


class Meddling(nn.Module):
    """Works in place on channels whose zeros somebody has seen, through what is not known."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.hardtanh = nn.Hardtanh(0.2, 1.0, inplace=True)
        self.threshold = nn.Threshold(0.1, 0.5, inplace=True)

    def forward(self, y: Tensor) -> Tensor:
        if self.how == "subtracted":
            y.sub_(0.5)
        elif self.how == "a view is added to":
            z = y.view(-1, 4, 6, 6)
            z.add_(1.0)
        elif self.how == "its data is added to":
            y.data.add_(1.0)
        elif self.how == "a slice is added to":
            y[:, 1].add_(1.0)
        elif self.how == "hardtanh":
            self.hardtanh(y)
        else:
            self.threshold(y)
        return y


@pytest.mark.parametrize(
    "how",
    [
        "subtracted",
        "a view is added to",
        "its data is added to",
        "a slice is added to",
        "hardtanh",
        "threshold",
    ],
)
@torch.no_grad()
def test_unknown_work_in_place_ends_the_zeros(how: str) -> None:
    """A filter that reads the channel alone is not silent after it."""
    with seeded(0, "meddling"):
        network = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            Meddling(how),
            nn.Conv2d(4, 4, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 3, 1),
        ).eval()
    network[0].weight[1] = 0.0
    network[2].weight[0] = 0.0
    network[2].weight[0, 1] = 1.0  # reads channel 1 alone
    network[2].weight[3] = 0.0
    found, x = compact_filters(network), images(2, 8, 8)
    assert found[0].out_channels == 4
    assert found[2].out_channels == 3  # the filter of zeros goes
    assert_equal_answers(network, found, x)


# ---------------------------------------------------------------- sums and products


class Residual(nn.Module):
    """A stem and two blocks around it: three that write one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 1, bias=False))
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.blocks[0](x)
        y = self.blocks[1](x)
        y += x
        return self.head(y.mean((2, 3)))


def test_channels_of_a_stage_go_where_all_that_write_them_are_silent() -> None:
    with seeded(0, "residual"):
        network = Residual().eval()
    with torch.no_grad():
        network.stem.weight[:4] = 0.0
        network.blocks[0][2].weight[1:5] = 0.0
        network.blocks[1][2].weight[[0, 1, 3]] = 0.0
        network.blocks[0][0].weight[2] = 0.0
    found = compact_filters(network)
    for layer in (found.stem, found.blocks[0][2], found.blocks[1][2]):
        assert layer.out_channels == 4  # 1 and 3 are gone
    assert torch.equal(found.stem.weight, network.stem.weight[[0, 2, 4, 5]])
    assert torch.equal(found.head.weight, network.head.weight[:, [0, 2, 4, 5]])
    assert found.blocks[0][0].weight.shape == (3, 4, 1, 1)
    assert found.blocks[1][0].weight.shape == (4, 4, 1, 1)
    assert_equal_answers(network, found, images(2, 8, 8))


class Gated(nn.Module):
    """Squeeze and excitation of a depthwise convolution, as in EfficientNets."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 6, 1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.squeeze = nn.Conv2d(6, 3, 1)
        self.excite = nn.Conv2d(3, 6, 1)
        self.project = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.depthwise(F.silu(self.expand(x))))
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.project(x * gate)


def test_gates_and_depthwise_convolutions_go_along() -> None:
    with seeded(0, "gated"):
        network = Gated().eval()
    with torch.no_grad():
        network.expand.weight[0] = 0.0
        network.depthwise.weight[3:5] = 0.0
    found = compact_filters(network)
    kept = [1, 2, 5]
    assert torch.equal(found.expand.weight, network.expand.weight[kept])
    assert torch.equal(found.depthwise.weight, network.depthwise.weight[kept])
    assert (found.depthwise.groups, found.depthwise.in_channels) == (3, 3)
    assert torch.equal(found.squeeze.weight, network.squeeze.weight[:, kept])
    assert torch.equal(found.excite.weight, network.excite.weight[kept])
    assert torch.equal(found.project.weight, network.project.weight[:, kept])
    assert_equal_answers(network, found, images(2, 8, 8))
