"""The settings, their defaults from the paper, and what is refused with which words."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from phalanx_rls.config import RLSConfig


def test_defaults_are_the_papers():
    config = RLSConfig()
    assert (config.members, config.group, config.samples) == (2, 3, 10)
    assert (config.backbone.use, config.loss, config.normalization) == (
        "resnet50_cifar",
        "mse",
        "symmetric",
    )
    assert all(field.description for field in RLSConfig.model_fields.values())


def test_unlike_submodels_are_refused():
    message = (
        r"found 2 backbones, but each layer is drawn from sub-models of one architecture: write "
        r"one backbone, and the number of sub-models as members"
    )
    with pytest.raises(ValidationError, match=message):
        RLSConfig.model_validate({"backbone": ["resnet50_cifar", "vgg16_cifar"]})


def test_one_submodel_has_no_group():
    message = (
        r"members = 1 has a single sampled model, and group = 3 asks for as many different ones: "
        r"write group = 1, or members = 2 or more"
    )
    with pytest.raises(ValidationError, match=message):
        RLSConfig(members=1)
    assert RLSConfig(members=1, group=1).members == 1


def test_round_trip_through_json():
    config = RLSConfig.model_validate({"backbone": {"use": "small_cnn"}, "loss": "nll_mean"})
    assert RLSConfig.model_validate_json(config.model_dump_json()) == config
