import pickle

import pytest
import torch
from torch import nn

from phalanx.config import Backbone
from phalanx.errors import ConfigError
from phalanx.nn import Member, Normalize, build_member
from phalanx.specs import Task


def task(shape=(3, 32, 32), classes=10):
    channels = shape[0]
    return Task(
        name="t",
        shape=shape,
        classes=classes,
        train_size=1,
        mean=tuple(0.3 + 0.1 * c for c in range(channels)),
        std=(0.25,) * channels,
    )


def images(shape=(3, 32, 32), count=3):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


BACKBONES = [
    ("small_cnn", {}, (1, 8, 8)),
    ("mnist_cnn", {}, (1, 28, 28)),
    ("lenet5", {}, (1, 28, 28)),
    ("resnet20_cifar", {}, (3, 32, 32)),
    ("resnet18_cifar", {"width": 8}, (3, 32, 32)),
    ("resnet34_cifar", {"width": 8}, (1, 28, 28)),
    ("resnet50_cifar", {"width": 8}, (3, 32, 32)),
    ("vgg16_bn_cifar", {"width": 8}, (1, 28, 28)),
    ("resnet18", {}, (3, 32, 32)),
    ("mobilenetv3_small_050", {}, (3, 32, 32)),
    ("convnext_atto", {}, (1, 32, 32)),
    ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}, (3, 32, 32)),
]


@pytest.mark.parametrize(("name", "params", "shape"), BACKBONES)
def test_head_of_features_is_the_backbone(name, params, shape):
    member = build_member(Backbone(use=name, params=params), task(shape)).eval()
    x = images(shape)
    features = member.features(x)
    assert features.ndim == 2
    assert member(x).shape == (3, 10)
    torch.testing.assert_close(member.head(features), member(x))
    torch.testing.assert_close(
        member(x), member.backbone(member.normalize(x)), rtol=1e-4, atol=1e-4
    )


def test_normalization():
    torch.manual_seed(0)
    member = build_member(Backbone(use="small_cnn"), task()).eval()
    x = images()
    mean, std = torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1), 0.25
    torch.testing.assert_close(member(x), member.backbone((x - mean) / std))
    bare = build_member(Backbone(use="small_cnn"), task(), normalization="none").eval()
    assert torch.equal(bare(x), bare.backbone(x))


def test_normalization_is_not_stored():
    member = build_member(Backbone(use="small_cnn"), task())
    assert set(member.state_dict()) == {f"backbone.{key}" for key in member.backbone.state_dict()}


def test_input_of_other_types():
    member = build_member(Backbone(use="small_cnn"), task()).eval()
    x = images()
    assert torch.equal(member(x.double()), member(x))
    assert member.double()(x).dtype == torch.float64


def test_the_classifier_is_called_as_a_module():
    """The trainer counts passes by a hook on it."""
    member = build_member(Backbone(use="resnet18_cifar", params={"width": 4}), task())
    calls = []
    member.backbone.get_classifier().register_forward_hook(lambda *args: calls.append(1))
    member(images())
    member.head(member.features(images()))
    assert len(calls) == 2


def test_building_draws_weights_only():
    """The check at the end changes no weight, no mode and no global random state."""

    def after():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            member = build_member(Backbone(use="resnet20_cifar"), task())
            return member, torch.get_rng_state()

    member, state = after()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        import timm

        bare = timm.create_model("resnet20_cifar", num_classes=10, in_chans=3)
        assert torch.equal(torch.get_rng_state(), state)
    own = member.backbone.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in bare.state_dict().items())
    assert all(part.training for part in member.modules())
    assert all(p.requires_grad and p.grad is None for p in member.parameters())


def test_pickle():
    member = build_member(Backbone(use="small_cnn"), task()).eval()
    assert torch.equal(pickle.loads(pickle.dumps(member))(images()), member(images()))


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("levit_128s", (3, 32, 32), "it has several classifiers"),
        ("volo_d1_224", (3, 64, 64), r"head\(features\(x\)\) is 0\.\d+ away from its own scores"),
        ("resnetv2_50", (3, 32, 32), r"it fails on a batch of images \(3, 32, 32\): RuntimeError"),
        ("lenet5", (3, 32, 32), "lenet5 takes images of 28x28, found 32x32"),
    ],
)
def test_a_backbone_that_cannot_be_split_is_refused(name, shape, reason):
    with pytest.raises(
        ConfigError, match=rf"backbone\.use: '{name}' cannot be a member: .*{reason}"
    ):
        build_member(Backbone(use=name), task(shape))


def test_a_zero_head_hides_no_fault():
    class Twice(nn.Module):
        """Its classifier begins with zeros, and it doubles the features on the way."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 10)
            nn.init.zeros_(self.fc.weight)

        def forward_features(self, x):
            return x

        def forward_head(self, x, *, pre_logits=False):
            pooled = x.mean((2, 3))
            return pooled if pre_logits else self.fc(2 * pooled)

        def get_classifier(self):
            return self.fc

        def forward(self, x):
            return self.forward_head(self.forward_features(x))

    from phalanx.nn.member import _defect

    member = Member(Twice(), nn.Identity())
    assert "away from its own scores" in _defect(member, task())
    assert (member.backbone.fc.weight == 0).all()


def test_unknown_backbone():
    with pytest.raises(ConfigError) as error:
        build_member(Backbone(use="resnet18_cifer"), task())
    assert "no classifier is called 'resnet18_cifer'; did you mean resnet18_cifar" in str(
        error.value
    )


def test_unknown_keyword_of_a_backbone():
    with pytest.raises(ConfigError) as error:
        build_member(Backbone(use="resnet18_cifar", params={"widht": 4}), task())
    assert error.value.problems == (
        "backbone.params: 'resnet18_cifar' cannot be built with them for images (3, 32, 32): "
        "ResNet.__init__() got an unexpected keyword argument 'widht'",
    )


def test_keywords_that_come_from_the_task():
    params = {"num_classes": 3, "pretrained": True}
    with pytest.raises(ConfigError) as error:
        build_member(Backbone(use="resnet18_cifar", params=params), task())
    assert error.value.problems == (
        "backbone.params.num_classes: cannot be set here: the data set has its number of classes",
        "backbone.params.pretrained: cannot be set here: members begin untrained",
    )


def test_normalize_by_hand():
    x = torch.tensor([0.2, 0.5]).view(1, 2, 1, 1)
    out = Normalize((0.1, 0.5), (0.5, 0.25))(x)
    torch.testing.assert_close(out, torch.tensor([0.2, 0.0]).view(1, 2, 1, 1))
