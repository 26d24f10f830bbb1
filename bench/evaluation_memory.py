"""Peak memory of an evaluation of 1,000 images and of 10,000.

    python -m bench.evaluation_memory           # writes bench/results/evaluation_memory.json

An untrained network on CIFAR-10's test images, labelled with its own answers so that the checks'
subset is 256 images in both, is attacked by FGSM and by PGD of two steps, judged on a second
network's examples and examined by the checks of tier core; examples are kept on disk. Each
evaluation runs in a process of its own, where glibc gives freed memory back at once
(``MALLOC_MMAP_THRESHOLD_``), so that the peak (``ru_maxrss``) is of what is held. It is told beside
what the additional images would take as float32: an evaluation that held them, or their examples,
would grow by that for each copy. Needs ``$PHALANX_DATA``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from phalanx.training.files import write_json

RESULT = Path(__file__).parent / "results" / "evaluation_memory.json"
COUNTS = (1000, 10000)
SHAPE = (3, 32, 32)
LARGEST = 0.25
"""Growth over the additional images' own size; a whole copy of them would be 1."""

ONE = """
import resource, sys
import torch
import phalanx
from phalanx.data import default_root, load_data
from phalanx.data.sets import ArraySplit, Data
from phalanx.nn.backbones.small_cnn import small_cnn

torch.set_num_threads(1)
torch.manual_seed(0)
network = small_cnn(in_chans=3, width=8).eval()
data = load_data("cifar10", root=default_root())
with torch.no_grad():
    parts = torch.arange(len(data.test)).split(500)
    labels = torch.cat([network(data.test.fetch(rows).x).argmax(1) for rows in parts])
test = ArraySplit(data.test.images, labels)
phalanx.evaluate(
    network,
    Data(data.task, data.train, data.validation, test, data.threat),
    attacks=["fgsm", "pgd:steps=2"],
    threat="linf:0.01",
    limit=int(sys.argv[1]),
    surrogates={"other": small_cnn(in_chans=3, width=4)},
    keep_examples=True,
    checks="core",
    out=sys.argv[2],
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(count: int) -> float:
    """MiB that the evaluation of so many images has in memory at most.

    Raises:
        SystemExit: with its last words, if it fails.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    with tempfile.TemporaryDirectory() as out:
        asked = [sys.executable, "-c", ONE, str(count), out]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(done.stdout.split()[-1]) / 1024


def result(peaks: dict[int, list[float]]) -> dict[str, Any]:
    """Peaks, the growth of their medians, and the additional images' size, in MiB."""
    (few, least), (many, most) = ((n, sorted(v)[len(v) // 2]) for n, v in sorted(peaks.items()))
    size = (many - few) * math.prod(SHAPE) * 4 / 2**20
    return {
        "rows": [
            {"images": n, "peak_mib": [round(v, 1) for v in found]} for n, found in peaks.items()
        ],
        "growth_mib": round(most - least, 1),
        "additional_images_mib": round(size, 1),
        "growth_over_images": round((most - least) / size, 3),
        "limit": LARGEST,
    }


def main() -> None:
    """Measure, write, and end with 1 if memory grows with the images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    peaks = {count: [peak(count) for _ in range(asked.repeat)] for count in COUNTS}
    found = result(peaks)
    write_json(asked.out, found)
    print(json.dumps(found))
    sys.exit(found["growth_over_images"] > LARGEST)


if __name__ == "__main__":
    main()
