"""The script that makes a folder of photos: what it promises, and equal images for equal seeds."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from phalanx.data.decode import check_whole

SCRIPT = Path(__file__).parents[1] / "examples" / "make_photos.py"


def make(folder, *more):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "--classes", "2", "--per-class", "6", *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sizes_modes_and_one_corrupt_file(tmp_path):
    told = make(tmp_path / "one")
    files = sorted((tmp_path / "one").rglob("*.*"))
    assert len(files) == 2 * 6 + 2 * 3
    bad = [file for file in files if check_whole(str(file))]
    assert told.splitlines() == [
        f"{tmp_path / 'one'}: 2 classes, 6 training images each",
        f"cut short: {bad[0]}",
    ]
    modes, sides, turned = Counter(), set(), 0
    for file in files:
        with Image.open(file) as image:
            modes[image.mode] += 1
            sides |= set(image.size)
            turned += image.getexif().get(274) == 6
    assert set(modes) == {"RGB", "L", "P", "CMYK"}
    assert turned == 2
    assert min(sides) >= 96
    assert max(sides) <= 224
    assert len(sides) > 10
    make(tmp_path / "two", "--whole")
    for file in files:
        again = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert (again.read_bytes() == file.read_bytes()) == (file not in bad)
