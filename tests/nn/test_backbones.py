import importlib
import pickle
import warnings

import pytest
import timm
import torch

import phalanx.nn.backbones as families
from phalanx.errors import InputError
from phalanx.nn.backbones.resnet20_cifar import PadShortcut

# name -> (images it takes, width at test, features at that width, weights at the default width)
OURS = {
    "small_cnn": ((1, 8, 8), 8, 256, 29_066),
    "mnist_cnn": ((1, 28, 28), 8, 200, 648_226),
    "lenet5": ((1, 28, 28), 12, 240, 51_902),
    "resnet20_cifar": ((3, 32, 32), 8, 32, 269_722),
    "resnet18_cifar": ((3, 32, 32), 8, 64, 11_173_962),
    "resnet34_cifar": ((3, 32, 32), 8, 64, 21_282_122),
    "resnet50_cifar": ((3, 32, 32), 8, 256, 23_520_842),
    "vgg16_bn_cifar": ((3, 32, 32), 8, 64, 14_728_266),
}


def images(shape, count=2):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OURS)
def test_number_of_weights(name):
    """Those of the ResNets and VGG are what the papers' public codes have."""
    shape, _, _, weights = OURS[name]
    network = timm.create_model(name, num_classes=10, in_chans=shape[0])
    assert sum(p.numel() for p in network.parameters()) == weights


@pytest.mark.parametrize("name", OURS)
def test_timm_interface(name):
    shape, width, features, _ = OURS[name]
    network = timm.create_model(name, num_classes=7, in_chans=shape[0], width=width).eval()
    x = images(shape)
    maps = network.forward_features(x)
    pooled = network.forward_head(maps, pre_logits=True)
    assert pooled.shape == (2, features)
    assert network.num_features == features
    assert network.num_classes == 7
    torch.testing.assert_close(network.get_classifier()(pooled), network(x))
    network.reset_classifier(3)
    assert network(x).shape == (2, 3)
    network.reset_classifier(0)
    torch.testing.assert_close(network(x), pooled)


@pytest.mark.parametrize("name", OURS)
def test_channels_are_a_parameter(name):
    shape, width, _, _ = OURS[name]
    network = timm.create_model(name, num_classes=10, in_chans=2, width=width).eval()
    assert network(images((2, *shape[1:]))).shape == (2, 10)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (17, 40)])
@pytest.mark.parametrize("name", sorted(set(OURS) - {"mnist_cnn", "lenet5"}))
def test_any_size(name, size):
    network = timm.create_model(name, num_classes=10, in_chans=1, width=4).eval()
    assert network(images((1, *size))).shape == (2, 10)


@pytest.mark.parametrize("name", ["mnist_cnn", "lenet5"])
def test_one_size(name):
    network = timm.create_model(name, num_classes=10)
    with pytest.raises(InputError) as error:
        network(images((1, 8, 8)))
    assert str(error.value) == (
        f"{name} takes images of 28x28, found 8x8; small_cnn takes any size"
    )


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_gradients(name):
    """As DEG and GAL need them; an in-place operation would raise here."""
    shape, width, _, _ = OURS[name]
    network = timm.create_model(name, num_classes=10, in_chans=shape[0], width=width)
    x = images(shape, count=4).requires_grad_()
    (slope,) = torch.autograd.grad(network(x).logsumexp(1).sum(), x, create_graph=True)
    slope.square().sum().backward()
    first = next(network.parameters())
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OURS)
def test_seed_and_pickle(name):
    shape, width, _, _ = OURS[name]

    def build():
        torch.manual_seed(3)
        return timm.create_model(name, num_classes=10, in_chans=shape[0], width=width).eval()

    with torch.random.fork_rng():
        network = build()
        again = build()
    copy = pickle.loads(pickle.dumps(network))
    x = images(shape)
    assert torch.equal(network(x), again(x))
    assert torch.equal(network(x), copy(x))


def test_pad_shortcut_by_a_loop():
    x = images((2, 5, 4))
    out = PadShortcut(2, 3)(x)
    expected = torch.zeros(2, 5, 3, 2)
    for row in range(3):
        for column in range(2):
            expected[:, 1:3, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("shortcut", "extra"),
    [
        ("pad", 0),
        ("conv", 16 * 32 + 32 * 64),
        ("conv-bn", 16 * 32 + 32 * 64 + 2 * (32 + 64)),
    ],
)
def test_shortcuts_of_resnet20(shortcut, extra):
    network = timm.create_model("resnet20_cifar", num_classes=10, shortcut=shortcut)
    assert sum(p.numel() for p in network.parameters()) == 269_722 + extra


def test_unknown_shortcut():
    with pytest.raises(InputError) as error:
        timm.create_model("resnet20_cifar", shortcut="id")
    assert str(error.value) == "shortcut is one of pad, conv, conv-bn; found 'id'"


def test_no_pretrained_weights():
    with pytest.raises(InputError) as error:
        timm.create_model("resnet18_cifar", pretrained=True)
    assert str(error.value) == (
        "resnet18_cifar has no pretrained weights; leave pretrained=True out"
    )


def test_unknown_keyword():
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        timm.create_model("resnet18_cifar", widht=16)


def test_second_import_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(families.small_cnn)
    assert timm.create_model("small_cnn", num_classes=3)(images((1, 8, 8))).shape == (2, 3)


def test_taking_a_foreign_name_is_told():
    from phalanx.nn.backbones.base import backbone

    def small_cnn(**params):
        raise NotImplementedError

    try:
        with pytest.warns(UserWarning, match="Overwriting small_cnn"):
            backbone(small_cnn)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.reload(families.small_cnn)
