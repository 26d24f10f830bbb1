"""One process at a time trains in a folder; locks end with their process."""

import os
import signal
import subprocess
import sys

import pytest

import phalanx
from phalanx.errors import OutputError
from phalanx.training.lock import LOCK, locked

CONFIG = {
    "data": {"use": "digits", "limit": 32},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {"epochs": 1, "batch_size": 32},
}

HOLD = """
import sys, time
from pathlib import Path
from phalanx.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_is_refused_and_changes_nothing(tmp_path, resume):
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(OutputError) as caught:
            phalanx.train(CONFIG, out=folder, resume=resume)
        assert str(caught.value) == (
            f"{folder} is being trained by process {os.getpid()}; wait for it, or choose another "
            "--out"
        )
        assert caught.value.exit_code == 2
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert phalanx.train(CONFIG, out=folder, resume=resume).finished
    assert not (folder / LOCK).exists()


def test_a_finished_run_needs_no_lock(tmp_path):
    run = phalanx.train(CONFIG, out=tmp_path / "run")
    with locked(run.path):
        assert phalanx.train(CONFIG, out=run.path, resume=True).sha256 == run.sha256


def test_a_killed_process_leaves_a_lock_that_nobody_holds(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=f"by process {process.pid};"), locked(folder):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (folder / LOCK).exists()
    with locked(folder):
        assert (folder / LOCK).read_text() == f"{os.getpid()}\n"
    assert not (folder / LOCK).exists()


FORK = """
import os, sys, time
from pathlib import Path
from phalanx.training.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_process_is_waited_for_until_its_workers_have_ended(tmp_path):
    """They inherit the lock, and end a moment after it."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text() == f"{os.getpid()}\n"
    process.communicate()


def test_empty_folders_that_were_made_are_removed(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "result"]
