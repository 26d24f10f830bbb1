"""A phase with ``epochs = 0`` begins and ends and takes no step."""

import json

import pytest
import torch

import phalanx
from phalanx import cli
from phalanx.config import TrainingConfig
from phalanx.phase import PhaseContext
from phalanx.training.artifacts import build_model
from phalanx.training.files import read_json

CONFIG = {
    "seed": 1,
    "data": {"use": "digits", "limit": 64},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {"epochs": 0, "batch_size": 32},
}


def same(one, two):
    own, other = one.state_dict(), two.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    "training",
    [{}, {"ema": 0.9}, {"select": "best-validation"}, {"ema": 0.9, "select": "best-validation"}],
)
def test_the_model_is_as_it_was_built(tmp_path, training):
    config = {
        **CONFIG,
        "data": {"use": "digits", "limit": 64, "validation": 0.2},
        "training": {**CONFIG["training"], **training},
    }
    run = phalanx.train(config, out=tmp_path / "run")
    assert run.finished
    assert run.metrics == ()
    assert same(run.model, build_model(run.config, run.task))
    (phase,) = read_json(run.path / "manifest.json")["phases"]
    assert (phase["forwards"], phase["backwards"], phase["examples"]) == (0, 0, 0)
    assert "selected" not in phase
    assert same(phalanx.load(run.path), run.model)
    again = phalanx.train(run.path / "config.json", out=run.path, resume=True)
    assert again.sha256 == run.sha256


def test_a_phase_that_is_done_is_skipped(tmp_path):
    source = phalanx.train(
        {**CONFIG, "training": {"epochs": 1, "batch_size": 32}}, out=tmp_path / "source"
    )
    run = phalanx.train({**CONFIG, "init": {"from": str(source.path)}}, out=tmp_path / "run")
    assert same(run.model, source.model)


class Stop(Exception):
    pass


class StopAfter:
    """Ends a training as a kill does, at a batch."""

    def __init__(self, batches):
        self.left = batches

    def phase_started(self, phase, *, epochs, batches, done):
        pass

    def batch_finished(self, phase):
        self.left -= 1
        if not self.left:
            raise Stop

    def epoch_finished(self, metrics):
        pass


def test_the_phase_after_it_is_resumed(tmp_path):
    config = {
        **CONFIG,
        "defense": {
            "use": "pruned",
            "params": {
                "base": {"use": "none", "params": {"backbone": "small_cnn"}},
                "pruner": {"use": "irregular", "params": {"rate": 2}},
            },
        },
        "training": {"epochs": 1, "batch_size": 16, "phases": {"fit": {"epochs": 0}}},
    }
    pytest.importorskip("phalanx_admm")
    whole = phalanx.train(config, out=tmp_path / "whole")
    assert [line["phase"] for line in whole.metrics] == ["fit/retrain"]
    with pytest.raises(Stop):
        phalanx.train(config, out=tmp_path / "p", checkpoint_seconds=0, progress=StopAfter(3))
    resumed = phalanx.train(config, out=tmp_path / "p", resume=True)
    assert same(whole.model, resumed.model)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["none", "--set", "data.limit=64", "--set", "training.epochs=0", "--out", "run"]
    assert cli.main(["train", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["finished"], result["epochs"]) == (True, 0)


def test_negative_epochs_are_none():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TrainingConfig(epochs=-1)


def test_progress_of_no_steps_is_a_number():
    class Context(PhaseContext):
        def generator(self, *purpose):
            raise LookupError

        def batch(self, stream):
            raise LookupError

        def minimise(self, loss, *groups):
            raise LookupError

    ctx = Context()
    ctx.epoch, ctx.index, ctx.batches = 0, 0, 4
    ctx.phase = type("Phase", (), {"epochs": 0})()
    assert ctx.progress == 0.0
