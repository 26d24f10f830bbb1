"""Killed at random moments with SIGKILL and resumed, a run ends in bit-identical weights."""

import json
import random
import signal
import time

import pytest

from phalanx import cli
from phalanx.training.files import read_tensors, sha256

COMMON = ["--set", "data.limit=400", "--set", "defense.params.backbone=small_cnn"]
CASES = {
    "pdd": [
        "pdd", *COMMON, "--set", "training.epochs=5",
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


def arguments(case, out, *more):
    return [*CASES[case], "--out", str(out), *more]


def finish(case, out, *more):
    assert cli.main(["train", *arguments(case, out, *more)]) == 0


@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_and_resumed_ends_in_the_same_weights(tmp_path, case, in_background):
    finish(case, tmp_path / "whole")
    moments = random.Random(case)  # the same moments in every run of the tests
    kills = 0
    for _ in range(2):
        process = in_background(
            *arguments(case, tmp_path / "parts", "--resume", "--checkpoint-seconds", "0.05")
        )
        _wait_for_new_checkpoint(process, tmp_path / "parts")
        time.sleep(moments.uniform(0.0, 0.4))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 2, "the run ended before it could be killed; make it longer"
    finish(case, tmp_path / "parts", "--resume")
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert sha256(whole) == sha256(parts)
    assert read_tensors(whole)[1] == read_tensors(parts)[1]
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert _without_times(logs[0]) == _without_times(logs[1])


def _wait_for_new_checkpoint(process, out):
    before = _stamp(out)
    while process.is_alive() and _stamp(out) == before:
        time.sleep(0.02)


def _stamp(out):
    try:
        return (out / "state.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _without_times(log):
    lines = [json.loads(line) for line in log.splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
