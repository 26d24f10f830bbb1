"""Two processes on one evaluation: how much sooner they are done than one.

    python -m bench.shards

The adversarially trained MNIST network is attacked by APGD-CE on 2,500 images, by one process and
then by two of one thread each that share a folder (``--shard``). Timed from where all have loaded
model and data until the last one has the whole report; the reports must be equal. Needs
``$PHALANX_WEIGHTS`` and ``$PHALANX_DATA``.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

IMAGES = 2500
ATTACK = "apgd-ce:steps=100"
RESULTS = Path(__file__).parent / "results"


def work(folder: str, i: int, n: int, ready: Barrier, answers: Any) -> None:
    """One process: its rows, and when it began and ended."""
    torch.set_num_threads(1)
    import phalanx
    from bench.networks import CASES, load
    from phalanx.data import default_root, load_data

    case = CASES["mnist"]
    model = load(case).network
    data = load_data(case.data, root=default_root())
    ready.wait()
    begun = time.time()
    report = phalanx.evaluate(
        model,
        data,
        attacks=[ATTACK],
        threat=case.threats[0],
        limit=IMAGES,
        out=folder,
        shard=(i, n),
    )
    rows = [row.model_dump(mode="json") for row in report.rows]
    answers.put((begun, time.time(), rows))


def timed(n: int) -> tuple[float, list[Any]]:
    """Seconds from the first one's start to the last one's end, and the rows of each process."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(n), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=work, args=(folder, i, n, ready, answers))
            for i in range(1, n + 1)
        ]
        for process in processes:
            process.start()
        found = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    return max(end for _, end, _ in found) - min(start for start, _, _ in found), [
        rows for *_, rows in found
    ]


def main() -> None:
    """Measure, print, and write ``bench/results/shards.json``."""
    one, alone = timed(1)
    two, shared = timed(2)
    same = all(rows == alone[0] for rows in shared)
    found = {
        "images": IMAGES,
        "attack": ATTACK,
        "seconds_one_process": round(one, 1),
        "seconds_two_processes": round(two, 1),
        "ratio": round(two / one, 3),
        "same_rows": same,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shards.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
