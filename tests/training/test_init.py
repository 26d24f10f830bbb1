"""Warm starts of whole runs: from files, lists and runs; manifests, resumes and refusals."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import phalanx
import phalanx.nn  # registers our backbones in timm
from phalanx.errors import ArtifactError, ConfigError
from phalanx.training.files import read_json, read_tensors, sha256
from phalanx.training.standard import Undefended

FROZEN = {"name": "sgd", "lr": 1e-30}
"""So small a rate that training leaves the weights that a run began with."""


def config(source, *, members=1, backbone="resnet20_cifar", **more):
    small = {"use": backbone, "params": {"width": 4} if backbone == "resnet20_cifar" else {}}
    return {
        "seed": 1,
        "data": {"use": "digits", "limit": 64},
        "defense": {"use": "none", "params": {"members": members, "backbone": small}},
        "training": {"epochs": 1, "batch_size": 32, "optimizer": FROZEN},
        **({} if source is None else {"init": {"from": source}}),
        **more,
    }


def state_dict(file, *, classes=7, channels=1, seed=2, name="resnet20_cifar", **keywords):
    torch.manual_seed(seed)
    own = {"width": 4, **keywords} if name == "resnet20_cifar" else keywords
    tensors = timm.create_model(name, num_classes=classes, in_chans=channels, **own).state_dict()
    save_file(tensors, file)
    return tensors


def same(backbone, tensors, *, but=()):
    """Whether the parameters are those of the file; running statistics move in training."""
    own = dict(backbone.named_parameters())
    kept = [k for k in tensors if k in own and k not in but]
    return all(torch.allclose(own[k], tensors[k], rtol=0, atol=1e-20) for k in kept)


HEAD = ("linear.weight", "linear.bias")


def test_one_file_for_all_members(tmp_path):
    tensors = state_dict(tmp_path / "r20.safetensors")
    run = phalanx.train(config(tmp_path / "r20.safetensors", members=2), out=tmp_path / "run")
    cold = phalanx.train(config(None, members=2), out=tmp_path / "cold")
    for warm, untrained in zip(run.model.members, cold.model.members, strict=True):
        assert same(warm.backbone, tensors, but=HEAD)
        assert torch.equal(warm.backbone.linear.weight, untrained.backbone.linear.weight)
    manifest = read_json(run.path / "manifest.json")
    assert manifest["init"] == [
        {
            "source": "r20.safetensors",
            "sha256": sha256(tmp_path / "r20.safetensors"),
            "members": [0, 1],
            "head": "new",
        }
    ]
    assert manifest["normalization"] == {"mean": [0.3061], "std": [0.3767], "from": "digits"}


def test_a_list_gives_each_member_its_own(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.pth"]
    one = state_dict(files[0], classes=10)
    torch.manual_seed(3)
    two = timm.create_model("resnet20_cifar", num_classes=7, in_chans=3, width=4).state_dict()
    torch.save({"state_dict": two}, files[1])
    run = phalanx.train(config(files, members=2), out=tmp_path / "run")
    assert same(run.model.members[0].backbone, one)
    assert same(run.model.members[1].backbone, two, but=(*HEAD, "conv1.weight"))
    manifest = read_json(run.path / "manifest.json")
    assert [(e["source"], e["members"], e["head"]) for e in manifest["init"]] == [
        ("a.safetensors", [0], "kept"),
        ("b.pth", [1], "new"),
    ]


def test_timms_mean_and_deviation_come_with_its_backbones(tmp_path):
    """Of a backbone that timm has itself; grey images get the mean over the channels."""
    state_dict(tmp_path / "t.safetensors", name="resnet18", channels=3, classes=1000)
    run = phalanx.train(
        config(tmp_path / "t.safetensors", backbone="resnet18"), out=tmp_path / "run"
    )
    (member,) = run.model.members
    assert run.task.mean == pytest.approx((0.449,))
    assert float(member.normalize.mean) == pytest.approx(0.449)
    facts = read_json(run.path / "manifest.json")["normalization"]
    assert facts["from"] == "timm:resnet18"
    (tmp_path / "t.safetensors").unlink()
    alone = phalanx.load(run.path / "weights.safetensors")
    assert alone.task.mean == run.task.mean
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(alone(x), run.model(x))


def test_no_place_of_this_machine_is_shipped(tmp_path):
    state_dict(tmp_path / "r20.safetensors")
    run = phalanx.train(config(tmp_path / "r20.safetensors"), out=tmp_path / "run")
    shipped = json.loads(read_tensors(run.path / "weights.safetensors")[1]["config"])
    digest = sha256(tmp_path / "r20.safetensors")
    assert shipped["init"] == {"from": "r20.safetensors", "sha256": [digest]}
    assert str(tmp_path) not in (run.path / "manifest.json").read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r20.safetensors").rename(tmp_path / "elsewhere" / "other.safetensors")
    moved = config(tmp_path / "elsewhere" / "other.safetensors")
    again = phalanx.train(moved, out=tmp_path / "again")
    hashes = [read_json(r.path / "manifest.json")["config_hash"] for r in (run, again)]
    assert hashes[0] == hashes[1]


def test_a_run_gives_its_whole_model(tmp_path):
    fast = {"epochs": 1, "batch_size": 32}
    first = phalanx.train(config(None, members=2, training=fast), out=tmp_path / "first")
    for source in (first.path, first.path / "weights.safetensors"):
        out = tmp_path / f"from-{source.name}"
        second = phalanx.train(config(source, members=2), out=out)
        for old, new in zip(first.model.members, second.model.members, strict=True):
            assert same(new.backbone, old.backbone.state_dict())
        (entry,) = read_json(out / "manifest.json")["init"]
        assert (entry["source"], entry["members"]) == (source.name, [0, 1])
        assert (entry["head"], entry["sha256"]) == ("kept", first.sha256)


def test_a_run_with_one_member_serves_all(tmp_path):
    first = phalanx.train(config(None), out=tmp_path / "first")
    second = phalanx.train(config(first.path, members=3), out=tmp_path / "second")
    only = first.model.members[0].backbone.state_dict()
    assert all(same(one.backbone, only) for one in second.model.members)
    with pytest.raises(ConfigError, match="second has 3 members, and this defense 2; give a run"):
        phalanx.train(config(second.path, members=2), out=tmp_path / "third")


def test_a_run_brings_its_mean_and_deviation(tmp_path):
    state_dict(tmp_path / "t.safetensors", name="resnet18", channels=3, classes=1000)
    warm = config(tmp_path / "t.safetensors", backbone="resnet18")
    first = phalanx.train(warm, out=tmp_path / "first")
    second = phalanx.train(config(first.path, backbone="resnet18"), out=tmp_path / "second")
    assert second.task.mean == first.task.mean
    assert read_json(second.path / "manifest.json")["normalization"]["from"] == "first"


def test_a_run_that_normalised_otherwise_is_refused(tmp_path):
    first = phalanx.train(config(None), out=tmp_path / "first")
    other = config(first.path)
    other["defense"]["params"]["normalization"] = "none"
    with pytest.raises(ConfigError, match=r"first was trained with 'dataset', .* set normaliz"):
        phalanx.train(other, out=tmp_path / "second")


def test_timms_weights_need_a_normalisation(tmp_path):
    bare = config("timm", backbone="resnet18")
    bare["defense"]["params"]["normalization"] = "none"
    with pytest.raises(
        ConfigError, match=r"timm's weights of 'resnet18' were trained with 'dataset', so its"
    ):
        phalanx.train(bare, out=tmp_path / "run")


def test_sources_that_normalise_differently_are_refused(tmp_path):
    state_dict(tmp_path / "t.safetensors", name="resnet18", channels=1, classes=10)
    warm = phalanx.train(
        config(tmp_path / "t.safetensors", backbone="resnet18"), out=tmp_path / "warm"
    )
    cold = phalanx.train(config(None, backbone="resnet18"), out=tmp_path / "cold")
    mixed = config([warm.path, cold.path], members=2, backbone="resnet18")
    with pytest.raises(ConfigError, match="different normalisations"):
        phalanx.train(mixed, out=tmp_path / "run")


def test_stopped_at_once_and_gone_on_without_the_source(tmp_path):
    """What the run began with is in its folder, so its weights are the same bit for bit."""
    file = tmp_path / "r20.safetensors"
    state_dict(file)
    table = config(file, members=2, training={"epochs": 2, "batch_size": 32})
    whole = phalanx.train(table, out=tmp_path / "whole")
    part = phalanx.train(table, out=tmp_path / "part", time_budget=0.0)
    assert not part.finished
    file.unlink()
    resumed = phalanx.train(tmp_path / "part" / "config.json", out=tmp_path / "part", resume=True)
    assert resumed.sha256 == whole.sha256
    facts = [read_json(run.path / "manifest.json") for run in (whole, resumed)]
    assert facts[0]["init"] == facts[1]["init"]
    assert facts[0]["normalization"] == facts[1]["normalization"]
    again = phalanx.train(table, out=tmp_path / "part", resume=True)
    assert again.sha256 == whole.sha256, "a finished run needs no source"


def test_a_source_that_has_changed_is_refused(tmp_path):
    file = tmp_path / "r20.safetensors"
    state_dict(file)
    table = config(file, training={"epochs": 2, "batch_size": 32})
    phalanx.train(table, out=tmp_path / "run", time_budget=0.0)
    state_dict(file, seed=9)
    for given in (table, tmp_path / "run" / "config.json"):
        with pytest.raises(ArtifactError, match=r"r20\.safetensors is not the file that the conf"):
            phalanx.train(given, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("nowhere.pth", ArtifactError, r"init\.from: .*nowhere\.pth does not exist; give 'timm'"),
        (["a.safetensors"], ConfigError, "1 sources for 2 members; give one for all as text"),
        ("timm", ConfigError, "timm has no pretrained weights of 'resnet20_cifar'"),
        ("wide.safetensors", ArtifactError, r"init\.from, for member 0: .* does not fit ResNet20"),
        (".", ArtifactError, "is no finished run"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, monkeypatch, source, kind, message):
    monkeypatch.chdir(tmp_path)
    state_dict(tmp_path / "a.safetensors")
    state_dict(tmp_path / "wide.safetensors", width=8)
    with pytest.raises(kind, match=message):
        phalanx.train(config(source, members=2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_defense_may_need_a_warm_start(tmp_path, monkeypatch):
    reason = "it fine-tunes: add [init], or set x = true"
    monkeypatch.setattr(Undefended, "warm_start_reason", reason)
    with pytest.raises(ConfigError, match=r"init: it fine-tunes: add \[init\], or set x") as caught:
        phalanx.train(config(None), out=tmp_path / "cold")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "cold").exists()
    state_dict(tmp_path / "r20.safetensors")
    run = phalanx.train(config(tmp_path / "r20.safetensors"), out=tmp_path / "warm")
    assert phalanx.load(run.path).task == run.task  # a trained model needs its start no more
