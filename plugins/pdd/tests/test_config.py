"""The settings and their messages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from phalanx_pdd.config import PDDConfig


@pytest.mark.parametrize(("members", "bins"), [(2, 10), (3, 10), (4, 20), (5, 20), (24, 24)])
def test_bins_follow_the_members(members: int, bins: int) -> None:
    assert PDDConfig(members=members).m == bins
    assert PDDConfig(members=members, bins=30).m == 30


@pytest.mark.parametrize(
    ("variant", "drops", "disperses"),
    [("pdd", True, False), ("deg", False, True), ("pdd+deg", True, True)],
)
def test_variants(variant: str, drops: bool, disperses: bool) -> None:
    config = PDDConfig.model_validate({"variant": variant})
    assert (config.drops, config.disperses) == (drops, disperses)


def test_round_trip_through_json() -> None:
    config = PDDConfig.model_validate({"members": 5, "backbone": "small_cnn", "bins": 12})
    assert PDDConfig.model_validate_json(config.model_dump_json()) == config
    assert config.backbone.use == "small_cnn"


def test_every_field_is_described() -> None:
    assert all(field.description for field in PDDConfig.model_fields.values())


def test_a_bin_for_each_member() -> None:
    message = (
        r"bins = 3 is fewer than members = 5, but every member needs a bin of its own; "
        r"write bins = 5 or more"
    )
    with pytest.raises(ValidationError, match=message):
        PDDConfig(members=5, bins=3)


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown key; did you mean 'members'\?"):
        PDDConfig.model_validate({"memberz": 5})


@pytest.mark.parametrize("key", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_probabilities_are_in_range(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        PDDConfig.model_validate({key: value})


def test_one_member_is_no_ensemble() -> None:
    with pytest.raises(ValidationError, match="members"):
        PDDConfig(members=1)
