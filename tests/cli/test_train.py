"""`phalanx train`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from phalanx import cli

SMALL = ["--set", "defense.params.backbone=small_cnn", "--set", "data.limit=64"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """``phalanx train …`` in an empty folder: exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main(["train", *arguments])
        return Done(code, *capsys.readouterr())

    return run


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def test_a_run_and_its_repetition(tmp_path, train):
    (tmp_path / "none").mkdir()  # a folder of the defense's name is no run file
    arguments = ["none", *SMALL, "--set", "training.epochs=2", "--out", "run"]
    done = train(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["finished"]
    assert result["epochs"] == 2
    assert "fit 2/2" in done.stderr
    again = train(*arguments)
    assert again.returncode == 2
    assert again.stderr.strip().endswith(
        "run already holds a run; go on with --resume (resume=True), or choose another --out"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pddd", "--out", "q"], "unknown defense 'pddd'; did you mean 'pdd'?"),
        (["nowhere.toml", "--out", "q"], "nowhere.toml: 1 problem\n  there is no such file"),
        (["none", "--out", "q", "--time-budget", "soon"], "--time-budget: 'soon' is no duration"),
        (["none", "--out", "q", "--set", "data=1", "--data", "mnist"], "contradicts an earlier"),
        (["none", "--out", "q", "--set", "training.epoch=1"], "did you mean 'epochs'?"),
        (["none", "--out", "q", "--data", "mnist", "--data-root", "empty"], "mnist"),
        (
            [
                "pgd-at",
                "--out",
                "q",
                "--set",
                "defense.params.attack.use=pgd",
                "--set",
                "defense.params.attack.params.threat=linf:1.5",
            ],
            "defense.params.attack.params.threat",
        ),
        (["none", "--out", "q", "--set", "data.limit=999999"], "999999"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(tmp_path, train, arguments, message):
    done = train(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "q").exists()


def test_a_run_folder_is_no_run_file(tmp_path, train):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    done = train("run", "--resume", "--out", "run")
    told = "error: run is a run folder; go on with run/config.json --resume"
    assert (done.returncode, done.stderr.strip()) == (2, told)


def test_an_out_that_is_a_file_is_told(tmp_path, train):
    (tmp_path / "taken").write_text("mine")
    done = train("none", *SMALL, "--out", "taken")
    told = "error: --out taken is a file; name a folder for the results"
    assert (done.returncode, done.stderr.strip()) == (2, told)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_a_checkpoint_and_exits_130(tmp_path, number):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "phalanx.cli",
            "train",
            "none",
            *SMALL,
            "--set",
            "training.epochs=100000",
            "--checkpoint-seconds",
            "0",
            "--out",
            "run",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "state.json").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        "interrupted: the last checkpoint is kept; go on with: phalanx train run/config.json "
        "--resume --out run"
    )
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["running"]["phase"] == "fit"
