"""An evaluation that is killed at a random moment and repeated: what is lost, and what comes out.

    python -m bench.kills               # 20 moments; writes bench/results/kills.json

One ``phalanx evaluate`` (a LeNet-5 trained on 10,000 images of MNIST, four attacks on three blocks
of images, kept examples and the checks of tier core) runs undisturbed. Then, for each moment, the
same command is started in an empty folder, killed by SIGKILL at that moment, and started again.
Counted are finished files that the second process writes anew, which would be work done twice, and
differences of its report from the undisturbed one, times and dates left out.

Moments are uniform over the undisturbed run, from a generator seeded with 0. Needs
``$PHALANX_DATA``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import phalanx
from phalanx.training.files import write_json

RESULT = Path(__file__).parent / "results" / "kills.json"
RUN = {
    "data": {"use": "mnist", "limit": 10000},
    "defense": {"use": "none", "params": {"backbone": "lenet5"}},
    "training": {"epochs": 1, "batch_size": 64},
}
ATTACKS = ("apgd-ce:steps=100", "apgd-dlr:steps=20", "square:queries=100", "fgsm")
LIMIT = 520
KEPT = ("cells", "checks", "examples", "samples")
"""Folders of finished work."""
TIMES = frozenset({"date", "latency"})
"""Keys of a report that are not the same twice."""
Marks = dict[str, tuple[int, int]]


def command(run: Path, out: Path) -> list[str]:
    """The evaluation, as a person types it."""
    told = ["evaluate", str(run), "--norm", "linf", "--eps", "0.1", "--limit", str(LIMIT)]
    for attack in ATTACKS:
        told += ["--attack", attack]
    kept = ["--checks", "core", "--keep-examples", "--out", str(out)]
    return [sys.executable, "-m", "phalanx.cli", *told, *kept]


def started(run: Path, out: Path) -> subprocess.Popen[bytes]:
    """One process of it, on one thread; what it prints is kept beside the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command(run, out), env=environment, stdout=log, stderr=log)


def finished(run: Path, out: Path) -> Any:
    """Run to the end; the report.

    Raises:
        SystemExit: with the command's last words, if it fails.
    """
    if started(run, out).wait():
        raise SystemExit(out.with_suffix(".log").read_text()[-2000:])
    return json.loads((out / "report.json").read_text())


def killed(run: Path, out: Path, seconds: float) -> int | None:
    """Start, kill after so many seconds; the exit status, None where it had ended before."""
    process = started(run, out)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()
    return None


def marks(out: Path) -> Marks:
    """Finished files and when each was written, with its number on the disk."""
    files = [path for name in KEPT for path in (out / name).glob("*.*") if path.is_file()]
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in files
        if not path.name.startswith(".")
    }


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places in which two reports differ; times and dates are left out."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        for key in a.keys() & b.keys() - TIMES:
            found += differences(a[key], b[key], f"{where}/{key}")
        return sorted(found)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            place
            for number, (one, other) in enumerate(zip(a, b))
            for place in differences(one, other, f"{where}/{number}")
        ]
    return [] if a == b else [where]


def main() -> None:
    """Measure, print a line for each moment, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    moments = random.Random(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        phalanx.train(RUN, out=run)
        begun = time.monotonic()
        whole = finished(run, Path(place) / "whole")
        seconds = time.monotonic() - begun
        files = len(marks(Path(place) / "whole"))
        for number in range(asked.kills):
            out, moment = Path(place) / f"killed-{number}", moments.uniform(0.0, seconds)
            status = killed(run, out, moment)
            before = marks(out)
            differing = differences(whole, finished(run, out))
            after = marks(out)
            again = sum(after.get(name) != mark for name, mark in before.items())
            rows.append(
                {
                    "second": round(moment, 2),
                    "killed": status == -signal.SIGKILL,
                    "files_there": len(before),
                    "files_written_again": again,
                    "differences": differing,
                }
            )
            print(rows[-1], flush=True)
            shutil.rmtree(out)
            write_json(asked.out, _result(seconds, files, rows))
    print(json.dumps({k: v for k, v in _result(seconds, files, rows).items() if k != "rows"}))
    sys.exit(any(row["differences"] or row["files_written_again"] for row in rows))


def _result(seconds: float, files: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "attacks": ATTACKS,
        "images": LIMIT,
        "seconds_undisturbed": round(seconds, 1),
        "files": files,
        "kills": sum(row["killed"] for row in rows),
        "reports_that_differ": sum(bool(row["differences"]) for row in rows),
        "files_written_again": sum(row["files_written_again"] for row in rows),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
