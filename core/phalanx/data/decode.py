"""One file to one image: decoded, turned upright, made RGB, resized and cropped as timm does it.

What differs from ``Image.open(file).convert("RGB")``, which timm's and torchvision's readers do:
photos are turned as their EXIF data say, and 16-bit grey is scaled instead of clipped. Alpha and
colour profiles are dropped there as here. `phalanx.data.folder` reads whole folders.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from phalanx.specs import Preprocessing, Spec

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files, as torchvision's ImageFolder has them; case does not matter."""
PIXELS = 89_478_485
"""More than so many in one image, as stored or as resized, are refused: a quarter of a gigabyte
as RGB, and Pillow's own limit against files that are made to fill the memory."""

_TAIL = 64
"""Bytes at a file's end where its format's last marker is looked for."""
_LAST = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
"""Pillow's name of a format -> what stands at the end of a whole file."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""

ResultT = TypeVar("ResultT")


class Unreadable(Spec):
    """A file that cannot be read as an image, and why."""

    file: str
    reason: str


def decode(path: str, preprocessing: Preprocessing) -> Tensor | Unreadable:
    """The image of a file as ``(3, H, W)`` uint8, or why there is none."""
    return _attempt(path, lambda image: _pixels(fitted(upright_rgb(image), preprocessing)))


def check_whole(path: str) -> Unreadable | None:
    """Why a file cannot be read, found by decoding it; None if it can be read."""
    found = _attempt(path, upright_rgb)
    return found if isinstance(found, Unreadable) else None


def check_header(path: str) -> Unreadable | None:
    """Why a file cannot be read, as far as its first and last bytes tell.

    A file whose format's last marker is missing is decoded to be sure. What remains unseen is
    damage in the middle of a file.
    """
    found = _attempt(path, lambda image: _looks_whole(path, image) or bool(upright_rgb(image)))
    return found if isinstance(found, Unreadable) else None


def _attempt(path: str, work: Callable[[Image.Image], ResultT]) -> ResultT | Unreadable:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data and odd palettes
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return work(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise anything on damaged files
        return Unreadable(file=path, reason=_reason(path, error))


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format" if Path(path).stat().st_size else "it is empty"
    return str(error) or type(error).__name__


def _looks_whole(path: str, image: Image.Image) -> bool:
    """Whether the file's last bytes are those of a whole file of its format."""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        if image.format == "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= size
    last = _LAST.get(image.format or "")
    return last is not None and image.mode != "F" and last in tail


# ---------------------------------------------------------------- colours and orientation


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, 8 bits a channel, turned as its EXIF data say.

    Raises:
        ValueError: for pixels that have no known range or colour space.
    """
    image.load()  # before the orientation is read: Pillow turns TIFF itself while loading
    turn = _TURNS.get(_orientation(image))
    image = _rgb(image)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data raise anything, and say nothing of the image itself
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 65535 / 257 = 255; a point operation on integers truncates, hence the half
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode == "F":
        raise ValueError("its pixels are floats of no known range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct way
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    return image if image.mode == "RGB" else image.convert("RGB")


# ---------------------------------------------------------------- geometry


def fitted(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """An RGB image resized and cropped: what timm's transform for evaluation does.

    Raises:
        ValueError: if its sides are so unequal that the resized image would fill the memory.
    """
    height, width = preprocessing.size
    wide, high = _scaled(image.size, preprocessing)
    if wide * high > PIXELS:
        raise ValueError(f"it is {image.width} x {image.height}: one side is too long to resize")
    if image.size != (wide, high):
        filter_ = Image.Resampling[preprocessing.interpolation.upper()]
        image = image.resize((wide, high), filter_)
    left, top = _offset(wide, width), _offset(high, height)
    if left <= 0 and top <= 0:
        return image.crop((-left, -top, width - left, height - top))
    canvas = Image.new("RGB", (width, height), preprocessing.fill)
    canvas.paste(image, (left, top))
    return canvas


def _scaled(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(W, H) of the resized image; rounded as torchvision and timm do, each in its own case."""
    wide, high = size
    above, aside = preprocessing.scale_size
    if preprocessing.crop_mode == "squash":
        return aside, above
    if preprocessing.crop_mode == "center" and above == aside:
        short, long = min(size), max(size)
        other = int(above * long / short)
        return (above, other) if wide <= high else (other, above)
    ratios = (high / above, wide / aside)
    ratio = max(ratios) if preprocessing.crop_mode == "border" else min(ratios)
    return max(1, round(wide / ratio)), max(1, round(high / ratio))


def _offset(found: int, wanted: int) -> int:
    """Where an image's edge lies on the canvas: above 0 to be padded, below 0 to be cut."""
    return (wanted - found) // 2 if wanted > found else -round((found - wanted) / 2)


def _pixels(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
