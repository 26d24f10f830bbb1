"""CLM from checkpoints: one each, gone on with when the files are no longer there."""

import json

import timm
import torch
from safetensors.torch import save_file

import phalanx
import phalanx.nn  # registers our backbones in timm

STILL = {"name": "adam", "lr": 1e-30}


def config(sources):
    return {
        "data": {"use": "digits", "limit": 64},
        "defense": {"use": "clm", "params": {"members": 2, "backbone": "small_cnn"}},
        "init": {"from": sources},
        "training": {
            "optimizer": STILL,
            "batch_size": 32,
            "phases": {"ulm/*": {"epochs": 1}, "clm": {"epochs": 2}},
        },
    }


def test_one_checkpoint_each_survives_in_the_run_folder(tmp_path):
    """The second sub-model is trained after the stop, and must not be a random one then."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    given = []
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        given.append(timm.create_model("small_cnn", num_classes=7, in_chans=1).state_dict())
        save_file(given[-1], file)
    part = phalanx.train(config(files), out=tmp_path / "run", time_budget=0.0)
    assert not part.finished
    for file in files:
        file.unlink()
    run = phalanx.train(tmp_path / "run" / "config.json", out=tmp_path / "run", resume=True)
    for member, tensors in zip(run.model.members, given, strict=True):
        own = member.backbone.state_dict()
        names = [name for name in tensors if tensors[name].ndim == 4][1:]  # PRSE moves the first
        assert names
        assert all(torch.equal(own[name], tensors[name]) for name in names)
    assert [entry["members"] for entry in _manifest(run)["init"]] == [[0], [1]]


def _manifest(run):
    return json.loads((run.path / "manifest.json").read_text())
