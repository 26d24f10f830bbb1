"""Compacted networks answer as they did, and are as small as what was silent allows."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from timm.models.vgg import VGG
from torch import Tensor, nn

from phalanx.api import (
    Backbone,
    DefendedModel,
    MeanEnsemble,
    Member,
    PhalanxWarning,
    Task,
    build_member,
    convolutions,
    filter_parameters,
    generator,
)
from phalanx.nn.size import size_of
from phalanx.randomness import seeded
from phalanx_admm.compaction import compact_filters


@torch.no_grad()
def shaken(network: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A network in evaluation mode whose batch normalisations do something.

    Args:
        network: changed in place.
        x: images whose statistics they take; absent: random ones.
    """
    draw = generator(0, "shaken")
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5, generator=draw)
            part.running_var.uniform_(0.5, 1.5, generator=draw)
            part.momentum = 0.1 if x is None else 1.0
            if part.affine:
                part.weight.uniform_(1.0, 2.0, generator=draw)
                part.bias.uniform_(-0.5, 0.5, generator=draw)
    if x is not None:
        with seeded(0, "shaken"):
            network.train()(x)
    return network.eval()


def made(name: str, shape: tuple[int, int, int], **params: object) -> nn.Module:
    with seeded(0, "build"):
        network: nn.Module = timm.create_model(name, num_classes=10, in_chans=shape[0], **params)
    return shaken(network, images(*shape, count=16))


@torch.no_grad()
def silence(network: nn.Module, x: Tensor, keep: float) -> nn.Module:
    """Filter pruning as a pruner leaves it: the first filters of each convolution stay."""
    besides = filter_parameters(network, x[:1])
    for layer in convolutions(network).values():
        kept = max(1, round(keep * len(layer.weight)))
        for tensor in (layer.weight, *besides.get(layer, ())):
            tensor[kept:] = 0.0
    return network


def images(*shape: int, count: int = 4) -> Tensor:
    return torch.rand(count, *shape, generator=generator(0, "images"))


@torch.no_grad()
def assert_equal_answers(own: nn.Module, found: nn.Module, x: Tensor) -> None:
    """To 1e-5 of the largest score, on networks that tell the images apart; in training too."""
    expected = own(x)
    largest = float(expected.abs().max())
    assert float((found(x) - expected).abs().max()) <= 1e-5 * largest
    assert float(expected.std(0).max()) > 1e-3 * largest
    # batch statistics of few values magnify rounding
    own, found = (copy.deepcopy(one).double().train() for one in (own, found))
    with seeded(0, "answer"):
        expected = own(x.double())
    with seeded(0, "answer"):
        answered = found(x.double())
    assert float((answered - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_an_equal_copy_where_nothing_is_silent() -> None:
    network = made("resnet20_cifar", (3, 16, 16), width=4)
    found = compact_filters(network)
    assert found is not network
    assert all(
        torch.equal(value, found.state_dict()[name]) for name, value in network.state_dict().items()
    )
    pointers = {p.data_ptr() for p in network.parameters()}
    assert pointers.isdisjoint(p.data_ptr() for p in found.parameters())


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
        nn.init.zeros_(self.chain[0].weight)
        nn.init.zeros_(self.chain[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x) if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_named_and_stays() -> None:
    told = (
        r"compact: the network: Undecided cannot be traced \(TraceError: symbolically traced "
        r"variables cannot be used as inputs to control flow\); it is left as it is"
    )
    network = Undecided()
    with pytest.warns(PhalanxWarning, match=told) as caught:
        found = compact_filters(network)
    assert caught[0].filename == __file__
    assert torch.equal(found.chain[0].weight, network.chain[0].weight)


# ---------------------------------------------------------------- heads, tangles


def test_a_flattened_map_has_several_places_of_a_channel() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))
    with torch.no_grad():
        network[0].weight[1] = 0.0
        network[0].bias[1] = 0.0
    found = compact_filters(network)
    assert found[3].in_features == 27
    assert torch.equal(found[3].weight, network[3].weight.view(3, 4, 9)[:, [0, 2, 3]].flatten(1))
    assert_equal_answers(network, found, images(2, 5, 5))


class Last(nn.Module):
    """Linear layers on channels that stand last, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.permute(0, 2, 3, 1)))).flatten(1)


def test_linear_layers_on_channels_that_stand_last() -> None:
    network = Last()
    with torch.no_grad():
        network.up.weight[3] = 0.0
        network.up.bias[3] = 0.0
    found = compact_filters(network)
    assert found.down.in_features == 4
    assert_equal_answers(network, found, images(2, 5, 5))


class Tangle(nn.Module):
    """Random layers of four channels whose outputs are added, gated, joined or handed on."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 1, bias=index % 2 == 0),
                nn.BatchNorm2d(4) if index % 3 else nn.Identity(),
                nn.ReLU(inplace=index % 2 == 1),
            )
            for index in range(len(steps))
        )
        self.fold = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, step in zip(self.layers, self.steps, strict=True):
            y = layer(x)
            if step == "add":
                y = x + y
            elif step == "add in place":
                y += x
            elif step == "gate":
                y = x * y.sigmoid()
            elif step == "join":
                y = torch.cat([x, y], 1)
                x = torch.tanh(y[:, 2:6])
                continue
            x = y
        return self.head(x.mean((2, 3)))


