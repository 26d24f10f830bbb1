"""What belongs to a layer's output, seen in one pass; `phalanx_rls` asks it of more backbones."""

import pytest
import torch
from torch import nn

from phalanx.config import Backbone
from phalanx.nn import MeanEnsemble, build_member
from phalanx.nn.units import filter_parameters, unit_leaders
from phalanx.randomness import seeded
from phalanx.specs import Task

TASK = Task(name="t", shape=(1, 8, 8), classes=10, train_size=90, mean=(0.5,), std=(0.5,))
IMAGE = torch.rand(1, 1, 8, 8)


def member(name, **params):
    with seeded(0):
        return build_member(Backbone(use=name, params=params), TASK)


def named(network, found):
    names = {part: name for name, part in network.named_modules()}
    owners = {id(p): name for name, p in network.named_parameters()}
    return {names[layer]: [owners[id(p)] for p in own] for layer, own in found.items() if own}


def test_every_convolution_of_a_residual_network_has_its_scale_and_shift():
    network = member("resnet18_cifar", width=2)
    found = named(network, filter_parameters(network, IMAGE))
    block = "backbone.layer2.0"
    assert found[f"{block}.conv2"] == [f"{block}.bn2.weight", f"{block}.bn2.bias"]
    assert found[f"{block}.downsample.0"] == [
        f"{block}.downsample.1.weight",
        f"{block}.downsample.1.bias",
    ]
    assert found.pop("backbone.fc") == ["backbone.fc.bias"]
    assert len(found) == sum(isinstance(part, nn.Conv2d) for part in network.modules()) == 20


def test_a_bias_belongs_to_its_own_layer():
    found = named(network := member("small_cnn", width=2), filter_parameters(network, IMAGE))
    assert found == {f"backbone.{n}": [f"backbone.{n}.bias"] for n in ("conv1", "conv2", "fc")}


def test_each_member_is_asked_though_one_draw_shows_one():
    class One(MeanEnsemble):
        def draw(self, x, generator):
            return self.members[0](x)

    with seeded(0):
        model = One([build_member(Backbone(use="small_cnn"), TASK) for _ in range(2)])
    found = named(model, filter_parameters(model, IMAGE))
    assert len(found) == 6
    assert found["networks.1.backbone.conv1"] == ["networks.1.backbone.conv1.bias"]


class Between(nn.Module):
    """A convolution, something done to its output in place, a normalisation."""

    def __init__(self, change):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.change = change

    def forward(self, x):
        return self.norm(self.change(self.conv(x)))


@pytest.mark.parametrize(
    ("change", "leader"),
    [
        (lambda maps: maps, "conv"),
        (lambda maps: maps.add_(1.0), "norm"),  # the same tensor, and another output
        (lambda maps: maps + 1.0, "norm"),
    ],
)
def test_only_what_takes_the_output_as_it_is(change, leader):
    assert unit_leaders(Between(change), IMAGE) == {"conv": "conv", "norm": leader}


def test_of_a_part_that_takes_no_images_the_biases_are_known():
    part = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "norm": nn.BatchNorm2d(2)})
    found = filter_parameters(part, IMAGE)
    assert found[part["conv"]] == [part["conv"].bias]
    assert not any(module._forward_hooks for module in part.modules())


class Fed(nn.Module):
    """A normalisation, and what comes before it."""

    def __init__(self, way):
        super().__init__()
        self.one = nn.Conv2d(1, 2, 3, padding=1)
        self.two = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.group = nn.GroupNorm(1, 2)
        self.norm = nn.BatchNorm2d(2)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


@pytest.mark.parametrize(
    ("way", "accepted"),
    [
        (lambda net, x: net.norm(net.one(x)), True),
        (lambda net, x: net.norm(net.one(x)) + net.norm(net.one(2 * x)), True),
        (lambda net, x: net.norm(net.group(net.one(x))), False),
        (lambda net, x: net.norm(net.one(x)) + net.norm(net.two(x)), False),
        (lambda net, x: net.norm(net.one(x)) + net.norm(net.one(x) * 2), False),
        (lambda net, x: net.norm(net.norm(net.one(x))), False),
        (lambda net, x: net.norm(torch.relu(net.one(x))), False),
    ],
    ids=["one", "twice", "group", "two", "scaled too", "itself", "relu"],
)
def test_a_normalisation_belongs_to_the_one_layer_that_feeds_it_directly(way, accepted):
    found = named(network := Fed(way), filter_parameters(network, IMAGE))
    assert found == {"one": ["one.bias", *(["norm.weight", "norm.bias"] if accepted else [])]}


def test_a_normalisation_that_members_share_belongs_to_none_of_their_layers():
    one, two = (member("resnet18_cifar", width=2) for _ in range(2))
    two.backbone.bn1 = one.backbone.bn1
    found = filter_parameters(MeanEnsemble([one, two]), IMAGE)
    assert found[one.backbone.conv1] == found[two.backbone.conv1] == []
    assert len(found[one.backbone.layer1[0].conv1]) == 2


def test_layers_beside_the_members_have_their_biases():
    class Besides(MeanEnsemble):
        def __init__(self, members):
            super().__init__(members)
            self.mix = nn.Conv2d(1, 2, 1)
            self.bare = nn.Linear(2, 2, bias=False)

    model = Besides([member("small_cnn", width=2)])
    found = filter_parameters(model, IMAGE)
    assert found[model.mix] == [model.mix.bias]
    assert found[model.bare] == []
    assert found[model.members[0].backbone.conv1] == [model.members[0].backbone.conv1.bias]


def test_a_member_that_fails_says_so():
    network = member("small_cnn", width=2)
    network.backbone.conv2 = nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError, match="channels"):
        filter_parameters(MeanEnsemble([network]), IMAGE)
    assert not any(part._forward_hooks for part in network.modules())


def test_the_network_is_left_as_it_was():
    network = member("resnet18_cifar", width=2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    filter_parameters(network, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
