"""Units of real backbones, and that an assembled network computes with the chosen layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from phalanx.api import Backbone, ConfigError, Task, attacking, build_member
from phalanx_rls.units import (
    alike_units,
    assemble,
    check_alike,
    check_assembly,
    find_units,
)


def task(*shape):
    half = (0.5,) * shape[0]
    return Task(name="t", shape=shape, classes=10, train_size=90, mean=half, std=half)


def members(name, shape, count=2, **params):
    backbone = Backbone(use=name, params=params)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [build_member(backbone, task(*shape)) for _ in range(count)]


def counted(network, *kinds):
    return sum(isinstance(part, kinds) for part in network.modules())


@pytest.mark.parametrize(
    ("name", "shape", "params", "count"),
    [
        ("small_cnn", (1, 8, 8), {}, 3),
        ("resnet18_cifar", (1, 8, 8), {"width": 4}, 21),  # 20 convolutions and the head
        ("resnet50_cifar", (3, 8, 8), {"width": 2}, 54),  # the paper's: 53 and the head
        ("vgg16_bn_cifar", (3, 8, 8), {"width": 2}, 14),
    ],
)
def test_units_of_the_papers_networks(name, shape, params, count):
    (network,) = members(name, shape, count=1, **params)
    units = find_units(network, shape)
    assert len(units) == count == counted(network, nn.Conv2d, nn.Linear)
    inside = [layer for unit in units for layer in unit]
    assert len(inside) == len(set(inside))
    covered = {f"{layer}." for layer in inside}
    assert all(f"{key.rpartition('.')[0]}." in covered for key in network.state_dict())
    norms = [layer for unit in units for layer in unit[1:]]
    assert len(norms) == counted(network, nn.BatchNorm2d)
    for unit in units:
        layers = [network.get_submodule(layer) for layer in unit]
        assert isinstance(layers[0], nn.Conv2d | nn.Linear)
        assert all(norm.num_features == layers[0].out_channels for norm in layers[1:])


def test_the_shortcut_is_a_unit_of_its_own():
    (network,) = members("resnet18_cifar", (1, 8, 8), count=1, width=4)
    units = find_units(network, (1, 8, 8))
    block = "backbone.layer2.0"
    assert (f"{block}.conv2", f"{block}.bn2") in units
    assert (f"{block}.downsample.0", f"{block}.downsample.1") in units
    assert units[-1] == ("backbone.fc",)


def test_timms_normalisation_with_activation_goes_with_its_convolution():
    (network,) = members("mobilenetv3_small_050", (3, 32, 32), count=1)
    units = find_units(network, (3, 32, 32))
    assert units[0] == ("backbone.conv_stem", "backbone.bn1")
    assert len(units) == counted(network, nn.Conv2d, nn.Linear)


def test_embeddings_of_the_root_are_a_unit():
    (network,) = members("vit_tiny_patch16_224", (3, 32, 32), count=1, depth=2)
    units = find_units(network, (3, 32, 32))
    assert ("backbone",) in units
    assert ("backbone.blocks.1.norm1",) in units


def test_finding_units_leaves_the_network_as_it_was():
    (network,) = members("resnet18_cifar", (1, 8, 8), count=1, width=4)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    find_units(network, (1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "shape", "params"),
    [
        ("resnet18_cifar", (1, 8, 8), {"width": 4}),
        ("mobilenetv3_small_050", (3, 32, 32), {}),  # timm's BatchNormAct2d, squeeze-excite
        ("vit_tiny_patch16_224", (3, 32, 32), {"depth": 2}),  # embeddings of the root itself
    ],
)
def test_an_assembled_network_has_the_chosen_tensors_and_computes_with_them(name, shape, params):
    networks = members(name, shape, **params)
    units = find_units(networks[0], shape)
    check_assembly(networks, units, shape)  # scores and features against functional_call
    choice = tuple(int(i % 3 == 0) for i in range(len(units)))
    sampled = assemble(networks, units, choice)
    assert type(sampled) is type(networks[0])
    own = [dict(network.named_parameters()) for network in networks]
    for unit, m in zip(units, choice, strict=True):
        for layer in unit:
            part = sampled.get_submodule(layer)
            for leaf, value in part.named_parameters(recurse=False):
                assert value is own[m][f"{layer}.{leaf}"]
    assert len(list(sampled.parameters())) == len(own[0])


def test_one_submodel_throughout_is_that_submodel():
    networks = members("resnet18_cifar", (1, 8, 8), count=3, width=4)
    units = find_units(networks[0], (1, 8, 8))
    x = torch.rand(4, 1, 8, 8)
    for m, network in enumerate(networks):
        sampled = assemble(networks, units, (m,) * len(units))
        with attacking(network), attacking(sampled):
            assert torch.equal(sampled(x), network(x))


def test_statistics_move_in_the_chosen_layer_alone():
    networks = members("resnet18_cifar", (1, 8, 8), width=4)
    units = find_units(networks[0], (1, 8, 8))
    sampled = assemble(networks, units, (1, *(0 for _ in units[1:])))
    sampled(torch.rand(8, 1, 8, 8))
    counts = [network.backbone.bn1.num_batches_tracked.item() for network in networks]
    assert counts == [0, 1]
    counts = [network.backbone.layer1[0].bn1.num_batches_tracked.item() for network in networks]
    assert counts == [1, 0]


def test_unlike_networks_are_refused():
    networks = [members("small_cnn", (1, 8, 8), count=1, width=width)[0] for width in (8, 16)]
    with pytest.raises(ConfigError) as caught:
        check_alike(networks)
    assert caught.value.problems == (
        "members: sub-models 1 and 2 differ in 5 tensors (backbone.conv1.weight: (8, 1, 3, 3) and "
        "(16, 1, 3, 3), backbone.conv1.bias: (8,) and (16,), backbone.conv2.weight: (16, 8, 3, 3) "
        "and (32, 16, 3, 3), …), and layers are drawn by name: give sub-models of one "
        "architecture with the same keywords",
    )


class Aside(nn.Module):
    """Keeps its body where no list of submodules shows it, beside the one that is shown."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)
        self.aside = (self.body,)

    def features(self, x):
        return self.aside[0](x.flatten(1))

    def head(self, f):
        return self.fc(f)

    def forward(self, x):
        return self.head(self.features(x))


def test_a_network_with_layers_elsewhere_is_refused():
    networks = [Aside() for _ in range(2)]
    units = (("fc",), ("body",))
    with pytest.raises(ConfigError, match="assembled from layers of several Aside does not comp"):
        check_assembly(networks, units, (1, 2, 2))
    check_assembly(networks, tuple(reversed(units)), (1, 2, 2))  # body from the first: no harm


def test_tied_weights_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[3].weight = network[1].weight
    with pytest.raises(ConfigError, match="two layers of Sequential share a weight"):
        find_units(network, (1, 2, 2))


def test_alike_units():
    networks = members("small_cnn", (1, 8, 8))
    units = find_units(networks[0], (1, 8, 8))
    assert alike_units(networks, units) == []
    networks[1].backbone.conv2.load_state_dict(networks[0].backbone.conv2.state_dict())
    assert alike_units(networks, units) == ["backbone.conv2"]
