"""A folder of photos to try Phalanx on, made from images that are there already.

    python examples/make_photos.py photos                       # digits of scikit-learn, coloured
    python examples/make_photos.py photos --source cifar10      # from $PHALANX_DATA
    phalanx train examples/photos.toml --data-root photos --skip-unreadable --out runs/photos

Writes photos/train/<class>/* and photos/test/<class>/*: sides of 96 to 224 pixels; JPEG and PNG;
RGB, grey, palette, CMYK, and turned with EXIF data that say so. One file of the training part is
cut short. Equal arguments make equal images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import ExifTags, Image
from torch import Generator, Tensor

from phalanx import randomness
from phalanx.data import default_root, load_data
from phalanx.data.sets import Data, Split

SIDES = (96, 224)
KINDS = ("rgb.jpg", "rgb.png", "grey.jpg", "palette.png", "cmyk.jpg", "turned.jpg")


def main() -> None:
    """Make the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="digits", help="digits, cifar10, svhn, …")
    parser.add_argument("--data-root", type=Path, default=None, help="else $PHALANX_DATA")
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=24, help="of the training part")
    parser.add_argument("--whole", action="store_true", help="cut no file short")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    data = load_data(asked.source, root=asked.data_root or default_root())
    make(data, asked.folder, classes=asked.classes, per_class=asked.per_class, seed=asked.seed)
    print(f"{asked.folder}: {asked.classes} classes, {asked.per_class} training images each")
    if not asked.whole:
        print(f"cut short: {cut_one_short(asked.folder)}")


def make(data: Data, folder: Path, *, classes: int, per_class: int, seed: int = 0) -> None:
    """Write both parts; the test part has half as many images a class, at least 2."""
    parts = {"train": (data.train, per_class), "test": (data.test, max(2, per_class // 2))}
    for part, (split, count) in parts.items():
        for label, name in enumerate(data.task.class_names[:classes]):
            rows = (split.labels == label).nonzero()[:count, 0]
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number, row in enumerate(rows.tolist()):
                draws = randomness.generator("photos", seed, part, label, number)
                kind = KINDS[(number + label) % len(KINDS)]
                write(picture(split, row, draws), folder / part / name / f"{number:05d}-{kind}")


def picture(split: Split, row: int, draws: Generator) -> Image.Image:
    """An image of the data set as RGB, of random sides; grey ones get a random colour."""
    x: Tensor = split.fetch([row]).x[0]
    if len(x) == 1:
        dark, light = torch.rand(2, 3, 1, 1, generator=draws)
        x = dark * 0.4 + x * (light * 0.6 + 0.4 - dark * 0.4)
    _, H, W = x.shape
    flat = x.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    low, high = SIDES
    sides = torch.randint(low, high + 1, (2,), generator=draws).tolist()
    small = Image.frombytes("RGB", (W, H), bytes(flat.flatten().tolist()))
    return small.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)


def write(image: Image.Image, path: Path) -> None:
    """Save an image as the kind that the file's name ends in."""
    kind = path.name.partition("-")[2]
    if kind == "grey.jpg":
        image.convert("L").save(path)
    elif kind == "palette.png":
        image.quantize(64).save(path)
    elif kind == "cmyk.jpg":
        image.convert("CMYK").save(path)
    elif kind == "turned.jpg":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # to be shown turned by 90 degrees clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    else:
        image.save(path)


def cut_one_short(folder: Path) -> Path:
    """Keep the first half of the first JPEG file of the training part."""
    path = min(path for path in (folder / "train").rglob("*-rgb.jpg"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


if __name__ == "__main__":
    main()
