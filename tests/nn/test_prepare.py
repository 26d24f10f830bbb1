from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from phalanx.data import load_data
from phalanx.defense import Stream
from phalanx.nn import MeanEnsemble, Member, Normalize, Population
from phalanx.nn.prepare import GRADIENTS, SCORES, Prepared, prepared


def trained(module: nn.Module) -> nn.Module:
    """Evaluation mode, with normalisations that are far from the identity."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, 0, 0.2, generator=generator)
    return module.eval().requires_grad_(False)


def member(name: str, channels: int = 3, **params: object) -> Member:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, in_chans=channels, **params)
    return Member(network, Normalize([0.4] * channels, [0.25] * channels))


def answers(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and the gradient of their cross-entropy."""
    x = x.clone().requires_grad_()
    scores = module(x)
    loss = nn.functional.cross_entropy(scores, torch.arange(len(x)) % 10, reduction="sum")
    return scores.detach(), torch.autograd.grad(loss, x)[0]


def assert_same_function(own: nn.Module, found: nn.Module, x: Tensor) -> None:
    (scores, slope), (others, slopes) = answers(own, x), answers(found, x)
    assert (others - scores).abs().max() <= SCORES * scores.abs().max()
    assert (slopes - slope).norm() <= GRADIENTS * slope.norm()


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def layers(*names: str) -> nn.Sequential:
    """A small network of convolutions (c), normalisations (b) and ReLUs (r)."""
    made = {
        "c": lambda: nn.Conv2d(3, 3, 3, padding=1),
        "b": lambda: nn.BatchNorm2d(3),
        "r": nn.ReLU,
    }
    torch.manual_seed(0)
    parts = [made[name]() for name in names]
    return trained(nn.Sequential(*parts, nn.Flatten(), nn.Linear(192, 10)))


IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "params", "shape", "folded"),
    [
        ("resnet20_cifar", {"width": 8}, (3, 32, 32), 19),
        ("resnet20_cifar", {"width": 8, "shortcut": "conv-bn"}, (3, 32, 32), 21),
        ("resnet18_cifar", {"width": 8}, (3, 32, 32), 20),
        ("vgg16_bn_cifar", {"width": 8}, (3, 32, 32), 13),
        ("mnist_cnn", {"width": 8}, (1, 28, 28), 0),
        ("small_cnn", {"width": 8}, (1, 8, 8), 0),
        ("resnet18", {}, (3, 64, 64), 20),
        ("mobilenetv3_small_050", {}, (3, 64, 64), 34),  # its normalisations hold their activation
    ],
)
def test_a_copy_is_the_same_function_without_its_normalisations(name, params, shape, folded):
    own = trained(member(name, shape[0], **params))
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(1))
    found = prepared(own, x[:8])
    assert isinstance(found, Prepared)
    assert normalisations(own) == folded
    assert normalisations(found) == 0
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not any(part.training for part in found.modules())
    assert_same_function(own, found, x)


