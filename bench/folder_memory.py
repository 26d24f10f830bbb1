"""Peak memory of a training epoch on a folder of N photos and on one of 10 N.

    python -m bench.folder_memory               # writes bench/results/folder_memory.json

Each epoch runs in a process of its own with two decoding workers; every 20 ms the resident memory
of the process and its workers is added up from /proc (Linux). Shared pages count in each process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from phalanx.data import load_data

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "folder_memory.json"
CLASSES = 10
LIMIT = 1.10
"""The larger folder's peak over the smaller one's."""

EPOCH = """
import sys, phalanx
phalanx.train(
    {
        "data": {"use": "folder", "root": sys.argv[1], "image_size": 96, "workers": 2},
        "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
        "training": {"epochs": 1, "batch_size": 16},
    },
    out=sys.argv[2],
)
"""


def main() -> None:
    """Measure both folders and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-class", type=int, default=12, help="of the smaller folder")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    maker = _maker()
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for count in (asked.per_class, 10 * asked.per_class):
            folders[count * CLASSES] = Path(place) / str(count)
            maker.make(
                load_data("digits"), folders[count * CLASSES], classes=CLASSES, per_class=count
            )
        peaks = {
            images: sorted(
                _peak(folder, Path(place) / f"run-{images}-{turn}") for turn in range(asked.repeat)
            )
            for images, folder in folders.items()
        }
    middle = [values[len(values) // 2] for values in peaks.values()]
    ratio = middle[1] / middle[0]
    rows = [{"images": n, "peak_mib": values} for n, values in peaks.items()]
    result = {"rows": rows, "ratio_of_medians": round(ratio, 3), "limit": LIMIT}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(ratio > LIMIT)


def _maker() -> ModuleType:
    path = ROOT / "examples" / "make_photos.py"
    spec = importlib.util.spec_from_file_location("make_photos", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _peak(folder: Path, out: Path) -> float:
    """MiB of a process that trains an epoch, its workers included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen([sys.executable, "-c", EPOCH, folder, out], env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_resident(pid) for pid in _family(process.pid)))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return round(peak / 1024, 1)


def _family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has just ended
        return []
    return [pid, *map(int, children.split())]


def _resident(pid: int) -> int:
    """KiB that a process has in memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


if __name__ == "__main__":
    main()
