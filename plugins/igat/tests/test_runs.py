"""Whole runs of iGAT on digits: with zero weights the base's own, and begun with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import phalanx
from phalanx.api import ConfigError, Task
from phalanx.data import load_data
from phalanx.runfile import read_run
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.init import starting
from phalanx_igat.config import IGATConfig
from phalanx_igat.defense import IGAT, MaxEnsemble

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
SMALL = {"members": 2, "backbone": {"use": "small_cnn", "params": {"width": 2}}}
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
BASES = {
    "adp": {"use": "adp", "params": {**SMALL, "attack": PGD}},
    "adp-plain": {"use": "adp", "params": SMALL},
    "pdd": {"use": "pdd", "params": {**SMALL, "variant": "pdd+deg"}},
    "dverge": {"use": "dverge", "params": {**SMALL, "steps": 2, "attack": PGD}},
}


def config(base: str, *, igat: bool = True, **more: Any) -> dict[str, Any]:
    """A run of two short epochs over digits, of a base or of iGAT over it."""
    defense = BASES[base]
    if igat:
        params = {"base": defense, "attack": PGD, **more.pop("params", {})}
        defense = {"use": "igat", "params": params}
    return {
        "data": {"use": "digits", "limit": 40},
        "defense": defense,
        "training": {"epochs": 2, "batch_size": 16},
        **more,
    }


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("base", ["adp", "adp-plain", "pdd", "dverge"])
def test_zero_weights_train_the_base_bit_for_bit(base: str, tmp_path: Path) -> None:
    """All phases, the whole run: every loss in the log and every weight."""
    own = phalanx.train(config(base, igat=False), out=tmp_path / "base")
    zero = {"alpha": 0.0, "beta": 0.0, "pretrain": True}
    ours = phalanx.train(config(base, params=zero), out=tmp_path / "igat")
    assert same(own.model, ours.model)
    untimed = [[{**line, "seconds": 0} for line in run.metrics] for run in (own, ours)]
    assert untimed[0] == untimed[1]


def test_without_a_trained_ensemble_it_says_what_to_write(tmp_path: Path) -> None:
    message = (
        r"init: iGAT fine-tunes a trained ensemble: add \[init\] with from = the folder of a run"
        r" of 'adp', or set defense\.params\.pretrain = true"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        phalanx.train(config("adp"), out=tmp_path / "run")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("combiner", ["average", "max"])
def test_it_begins_with_exactly_the_bases_weights(combiner: str, tmp_path: Path) -> None:
    """Of networks with batch normalisation: its buffers too."""
    backbone = {"use": "resnet20_cifar", "params": {"width": 2}}
    base = {"use": "adp", "params": {"members": 2, "backbone": backbone}}
    run = {**config("adp", igat=False), "defense": base}
    trained = phalanx.train(run, out=tmp_path / "base")
    params = {"base": base, "attack": PGD, "combiner": combiner}
    ours = {**run, "defense": {"use": "igat", "params": params}, "init": {"from": trained.path}}
    checkpoints = Checkpoints.open(tmp_path, config_hash="none", threads=1)
    data = load_data("digits", limit=40)
    begun = starting(read_run(ours), data.task, checkpoints).model
    assert same(trained.model, begun)
    assert any(name.endswith("running_var") for name in begun.state_dict())
    finished = phalanx.train(ours, out=tmp_path / "igat")
    assert not same(trained.model, finished.model)
    assert [line["phase"] for line in finished.metrics] == ["adp", "adp"]
    again = phalanx.load(finished.path)
    assert same(again, finished.model)
    assert isinstance(again, MaxEnsemble) is (combiner == "max")


def test_fine_tuning_with_zero_weights_is_the_base_gone_on(tmp_path: Path) -> None:
    base = phalanx.train(config("adp", igat=False), out=tmp_path / "base")
    init = {"from": base.path}
    on = phalanx.train(config("adp", igat=False, init=init, seed=4), out=tmp_path / "on")
    zero = config("adp", params={"alpha": 0, "beta": 0}, init=init, seed=4)
    assert same(on.model, phalanx.train(zero, out=tmp_path / "zero").model)
    full = phalanx.train(config("adp", init=init, seed=4), out=tmp_path / "full")
    assert not same(on.model, full.model)


def test_with_pretraining_the_bases_own_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is trained first then: if it needs weights, so does iGAT."""
    settings = {"base": BASES["adp"], "attack": PGD, "pretrain": True}
    defense = IGAT(IGATConfig.model_validate(settings), TASK)
    assert defense.warm_start_reason == ""
    monkeypatch.setattr(type(defense.base), "warm_start_reason", "write init.from")
    assert defense.warm_start_reason == "write init.from"