def test_convolutions_lie_channels_last_where_that_agrees():
    found = prepared(layers("c", "b", "r", "c"), IMAGES)
    weight = found.module[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert found.layout is torch.channels_last
    assert answers(found, IMAGES)[1].is_contiguous()  # whoever attacks may take a view of it


@pytest.mark.real_data
def test_equal_values_under_a_max_pool_do_not_count(data_root, weights_root):
    own = timm.create_model("mnist_cnn", num_classes=10)
    own.load_state_dict(load_file(weights_root / "mnist_lenet_adversarial.safetensors"))
    page = load_data("mnist", root=data_root).test.fetch(slice(0, 8)).x  # mostly background
    assert isinstance(prepared(own.eval(), page), Prepared)


def test_gradients_of_gradients_go_through_a_copy():
    own = layers("c", "b", "c")

    def bend(module: nn.Module) -> Tensor:
        x = IMAGES.clone().requires_grad_()
        scores = module(x).exp().sum()
        (slope,) = torch.autograd.grad(scores, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    torch.testing.assert_close(bend(prepared(own, IMAGES)), bend(own), rtol=1e-3, atol=1e-5)


def test_the_network_is_left_as_it_was():
    own = member("resnet18_cifar", width=8).eval()  # its parameters want gradients
    before = copy.deepcopy(own)
    strides = [p.stride() for p in own.parameters()]
    state = torch.get_rng_state()
    found = prepared(own, torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.stride() for p in own.parameters()] == strides
    assert all(p.requires_grad and p.grad is None for p in own.parameters())
    assert repr(own) == repr(before)
    for name, value in before.state_dict().items():
        assert torch.equal(own.state_dict()[name], value), name
    assert not any(part._forward_hooks for part in [*own.modules(), *found.modules()])
    held = {p.data_ptr() for p in own.parameters()}
    assert not held & {p.data_ptr() for p in found.parameters()}


def test_models_of_members():
    members = [trained(member("resnet20_cifar", width=w)) for w in (4, 8)]
    x = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = MeanEnsemble(members).eval()
    functions = [model, model.serve(0)]
    views = Population(members).eval().views()
    functions += [views["expected"].open(3), views["one-draw"].open(3)]
    for function in functions:
        found = prepared(function.eval(), x[:8])
        assert normalisations(found) == 0
        assert_same_function(function, found, x)


class Streaming(nn.Module):
    """Draws from a stream of its own and from the global generator at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers("c", "b", "c")
        self.stream = Stream(5)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=self.stream.next(x.device)) + torch.rand(1)
        return self.body(x + noise)


def test_streams_begin_where_the_networks_stand():
    own = Streaming().eval().requires_grad_(False)
    own(IMAGES)
    found = prepared(own, IMAGES)
    assert own.stream.calls == found.module.stream.calls == 1
    torch.manual_seed(7)
    scores = own(IMAGES)
    torch.manual_seed(7)
    torch.testing.assert_close(found(IMAGES), scores)


class Twice(nn.Module):
    """What a normalisation takes is used beside it too (or changed in place before)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        body = layers("c", "b", "r", "c")
        self.first, self.norm, _, self.second, *_, self.head = body
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        match self.kind:
            case "beside":
                y = self.norm(y) + y
            case "in place":
                y = self.norm(y.mul_(2.0))
            case "two calls":
                y = self.norm(self.first(self.norm(y)))
        return self.head(self.second(y).flatten(1))


@pytest.mark.parametrize("kind", ["beside", "in place", "two calls"])
def test_what_cannot_be_folded_is_not(kind):
    own = Twice(kind).eval().requires_grad_(False)
    found = prepared(own, IMAGES)
    assert normalisations(found) == 1
    assert_same_function(own, found, IMAGES)


def test_layers_under_two_names_are_not_folded():
    own = layers("c", "b", "r", "c", "b")
    own.again = nn.ModuleList([own[0]])  # never called under this name
    tied = layers("c", "b", "r", "c", "b")
    tied[3].weight = tied[0].weight

    class Around(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.extra = nn.Sequential(*list(body)[:7]), body
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    assert normalisations(prepared(Around(own), IMAGES)) == 2
    assert normalisations(prepared(tied, IMAGES)) == 2


def hooked() -> nn.Module:
    own = layers("c", "b", "c")
    own[0].register_forward_hook(lambda *_: None)
    return own


def halted() -> nn.Module:
    own = layers("c", "b", "c")
    own[1].train()
    return own


class Layout(nn.Module):
    """Another function in another memory layout; a copy of it cannot agree."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers("c", "r", "c")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if x.is_contiguous() else x + 0.1)


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = layers("c", "r", "c")
        self.eval()

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("not me")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Labels(nn.Module):
    """Answers without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers("c", "r", "c")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.body(x).argmax(1), 10).float()


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        halted,
        Layout,
        Uncopied,
        Labels,
        lambda: nn.Sequential(
            weight_norm(nn.Conv2d(3, 3, 3)), *layers("c", "c")[:1], nn.Flatten()
        ).eval(),
        lambda: layers("c", "b", "c").double(),
        lambda: layers("c", "b"),
        lambda: torch.compile(layers("c", "b", "c"), backend="eager"),
    ],
    ids=[
        "hook",
        "training",
        "layout",
        "uncopied",
        "labels",
        "weight-norm",
        "float64",
        "one convolution",
        "compiled",
    ],
)
def test_refused(make):
    assert prepared(make(), IMAGES) is None


def test_a_vision_transformer_gains_nothing():
    own = member("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12, num_heads=1)
    assert prepared(own.eval(), torch.rand(2, 3, 32, 32)) is None


def test_images_on_which_nothing_can_be_shown_are_refused():
    own = layers("c", "b", "c")
    assert prepared(own, IMAGES[:0]) is None
    assert prepared(own, IMAGES.double()) is None
    assert prepared(own, torch.full_like(IMAGES, torch.nan)) is None


@pytest.mark.parametrize(("count", "sizes"), [(4, [4]), (9, [5, 4]), (20, [7, 7, 6]), (0, [0])])
def test_large_batches_are_cut_into_even_parts(count, sizes):
    seen = []

    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x.flatten(1)

    x = torch.rand(count, 3, 2, 2)
    assert torch.equal(Prepared(Wide(), torch.contiguous_format, 8)(x), x.flatten(1))
    assert seen == sizes


def test_only_networks_with_few_weights_have_their_batches_cut():
    small = prepared(layers("c", "c"), torch.rand(2, 3, 8, 8))
    assert small.rows == 8 * 2**20 // (3 * 8 * 8 * 4)
    wide = nn.Sequential(*layers("c", "c")[:2], nn.Flatten(), nn.Linear(192, 12_000)).eval()
    assert prepared(wide, IMAGES).rows > 10**6
