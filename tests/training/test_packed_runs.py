"""Runs whose weights are stored without their zeros are loaded, converted and begun from as any."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import phalanx
from phalanx import cli
from phalanx.data import load_data
from phalanx.errors import ArtifactError
from phalanx.nn.weights import read_weights
from phalanx.runfile import read_run
from phalanx.training import files
from phalanx.training.artifacts import WEIGHTS, build_model, open_run, shipped, write_weights
from phalanx.training.checkpoint import Checkpoints

RUN = {
    "data": {"use": "digits", "limit": 64},
    "defense": {
        "use": "none",
        "params": {"backbone": {"use": "small_cnn", "params": {"width": 16}}},
    },
    "training": {"epochs": 1, "batch_size": 64},
}


def pruned():
    """A model of `RUN` with three quarters of its convolutions' filters at zero."""
    config, task = read_run(RUN), load_data("digits").task
    model = build_model(config, task)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                part.weight[len(part.weight) // 4 :] = 0.0
    return config, task, model


@pytest.fixture
def folder(tmp_path):
    config, task, model = pruned()
    write_weights(tmp_path / "pruned", model, config, task, {})
    return tmp_path / "pruned"


def test_the_file_is_packed_and_says_so(folder):
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = json.loads(file.metadata()["phalanx"])
        packed = [name for name in file.keys() if name.endswith("/groups")]  # noqa: SIM118  # no dict
    assert header["format"] == "phalanx/1"
    assert header["sparse"]["version"] == 1
    assert packed
    assert {name.removesuffix("/groups") for name in packed} == set(header["sparse"]["tensors"])


def test_a_packed_run_is_loaded_bit_for_bit(folder):
    expected = shipped(pruned()[2])
    for path in (folder, folder / WEIGHTS):
        found = shipped(phalanx.load(path))
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert open_run(folder).sha256 == manifest["sha256"] == files.sha256(folder / WEIGHTS)


def test_a_packed_file_is_read_as_anybodys(folder):
    found = read_weights(folder / WEIGHTS)
    expected = shipped(pruned()[2])
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.items())
    assert set(found.metadata) == {"format", "config", "task"}
    assert found.sha256 == files.sha256(folder / WEIGHTS)


def test_a_run_as_before_groups_is_loaded(folder):
    config, task, model = pruned()
    header = {
        "format": "phalanx/1",
        "config": config.model_dump_json(),
        "task": task.model_dump_json(),
    }
    size = (folder / WEIGHTS).stat().st_size
    digest = files.write_tensors(folder / WEIGHTS, shipped(model), header)
    assert (folder / WEIGHTS).stat().st_size > size
    found = shipped(open_run(folder / WEIGHTS).model)
    assert all(torch.equal(found[name], value) for name, value in shipped(model).items())
    assert open_run(folder / WEIGHTS).sha256 == digest


def test_packed_weights_are_converted_to_plain_ones(folder, tmp_path, capsys):
    out = tmp_path / "plain.safetensors"
    assert cli.main(["convert", str(folder / WEIGHTS), str(out)]) == 0
    expected = shipped(pruned()[2])
    with safe_open(out, framework="pt") as file:
        assert set(file.keys()) == set(expected)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in expected.items())


@pytest.mark.parametrize("source", ["folder", "file"])
def test_a_run_begins_from_a_packed_one(folder, tmp_path, source):
    path = folder if source == "folder" else folder / WEIGHTS
    run = phalanx.train({**RUN, "init": {"from": str(path)}}, out=tmp_path / "second")
    tensors, _ = files.read_tensors(tmp_path / "second/phases/00-init.safetensors")
    expected = shipped(pruned()[2])
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert run.finished


def test_a_packed_slice_comes_back(tmp_path):
    state = pruned()[2].state_dict()
    checkpoints = Checkpoints.open(tmp_path, config_hash="c", threads=1)
    checkpoints.finish("fit", state, log_bytes=0, forwards=0, backwards=0, examples=0)
    (done,) = Checkpoints.open(tmp_path, config_hash="c", threads=1).state.finished
    plain = sum(value.nbytes for value in state.values())
    assert (tmp_path / done.file).stat().st_size < plain
    found = checkpoints.load_slice(done)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_packed_run_that_is_damaged_is_refused(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged: its sha256 is"):
        phalanx.load(folder)
