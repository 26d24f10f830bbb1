"""Files to images: every mode and orientation, and the geometry of timm's own transform."""

import struct
import zlib

import pytest
import timm.data
import torch
from PIL import ExifTags, Image, ImageOps

from phalanx import randomness
from phalanx.data.decode import (
    EXTENSIONS,
    Unreadable,
    check_header,
    check_whole,
    decode,
    fitted,
    upright_rgb,
)
from phalanx.specs import Preprocessing

WHOLE = Preprocessing(size=(20, 30), crop_mode="squash", interpolation="nearest")
"""Of an image of 30 x 20 it changes nothing."""


def picture(width=30, height=20, seed=0):
    draws = randomness.generator("picture", seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=draws, dtype=torch.uint8)
    small = Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))
    return small.resize((width, height), Image.Resampling.BOX)


def tensor(image):
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1)


# ---------------------------------------------------------------- modes


def test_rgb_is_left_as_it_is(tmp_path):
    picture().save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), WHOLE)
    assert torch.equal(found, tensor(picture()))
    assert found.dtype == torch.uint8


def test_grey_has_three_equal_channels(tmp_path):
    picture().convert("L").save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), WHOLE)
    assert torch.equal(found, tensor(picture().convert("L")).expand(3, -1, -1))


@pytest.mark.parametrize("kind", ["bits", "palette"])
def test_few_colours(tmp_path, kind):
    image = picture().convert("1") if kind == "bits" else picture().quantize(16)
    image.save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), WHOLE)
    assert torch.equal(found, tensor(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 16))])
def test_a_palette_with_transparency_loses_it_and_keeps_its_colours(tmp_path, transparency):
    image = picture().quantize(16)
    image.save(tmp_path / "a.png", transparency=transparency)
    assert torch.equal(decode(str(tmp_path / "a.png"), WHOLE), tensor(image.convert("RGB")))


def test_alpha_is_dropped(tmp_path):
    image = picture()
    image.putalpha(Image.new("L", image.size, 7))
    image.save(tmp_path / "a.png")
    assert torch.equal(decode(str(tmp_path / "a.png"), WHOLE), tensor(picture()))


def test_cmyk(tmp_path):
    image = Image.new("RGB", (30, 20), (200, 40, 90))
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    found = decode(str(tmp_path / "a.jpg"), WHOLE).float()
    assert (found.mean((1, 2)) - torch.tensor([200.0, 40.0, 90.0])).abs().max() < 3


def sixteen_bits(path, values):
    """A PNG of 16-bit grey, written by hand: Pillow's own would be the judge of its own cause."""
    rows = b"".join(b"\0" + b"".join(struct.pack(">H", v) for v in row) for row in values)

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", len(values[0]), len(values), 16, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    values = [[0, 256, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65535]]
    sixteen_bits(tmp_path / "a.png", values)
    found = decode(str(tmp_path / "a.png"), Preprocessing(size=(1, 6), crop_mode="squash"))
    assert found[0, 0].tolist() == [0, 1, 100, 100, 101, 255]


