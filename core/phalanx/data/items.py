"""One item of somebody's data set: an image and its label, checked."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from phalanx.errors import DataError

_COLOUR = ("CMYK", "HSV", "LA", "P", "PA", "RGBA", "RGBX", "YCbCr")


def checked(source: Any, place: int, item: Any) -> tuple[Tensor, int]:
    """An item as image ``(C, H, W)`` float32 in [0, 1] and label.

    Raises:
        DataError: with everything that is wrong, and what to do.
    """
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise DataError(
            f"{name_of(source)}: row {place} is {described(item)}; each row must be a pair "
            "(image, label): put a data set around it that gives these two"
        )
    problem, image = _image(item[0])
    if problem:
        raise DataError(f"{name_of(source)}: row {place}: {problem}")
    return image, _label(source, place, item[1])


def _image(given: Any) -> tuple[str, Tensor]:
    """What is wrong with an image, and the image."""
    if isinstance(given, Image.Image):
        return _from_pil(given)
    nothing = torch.zeros(0)
    if not isinstance(given, Tensor | np.ndarray):
        return f"an image is a tensor, an array or a PIL image, found {described(given)}", nothing
    try:
        image = torch.as_tensor(given).detach()
    except TypeError:
        return f"an array of {given.dtype} is no image", nothing
    if not image.is_floating_point():
        return (
            f"images must be floats in [0, 1], found {image.dtype}; divide by 255 (torchvision's "
            "ToTensor, or v2.ToDtype(torch.float32, scale=True))"
        ), nothing
    if image.ndim != 3:
        return f"images must be (C, H, W), found shape {tuple(image.shape)}", nothing
    image = image.to("cpu", torch.float32, copy=True)
    if not torch.isfinite(image).all():
        return "images must be finite, found NaN or infinity", image
    if image.numel() and (image.min() < 0 or image.max() > 1):
        return (
            f"images must be in [0, 1], found {float(image.min()):.4g} to "
            f"{float(image.max()):.4g}; take the normalisation out of the data set's transform and "
            "put it in the model: phalanx.wrap(model, mean=…, std=…)"
        ), image
    return "", image


def _from_pil(image: Image.Image) -> tuple[str, Tensor]:
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in _COLOUR:
        image = image.convert("RGB")
    if image.mode not in ("L", "RGB"):
        told = f"a PIL image of mode {image.mode!r} has no 8 bits a channel; convert it to L or RGB"
        return told, torch.zeros(0)
    return "", pil_to_tensor(image).to(torch.float32) / 255


def _label(source: Any, place: int, given: Any) -> int:
    value = given.item() if isinstance(given, Tensor | np.ndarray) and given.ndim == 0 else given
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 0:
        refuse_label(source, place, value)
    return int(value)


def refuse_label(source: Any, place: int, given: Any) -> NoReturn:
    """Say what a label must be.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{name_of(source)}: row {place}: a label is an integer from 0, found "
        f"{described(given)}; one number for each class, without gaps (one-hot: argmax)"
    )


def described(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, int | float | str):
        return repr(value)
    if isinstance(value, tuple | list | dict):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def name_of(source: Any) -> str:
    """What a data set or loader is called in messages."""
    return type(source).__name__