@settings(deadline=None, max_examples=25)
@given(
    steps=st.lists(
        st.sampled_from(["pass", "add", "add in place", "gate", "join"]), min_size=2, max_size=6
    ),
    seed=st.integers(0, 2**20),
)
def test_answers_are_equal_whatever_is_zero(steps: list[str], seed: int) -> None:
    draw = generator(seed, "tangle")
    with seeded(seed, "tangle"):
        network = shaken(Tangle(steps))
    with torch.no_grad():
        for layer in network.layers:
            silent = torch.rand(4, generator=draw) < 0.6
            for tensor in layer.parameters():
                tensor[silent & (torch.rand((), generator=draw) < 0.9)] = 0.0
    found, x = compact_filters(network), images(4, 5, 5)
    assert size_of(found).parameters <= size_of(network).parameters
    with torch.no_grad():
        assert torch.allclose(found(x), network(x), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- whole networks

OURS = (
    ("small_cnn", {"width": 8}, (1, 8, 8)),
    ("lenet5", {}, (1, 28, 28)),
    ("mnist_cnn", {"width": 8}, (1, 28, 28)),
    ("resnet20_cifar", {"width": 8}, (3, 16, 16)),
    ("resnet20_cifar", {"width": 8, "shortcut": "conv-bn"}, (3, 16, 16)),
    ("resnet18_cifar", {"width": 8}, (3, 16, 16)),
    ("resnet50_cifar", {"width": 8}, (3, 16, 16)),
    ("vgg16_bn_cifar", {"width": 8}, (3, 32, 32)),
)
TIMM = (
    ("resnet18", {}, (3, 32, 32)),
    ("mobilenetv2_050", {}, (3, 32, 32)),
    ("mobilenetv3_small_050", {}, (3, 32, 32)),
    ("regnetx_002", {}, (3, 32, 32)),
)


@pytest.mark.parametrize(("name", "params", "shape"), [*OURS, *TIMM])
def test_pruned_networks_answer_equally_and_are_smaller(
    name: str, params: dict[str, object], shape: tuple[int, int, int]
) -> None:
    x = images(*shape)
    network = silence(made(name, shape, **params), x, keep=0.75)
    found = compact_filters(network)
    assert_equal_answers(network, found, x)
    assert size_of(found).parameters < 0.9 * size_of(network).parameters


def test_a_network_with_control_flow_on_sizes_stays() -> None:
    """timm's VGG asks for the size of its maps."""
    network = VGG(cfg=[8, "M", 16, "M"], num_classes=2)
    with pytest.warns(PhalanxWarning, match=r"compact: the network: VGG cannot be traced"):
        found = compact_filters(network)
    assert size_of(found) == size_of(network)


@torch.no_grad()
def test_transformers_lose_silent_units_of_their_mlps_alone() -> None:
    shape = (3, 32, 32)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    network, x = made("vit_tiny_patch16_224", shape, **sizes), images(*shape)
    assert size_of(compact_filters(network)) == size_of(network)
    for part in network.modules():
        if isinstance(part, nn.Linear):
            part.weight[::2] = 0.0
            part.bias[::2] = 0.0
    found = compact_filters(network)
    assert size_of(network).parameters - size_of(found).parameters == 2 * 96 * (48 + 1 + 48)
    assert torch.allclose(found(x), network(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_worked_resnet18() -> None:
    """Quarter filters inside blocks, streams as they are: in closed form."""
    network = made("resnet18_cifar", (3, 16, 16), width=8)
    expected = size_of(network).parameters
    for stage, planes in zip((1, 2, 3, 4), (8, 16, 32, 64), strict=True):
        for index, block in enumerate(getattr(network, f"layer{stage}")):
            gone = planes - planes // 4
            for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
                tensor[planes // 4 :] = 0.0
            planes_in = planes // 2 if stage > 1 and index == 0 else planes
            expected -= gone * (9 * planes_in + 9 * planes + 2)
    assert size_of(compact_filters(network)).parameters == expected


# ---------------------------------------------------------------- members

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=9, mean=(0.5,), std=(0.25,))


class Two(nn.Module):
    """Two members, whose features somebody reads."""

    def __init__(self) -> None:
        super().__init__()
        backbone = Backbone(use="small_cnn", params={"width": 8})
        with seeded(0, "two"):
            self.members = nn.ModuleList(build_member(backbone, TASK) for _ in range(2))
        self.reader = nn.Linear(512, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat([member.features(x) for member in self.members], 1))


def test_members_keep_their_features() -> None:
    network, x = Two().eval(), images(1, 8, 8)
    for member in network.members:
        silence(member, x, keep=0.5)
    found = compact_filters(network)
    for member, own in zip(found.members, network.members, strict=True):
        assert isinstance(member, Member)
        assert member.backbone.conv1.out_channels == 4
        assert member.backbone.conv2.weight.shape == (16, 4, 3, 3)
        assert member.features(x).shape == own.features(x).shape
        assert_equal_answers(own, member, x)
    assert_equal_answers(network, found, x)


def test_members_that_share_a_layer_keep_it() -> None:
    network, x = Two().eval(), images(1, 8, 8)
    first, second = network.members
    second.backbone.conv1 = first.backbone.conv1
    silence(first, x, keep=0.5)
    found = compact_filters(network)
    assert found.members[0].backbone.conv1.out_channels == 8
    assert found.members[0].backbone.conv1 is found.members[1].backbone.conv1
    assert_equal_answers(network, found, x)


def test_nothing_is_said_of_what_can_be_traced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact_filters(Two())


class Mixing(DefendedModel):
    """The first layer of one network before the rest of another, drawn afresh."""

    stochastic = True

    def __init__(self) -> None:
        super().__init__()
        self.both = Two()
        self.task = TASK

    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        first, second = torch.randint(2, (2,), generator=generator).tolist()
        own, other = (self.both.members[index].backbone for index in (first, second))
        return other.fc(other.pool(F.relu(other.conv2(F.relu(own.conv1(x))))))


@pytest.mark.parametrize("same", [True, False])
@torch.no_grad()
def test_a_model_that_mixes_layers_stays_unless_they_fit(same: bool) -> None:
    model, x = Mixing().eval(), images(1, 8, 8)
    for index, member in enumerate(model.both.members):
        pruned = slice(0, 4) if same or index == 0 else slice(4, 8)
        member.backbone.conv1.weight[pruned] = 0.0
        member.backbone.conv1.bias[pruned] = 0.0
    if same:
        found = compact_filters(model)
        assert size_of(found).parameters < size_of(model).parameters
    else:
        told = (
            r"compact: Mixing answers otherwise without its silent channels, as if it puts layers "
            r"of several networks together; it is left as it is"
        )
        with pytest.warns(PhalanxWarning, match=told) as caught:
            found = compact_filters(model)
        assert caught[0].filename == __file__
        assert size_of(found) == size_of(model)
    assert torch.allclose(found.serve(3)(x), model.serve(3)(x), atol=1e-6)


@torch.no_grad()
def test_a_model_that_knows_its_task_is_compacted_in_its_mode() -> None:
    backbone = Backbone(use="small_cnn")
    with seeded(0, "build"):
        model = MeanEnsemble([build_member(backbone, TASK) for _ in range(2)]).train()
    model.task = TASK
    silence(model, images(1, 8, 8), keep=0.25)
    found = compact_filters(model)
    assert all(part.training for part in found.modules())
    assert all(p.requires_grad for p in found.parameters())
    assert [one.backbone.conv2.in_channels for one in found.members] == [8, 8]
    assert torch.allclose(found(images(1, 8, 8)), model(images(1, 8, 8)), atol=1e-6)
