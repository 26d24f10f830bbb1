"""What timm resolves for a backbone, and which backbone a defense has."""

import pytest
import timm
from timm.data import resolve_model_data_config

from phalanx.config import Backbone
from phalanx.nn.resolve import backbone_of, timm_data
from phalanx.runfile import read_run
from phalanx.specs import Preprocessing


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vit_tiny_patch16_224",
        "mobilenetv3_small_100",
        "vit_tiny_patch16_224.augreg_in21k",
    ],
)
def test_as_timm_resolves_it(name):
    found = timm_data(Backbone(use=name))
    theirs = resolve_model_data_config(timm.create_model(name, pretrained=False))
    assert found.preprocessing == Preprocessing(
        size=theirs["input_size"][1:],
        crop_pct=theirs["crop_pct"],
        interpolation=theirs["interpolation"],
        crop_mode=theirs["crop_mode"],
    )
    assert (found.mean, found.std) == (theirs["mean"], theirs["std"])


@pytest.mark.parametrize("name", ["resnet18", "coat_lite_medium_384", "deepseek_vit_412m"])
def test_modes_of_cropping(name):
    """One network of each mode in timm's list; a border is filled as timm's transform does it."""
    found = timm_data(Backbone(use=name)).preprocessing
    known = timm.get_pretrained_cfg(name)
    assert found.crop_mode == known.crop_mode
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, pretrained_cfg=known.to_dict())
    )
    filled = [getattr(step, "fill", None) for step in transform.transforms]
    assert (list(found.fill) in filled) == (known.crop_mode == "border")


@pytest.mark.parametrize("name", ["small_cnn", "resnet20_cifar"])
def test_ours_get_timms_defaults(name):
    found = timm_data(Backbone(use=name))
    assert str(found.preprocessing) == (
        "shorter side resized to 256 (bicubic), centre 224 x 224 cut out"
    )
    assert found.mean == (0.485, 0.456, 0.406)


def test_an_image_size():
    backbone = Backbone(use="vit_tiny_patch16_224", params={"img_size": 96})
    assert timm_data(backbone).preprocessing.size == (96, 96)
    assert timm_data(backbone, image_size=64).preprocessing.size == (64, 64)
    known = timm_data(Backbone(use="vit_tiny_patch16_224")).preprocessing
    assert timm_data(backbone).preprocessing.crop_pct == known.crop_pct


def test_a_defenses_backbone():
    config = read_run({"defense": {"use": "pgd-at", "params": {"backbone": "resnet10t"}}})
    assert backbone_of(config.defense.params) == Backbone(use="resnet10t")
    assert backbone_of(config.data) is None
