"""Killed at random moments with SIGKILL and resumed, a run ends in bit-identical weights."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from phalanx.training.files import read_tensors, sha256

COMMON = ["--set", "data.limit=400", "--set", "defense.params.backbone=small_cnn"]
CASES = {
    "pdd": [
        "pdd", *COMMON, "--set", "training.epochs=6",
        "--set", 'training.adversarial={attack={use="pgd",params={steps=3}}}',
    ],
    "clm": [
        "clm", *COMMON, "--set", "defense.params.members=3",
        "--set", 'training.phases={"ulm/*"={epochs=3},clm={epochs=9}}',
        "--set", "training.batch_size=16",
    ],
    "averaged-best": [
        "pgd-at", *COMMON, "--set", "training.epochs=12", "--set", "training.batch_size=32",
        "--set", "data.validation=0.1", "--set", "training.ema=0.9",
        "--set", "training.select=best-validation",
        "--set", 'defense.params.attack={use="pgd",params={steps=2}}',
    ],
}  # fmt: skip


def start(case, out, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "phalanx.cli", "train", *CASES[case], "--out", str(out), *more],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_and_resumed_ends_in_the_same_weights(tmp_path, case):
    finish(start(case, tmp_path / "whole"))
    moments = random.Random(case)  # the same moments in every run of the tests
    kills = 0
    for _ in range(3):
        process = start(case, tmp_path / "parts", "--resume", "--checkpoint-seconds", "0.05")
        _wait_for_new_checkpoint(process, tmp_path / "parts")
        time.sleep(moments.uniform(0.0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2, "the run ended before it could be killed; make it longer"
    finish(start(case, tmp_path / "parts", "--resume"))
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert sha256(whole) == sha256(parts)
    assert read_tensors(whole)[1] == read_tensors(parts)[1]
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert _without_times(logs[0]) == _without_times(logs[1])


def _wait_for_new_checkpoint(process, out):
    before = _stamp(out)
    while process.poll() is None and _stamp(out) == before:
        time.sleep(0.02)


def _stamp(out):
    try:
        return (out / "state.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _without_times(log):
    import json

    lines = [json.loads(line) for line in log.splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
