"""What timm knows of the images that a backbone was made for: size, crop, mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import resolve_data_config

from phalanx.config import Backbone, Use
from phalanx.nn import backbones  # noqa: F401  # a backbone may be one of ours
from phalanx.specs import Preprocessing, Spec


@dataclass(frozen=True)
class TimmData:
    """How a backbone's images are made and normalised.

    Attributes:
        preprocessing: from a file to the image in [0, 1] that an attacker may change.
        mean: per channel, for the normalisation inside the member.
        std: likewise.
    """

    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]


def timm_data(backbone: Backbone, *, image_size: int | None = None) -> TimmData:
    """What timm resolves for a backbone's evaluation.

    A backbone that timm has no pretrained weights of, such as ours, gets timm's defaults: 224
    pixels, bicubic, 0.875 of the side cut out, mean and deviation of ImageNet.

    Args:
        backbone: by its name; a keyword ``img_size`` counts as an image size.
        image_size: side of the images; absent: that of the pretrained weights.

    >>> found = timm_data(Backbone(use="resnet18"))
    >>> print(found.preprocessing)
    shorter side resized to 235 (bicubic), centre 224 x 224 cut out
    """
    known = timm.get_pretrained_cfg(backbone.use) if timm.is_model(backbone.use) else None
    asked: dict[str, Any] = {"in_chans": 3}  # timm wants to be told something
    size = image_size or backbone.params.get("img_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        asked["input_size"] = (3, height, width)
    found = resolve_data_config(asked, pretrained_cfg=known.to_dict() if known else None)
    mean, std = tuple(found["mean"]), tuple(found["std"])
    border = found["crop_mode"] == "border"
    return TimmData(
        Preprocessing(
            size=found["input_size"][1:],
            crop_pct=found["crop_pct"],
            interpolation=found["interpolation"],
            crop_mode=found["crop_mode"],
            fill=tuple(round(255 * value) for value in mean) if border else (0, 0, 0),
        ),
        mean,
        std,
    )


def backbone_of(params: Spec) -> Backbone | None:
    """The first backbone that a component's config names, those within it included."""
    return next(_backbones(params), None)


def _backbones(value: Any) -> Iterator[Backbone]:
    if isinstance(value, Backbone):
        yield value
    elif isinstance(value, Use):
        yield from _backbones(value.params)
    elif isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from _backbones(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _backbones(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _backbones(inner)
