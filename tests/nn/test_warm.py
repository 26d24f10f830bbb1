"""Checkpoints in members' backbones: other classes, channels, image sizes, and other networks."""

import re
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from phalanx.config import Backbone
from phalanx.errors import ArtifactError, ConfigError
from phalanx.nn.member import build_member
from phalanx.nn.warm import load_backbone, pretrained, statistics, with_channels
from phalanx.nn.weights import Weights, read_weights
from phalanx.specs import Task


def task(shape, classes=10):
    channels = shape[0]
    return Task(
        name="toy",
        shape=shape,
        classes=classes,
        train_size=10,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def member(name, shape, classes=10, **params):
    torch.manual_seed(1)
    return build_member(Backbone(use=name, params=params), task(shape, classes))


def checkpoint(folder, name, **keywords):
    """A local file of the kind that timm's users have, and its tensors."""
    torch.manual_seed(2)
    tensors = timm.create_model(name, pretrained=False, **keywords).state_dict()
    save_file(tensors, folder / f"{name}.safetensors")
    return read_weights(folder / f"{name}.safetensors"), tensors


def body(tensors, head):
    return {name: value for name, value in tensors.items() if not name.startswith(f"{head}.")}


def test_the_same_classes_keep_their_head(tmp_path):
    weights, tensors = checkpoint(tmp_path, "test_resnet", num_classes=10)
    built = member("test_resnet", (3, 32, 32))
    assert load_backbone(built, weights, task((3, 32, 32))) == "kept"
    own = built.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tensors.items())


def test_other_classes_get_a_new_head(tmp_path):
    weights, tensors = checkpoint(tmp_path, "test_resnet", num_classes=7)
    built = member("test_resnet", (3, 32, 32))
    before = built.backbone.fc.weight.clone()
    assert load_backbone(built, weights, task((3, 32, 32))) == "new"
    own = built.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in body(tensors, "fc").items())
    assert torch.equal(built.backbone.fc.weight, before)


@pytest.mark.parametrize("classes", [10, 7])
def test_position_embeddings_are_resampled(tmp_path, classes):
    """As timm does it: 160 pixels and 10 x 10 patches become 96 and 6 x 6."""
    weights, tensors = checkpoint(tmp_path, "test_vit", num_classes=classes)
    built = member("test_vit", (3, 96, 96))
    head = load_backbone(built, weights, task((3, 96, 96)))
    assert head == ("kept" if classes == 10 else "new")
    expected = resample_abs_pos_embed(tensors["pos_embed"], new_size=[6, 6])
    assert torch.allclose(built.backbone.pos_embed, expected, atol=1e-6)
    own = built.backbone.state_dict()
    same = [name for name in body(tensors, "head") if name != "pos_embed"]
    assert len(same) > 50
    assert all(torch.equal(own[name], tensors[name]) for name in same)


def test_colour_becomes_grey(tmp_path):
    """A grey image scores as the colour image with three equal channels."""
    weights, _ = checkpoint(tmp_path, "test_resnet", num_classes=10)
    grey = member("test_resnet", (1, 32, 32))
    colour = member("test_resnet", (3, 32, 32))
    load_backbone(grey, weights, task((1, 32, 32)))
    load_backbone(colour, weights, task((3, 32, 32)))
    x = torch.rand(4, 1, 32, 32)
    grey.eval(), colour.eval()
    with torch.no_grad():
        assert torch.allclose(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-4)


def test_grey_becomes_colour(tmp_path):
    weights, _ = checkpoint(tmp_path, "test_vit", num_classes=7, in_chans=1)
    colour = member("test_vit", (3, 160, 160))
    assert load_backbone(colour, weights, task((3, 160, 160))) == "new"
    thirds = weights.tensors["patch_embed.proj.weight"].expand(-1, 3, -1, -1) / 3
    assert torch.allclose(colour.backbone.patch_embed.proj.weight, thirds)


def test_our_own_backbones_change_channels_too(tmp_path):
    weights, tensors = checkpoint(tmp_path, "resnet20_cifar", num_classes=10)
    built = member("resnet20_cifar", (1, 8, 8))
    assert load_backbone(built, weights, task((1, 8, 8))) == "kept"
    summed = tensors["conv1.weight"].sum(1, keepdim=True)
    assert torch.allclose(built.backbone.conv1.weight, summed)


