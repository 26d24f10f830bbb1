"""A disk that is full at any write: one message, nothing lost, and the same weights afterwards."""

import errno
import os

import pytest

import phalanx
from phalanx.errors import StorageError
from phalanx.training.files import sha256

CONFIG = {
    "seed": 1,
    "data": {"use": "digits", "limit": 64},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"name": "adam", "lr": 0.01},
    },
}


class Disk:
    """Lets so many writes through, then is full."""

    def __init__(self, monkeypatch):
        self.left, self.writes = None, 0
        fsync = os.fsync

        def guarded(descriptor):
            self.writes += 1
            if self.left is not None:
                if self.left == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.left -= 1
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", guarded)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return phalanx.train(CONFIG, out=tmp_path_factory.mktemp("whole") / "run", checkpoint_seconds=0)


def test_full_at_any_write_and_gone_on_with(tmp_path, disk, whole):
    disk.left = 10**6
    phalanx.train(CONFIG, out=tmp_path / "counted", checkpoint_seconds=0)
    writes = disk.writes
    assert writes > 15  # state, config, a checkpoint and state a batch, slice, weights, manifest
    for count in (0, 1, 2, 3, 7, writes - 4, writes - 2, writes - 1):
        folder = tmp_path / str(count)
        disk.left = count
        with pytest.raises(StorageError) as caught:
            phalanx.train(CONFIG, out=folder, checkpoint_seconds=0)
        assert str(caught.value).endswith(
            f" cannot be written: the disk is full; what {folder} holds is kept: make space, then "
            "go on with --resume"
        )
        assert caught.value.exit_code == 1
        hidden = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
        assert hidden == []
        disk.left = None
        run = phalanx.train(CONFIG, out=folder, resume=True, checkpoint_seconds=0)
        assert run.sha256 == whole.sha256, count
        assert sha256(folder / "weights.safetensors") == whole.sha256
        assert [line["epoch"] for line in run.metrics] == [1, 2]


def test_a_full_disk_while_an_epoch_is_logged(tmp_path, monkeypatch, whole):
    from phalanx.training import trainer

    def full(path, line):
        raise StorageError(f"{path} cannot be written: the disk is full")

    monkeypatch.setattr(trainer, "append_line", full)
    with pytest.raises(
        StorageError, match=r"metrics\.jsonl cannot be written: the disk is full; w"
    ):
        phalanx.train(CONFIG, out=tmp_path / "run", checkpoint_seconds=0)
    monkeypatch.undo()
    run = phalanx.train(CONFIG, out=tmp_path / "run", resume=True)
    assert run.sha256 == whole.sha256
    assert [line["epoch"] for line in run.metrics] == [1, 2]


def test_unfinished_files_of_a_killed_process_are_cleared(tmp_path):
    phalanx.train(CONFIG, out=tmp_path / "run", time_budget=0.0)
    litter = [tmp_path / "run" / ".state.json.x.part", tmp_path / "run/phases/.01.x.part"]
    litter[1].parent.mkdir(exist_ok=True)
    for path in litter:
        path.touch()
    phalanx.train(CONFIG, out=tmp_path / "run", resume=True)
    assert not any(path.exists() for path in litter)