def test_floats_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tiff")
    for look in (check_header, check_whole):
        assert look(str(tmp_path / "a.tiff")).reason == "its pixels are floats of no known range"


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture().save(tmp_path / "a.jpg", exif=exif, quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = ImageOps.exif_transpose(image)  # Pillow's own, as the reference
    with Image.open(tmp_path / "a.jpg") as image:
        assert torch.equal(tensor(upright_rgb(image)), tensor(expected))
    assert (expected.size == (20, 30)) == (orientation >= 5)


def test_a_turned_tiff_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture().save(tmp_path / "a.tiff", exif=exif)
    with Image.open(tmp_path / "a.tiff") as image:
        expected = ImageOps.exif_transpose(image)
    with Image.open(tmp_path / "a.tiff") as image:
        assert torch.equal(tensor(upright_rgb(image)), tensor(expected))


def test_damaged_exif_data_turn_nothing(tmp_path):
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert not isinstance(decode(str(tmp_path / "a.jpg"), WHOLE), Unreadable)


# ---------------------------------------------------------------- geometry

SIZES = [(30, 20), (20, 30), (31, 31), (224, 96), (97, 223), (5, 60), (300, 299)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(size=(24, 24), crop_pct=0.875),
        Preprocessing(size=(32, 32), crop_pct=0.9, interpolation="bilinear"),
        Preprocessing(size=(24, 24), crop_pct=1.0, crop_mode="squash"),
        Preprocessing(size=(24, 32), crop_pct=0.95, crop_mode="squash", interpolation="lanczos"),
        Preprocessing(size=(24, 24), crop_mode="border", fill=(124, 116, 104)),
        Preprocessing(size=(24, 24), crop_pct=0.9, crop_mode="border", fill=(124, 116, 104)),
        Preprocessing(size=(24, 40), crop_pct=0.9),
    ],
    ids=str,
)
def test_geometry_is_timms(size, how):
    image = picture(*size)
    transform = timm.data.create_transform(
        input_size=(3, *how.size),
        is_training=False,
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        mean=tuple(value / 255 for value in how.fill) if any(how.fill) else (0.5, 0.5, 0.5),
        std=(1.0, 1.0, 1.0),
        normalize=False,
    )
    assert torch.equal(tensor(fitted(image, how)), transform(image))


def test_one_side_too_long(tmp_path):
    Image.new("RGB", (40_000, 1)).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), Preprocessing(size=(224, 224)))
    assert found.reason == "it is 40000 x 1: one side is too long to resize"


# ---------------------------------------------------------------- files that are no images


def damaged(folder):
    """Name -> (file, part of the reason)."""
    image = picture(120, 90)
    for ending in ("jpg", "png", "webp", "bmp", "tiff"):
        image.save(folder / f"whole.{ending}")
    for ending in ("jpg", "png", "webp", "bmp", "tiff"):
        content = (folder / f"whole.{ending}").read_bytes()
        (folder / f"cut.{ending}").write_bytes(content[: len(content) * 2 // 3])
    (folder / "text.png").write_text("not an image\n")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "noise.jpg").write_bytes(bytes(range(256)) * 4)
    return [
        *sorted(path.name for path in folder.glob("cut.*")),
        "empty.jpg",
        "noise.jpg",
        "text.png",
    ]


def test_every_kind_of_damage_is_found_by_both_checks(tmp_path):
    bad = damaged(tmp_path)
    for look in (check_header, check_whole):
        found = {path.name: look(str(path)) for path in sorted(tmp_path.iterdir())}
        assert sorted(name for name, one in found.items() if one) == sorted(bad)
    assert found["empty.jpg"].reason == "it is empty"
    assert found["text.png"].reason == "it is no image of a known format"
    assert "truncated" in found["cut.jpg"].reason
    assert str(tmp_path) not in "".join(one.reason for one in found.values() if one)


def test_a_truncated_tail_that_hides_is_found_by_decoding(tmp_path):
    """PIL's verify() passes a JPEG that is cut short; both checks do not."""
    picture(120, 90).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-200])
    with Image.open(tmp_path / "a.jpg") as image:
        image.verify()
    assert "truncated" in check_header(str(tmp_path / "a.jpg")).reason


def test_damage_in_the_middle_is_found_by_the_whole_check(tmp_path):
    picture(120, 90).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    assert check_header(str(tmp_path / "a.png")) is None
    assert check_whole(str(tmp_path / "a.png")) is not None


def test_a_missing_and_a_forbidden_file(tmp_path):
    assert check_header(str(tmp_path / "a.jpg")).reason == "No such file or directory"
    (tmp_path / "b.jpg").mkdir()
    assert check_whole(str(tmp_path / "b.jpg")).reason == "Is a directory"


def test_a_decompression_bomb(tmp_path, monkeypatch):
    picture(50, 50).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for look in (check_header, check_whole):
        assert look(str(tmp_path / "a.png")).reason == "it has more than 89,478,485 pixels"


def test_our_limit_of_pixels_is_pillows():
    from phalanx.data.decode import PIXELS

    assert Image.MAX_IMAGE_PIXELS == PIXELS


def test_extensions_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)