def test_an_input_layer_that_cannot_be_changed_is_refused(tmp_path):
    """timm would leave it random: a grey image's 16 pixels are one position of TResNet's input."""
    weights, _ = checkpoint(tmp_path, "tresnet_m", num_classes=10, in_chans=1)
    built = member("tresnet_m", (3, 64, 64))
    before = built.backbone.state_dict()["body.conv1.conv.weight"].clone()
    with pytest.raises(ArtifactError) as caught:
        load_backbone(built, weights, task((3, 64, 64)))
    assert str(caught.value) == (
        "the weights are for images of 1 channels, these have 3, and timm cannot change "
        "body.conv1.conv.weight (64, 48, 3, 3) of TResNet; choose another backbone, or weights "
        "for 3 channels"
    )
    assert torch.equal(built.backbone.state_dict()["body.conv1.conv.weight"], before)


def test_a_file_without_a_head_leaves_it_new(tmp_path):
    weights, tensors = checkpoint(tmp_path, "test_vit", num_classes=0)
    assert not any(name.startswith("head.") for name in tensors)
    built = member("test_vit", (3, 96, 96))
    before = built.backbone.head.weight.clone()
    assert load_backbone(built, weights, task((3, 96, 96))) == "new"
    assert torch.equal(built.backbone.head.weight, before)


def test_a_foreign_head_is_mapped_while_adapting(tmp_path):
    weights, tensors = checkpoint(tmp_path, "test_vit", num_classes=10)
    renamed = {name.replace("head.", "classifier."): value for name, value in tensors.items()}
    given = Weights(renamed, weights.sha256, weights.path, {})
    built = member("test_vit", (1, 96, 96))
    assert load_backbone(built, given, task((1, 96, 96))) == "kept"
    assert torch.equal(built.backbone.head.weight, tensors["head.weight"])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32)])
def test_another_network_is_refused_and_nothing_is_changed(tmp_path, shape):
    weights, _ = checkpoint(tmp_path, "test_efficientnet", num_classes=10)
    built = member("test_resnet", shape)
    before = {name: value.clone() for name, value in built.backbone.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        load_backbone(built, weights, task(shape))
    assert re.search(r"does not fit ResNet: \d+ tensors missing", str(caught.value))
    assert "hoose the architecture that it was trained as" in str(caught.value)
    after = built.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_adapting_moves_no_global_draw(tmp_path):
    weights, _ = checkpoint(tmp_path, "test_vit", num_classes=7)
    built = member("test_vit", (3, 96, 96))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone(built, weights, task((3, 96, 96)))
    assert torch.equal(torch.rand(3), expected)


def test_statistics_are_timms_own():
    assert statistics(Backbone(use="resnet18"), 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = statistics(Backbone(use="resnet18"), 1)
    assert mean == pytest.approx((0.449,))
    assert std == pytest.approx((0.226,))
    assert statistics(Backbone(use="small_cnn"), 3) is None
    assert statistics(None, 3) is None


def test_statistics_of_other_channels():
    assert with_channels((0.1, 0.2), 4) == (0.1, 0.2, 0.1, 0.2)


def test_pretrained_weights_that_are_not_there():
    with pytest.raises(ConfigError, match="timm has no pretrained weights of 'small_cnn'; give a"):
        pretrained(Backbone(use="small_cnn"), task((3, 32, 32)))


def test_no_network_says_what_to_do(monkeypatch):
    def fail(*given, **named):
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(ArtifactError) as caught:
        pretrained(Backbone(use="test_resnet"), task((3, 32, 32)))
    assert str(caught.value) == (
        "init.from = 'timm': the pretrained weights of test_resnet.r160_in1k could not be had "
        "(OSError: Name or service not known). Without a network, fetch them elsewhere and give "
        "the file: init.from = 'FILE'"
    )


OFFLINE = """
import timm, torch
from phalanx.config import Backbone
from phalanx.nn.warm import pretrained
from phalanx.specs import Task

task = Task(name="toy", shape=(1, 32, 32), classes=10, train_size=1, mean=(0.5,), std=(0.5,))
found = pretrained(Backbone(use="test_resnet"), task)
print(found.path.name)
print(*(tuple(found.tensors[name].shape) for name in ("fc.weight", "conv1.0.weight")))
print(float(found.tensors["fc.weight"].sum()))
"""


def test_the_hub_clients_cache_is_used(tmp_path):
    """The layout of the Hugging Face cache, and no network."""
    torch.manual_seed(3)
    tensors = timm.create_model("test_resnet").state_dict()
    home = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    save_file(tensors, home / "snapshots" / "abc" / "model.safetensors")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE],
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    name, shapes, total = result.stdout.splitlines()
    assert name == "timm:test_resnet.r160_in1k"
    classes, features = tensors["fc.weight"].shape
    filters = len(tensors["conv1.0.weight"])
    assert shapes == f"({classes}, {features}) ({filters}, 1, 3, 3)"
    assert float(total) == pytest.approx(float(tensors["fc.weight"].sum()), abs=1e-4)
