"""Which layers there are, and what is read of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from phalanx.api import Backbone, ConfigError, Member, Task, build_member, generator
from phalanx.randomness import seeded
from phalanx_dverge.layers import check_layers, feature_layers, read


def task(size: int, channels: int = 3) -> Task:
    return Task(
        name="toy",
        shape=(channels, size, size),
        classes=10,
        train_size=9,
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
    )


def member(name: str, size: int = 32, channels: int = 3, **params: object) -> Member:
    with seeded(0, "build"):
        backbone = Backbone(use=name, params=params)
        return build_member(backbone, task(size, channels)).eval()


def images(n: int = 2, size: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(0, "images"))


def test_resnet20_has_the_papers_twenty_layers() -> None:
    one = member("resnet20_cifar", shortcut="conv-bn")
    layers = feature_layers(one)
    assert layers[:3] == ("bn1", "layer1.0.bn1", "layer1.0.bn2+layer1.0.shortcut")
    assert layers[-1] == "linear"
    shapes = [tuple(read(one, layer, images()).shape[1:]) for layer in layers]
    stages = [(16, 32, 32)] * 7 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
    assert shapes == [*stages, (10,)]


@pytest.mark.parametrize(
    ("name", "size", "channels", "count", "first"),
    [
        ("resnet18_cifar", 16, 3, 18, "bn1"),
        ("resnet50_cifar", 16, 3, 50, "bn1"),
        ("vgg16_bn_cifar", 32, 3, 14, "features.1"),
        ("small_cnn", 8, 1, 3, "conv1"),
        ("lenet5", 28, 1, 4, "conv1"),
        ("mnist_cnn", 28, 1, 4, "conv1"),
    ],
)
def test_every_core_backbone_has_layers_that_can_be_read(
    name: str, size: int, channels: int, count: int, first: str
) -> None:
    width = {"width": 4} if name != "mnist_cnn" else {}
    one = member(name, size, channels, **width)
    layers = feature_layers(one)
    assert (len(layers), layers[0]) == (count, first)
    assert not any("downsample.1" in layer.split("+")[0] for layer in layers)
    check_layers(one, layers, task(size, channels))


@pytest.mark.parametrize("block", ["layer1.1", "layer2.0"])
@pytest.mark.parametrize(
    ("name", "way"), [("resnet20_cifar", "shortcut"), ("resnet18_cifar", "downsample")]
)
def test_a_sum_is_the_block_before_its_activation(name: str, way: str, block: str) -> None:
    one, x = member(name, 16, width=8), images(size=16)
    before = read(one, f"{block}.bn2+{block}.{way}", x)
    assert bool((before < 0).any())
    torch.testing.assert_close(before.relu(), read(one, block, x))


def test_the_last_layer_is_the_logits() -> None:
    one, x = member("resnet20_cifar", 16), images(size=16)
    assert torch.equal(read(one, feature_layers(one)[-1], x), one(x))


def test_reading_keeps_the_graph_and_removes_its_hooks() -> None:
    one, x = member("small_cnn", 8, 1), images(size=8, channels=1).requires_grad_()
    features = read(one, "conv2", x)
    (gradient,) = torch.autograd.grad(features.sum(), x)
    assert bool((gradient != 0).any())
    assert not any(part._forward_hooks for part in one.modules())


def test_an_unknown_layer_is_named() -> None:
    one = member("small_cnn", 8, 1)
    with pytest.raises(ValueError, match=r"Member has no layer 'conv3'; did you mean conv"):
        check_layers(one, ["conv1", "conv3"], task(8, 1))


class Overwriting(nn.Module):
    """As timm's networks: activations in place."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_a_layer_that_is_overwritten_is_read_as_it_was() -> None:
    one = Member(Overwriting(), nn.Identity()).eval()
    assert feature_layers(one) == ("bn", "fc")
    check_layers(one, feature_layers(one), task(8, 1))
    x = images(2, 8, 1)
    expected = one.backbone.bn(one.backbone.conv(x))
    assert bool((expected < 0).any())
    assert torch.equal(read(one, "bn", x), expected)


class Pairs(nn.Module):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    network = Overwriting()
    network.pairs = Pairs()
    one = Member(network, nn.Identity())
    forward = network.forward_features
    network.forward_features = lambda x: network.pairs(forward(x))[0]  # type: ignore[method-assign]
    message = (
        r"defense.params.layers: 'pairs' gives no tensor; name layers that give one, such as "
        r"convolutions, or take another backbone"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        check_layers(one, ["conv", "pairs"], task(8, 1))
    assert caught.value.exit_code == 2


def test_checking_leaves_the_member_as_it_was() -> None:
    one = member("resnet20_cifar", 16).train()
    one.backbone.layer1.eval()
    modes = [part.training for part in one.modules()]
    state = {name: value.clone() for name, value in one.state_dict().items()}
    check_layers(one, feature_layers(one), task(16))
    assert modes == [part.training for part in one.modules()]
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
