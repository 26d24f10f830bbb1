"""Checkpoint files of every kind that people have, and networks that they fit or do not."""

from __future__ import annotations

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import phalanx.nn  # noqa: F401  # registers our backbones
from phalanx.errors import ArtifactError
from phalanx.nn.fit import classes_of, classifier_names
from phalanx.nn.weights import load_weights, read_weights
from phalanx.training.files import write_tensors


class Net(nn.Module):
    """A strange classifier, whose last layer may be called anything."""

    def __init__(self, head: str = "fc", classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.add_module(head, nn.Linear(4, classes))

    def state(self) -> dict[str, torch.Tensor]:
        return {name: torch.rand_like(v) if v.ndim else v for name, v in self.state_dict().items()}


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("nesting", [(), ("state_dict",), ("model",), ("net", "model_state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_wherever_it_is(tmp_path, nesting, prefix):
    state = Net().state()
    kept = {f"{prefix}{name}": value for name, value in state.items()}
    for key in reversed(nesting):
        kept = {"epoch": 3, key: kept, "best": 0.5}
    torch.save(kept, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], state[name]) for name in state)
    assert found.metadata == {}


def test_the_content_decides_not_the_ending(tmp_path):
    state = Net().state()
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.bin", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.bin"):
        found = read_weights(tmp_path / name).tensors
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_hash_and_header(tmp_path):
    digest = write_tensors(tmp_path / "a.safetensors", Net().state(), {"format": "phalanx/1"})
    found = read_weights(tmp_path / "a.safetensors")
    assert (found.sha256, found.metadata) == (digest, {"format": "phalanx/1"})
    save_file(Net().state(), tmp_path / "b.safetensors", {"format": "pt", "phalanx": "[1]"})
    assert read_weights(tmp_path / "b.safetensors").metadata == {}


def test_code_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"w": Trap()}, protocol=2))
    torch.save({"state_dict": Net().state(), "args": Namespace(lr=1)}, tmp_path / "b.pth")
    torch.save(Net(), tmp_path / "c.pth")
    told = refused(tmp_path / "a.pth")
    assert "nothing of it was unpickled" in told
    assert not (tmp_path / "sprung").exists()
    assert "holds Python objects (argparse.Namespace) besides tensors" in refused(
        tmp_path / "b.pth"
    )
    told = refused(tmp_path / "c.pth")
    assert "Net) besides tensors, which could run code" in told
    assert "torch.save(model.state_dict(), FILE), which `phalanx convert` takes" in told


def test_files_that_are_no_weights(tmp_path):
    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert refused(tmp_path / "none.pth") == (
        f"{tmp_path / 'none.pth'} does not exist; give a file with a network's weights"
    )
    assert "is a folder; give the file with the weights" in refused(tmp_path)
    assert "is empty; fetch it again" in refused(written("a.safetensors", b""))
    page = written("b.pth", b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>")
    assert "is a web page, not weights" in refused(page)
    pointer = written("c.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    assert "is a Git LFS pointer" in refused(pointer)
    assert "neither a safetensors file nor one that torch.save wrote" in refused(
        written("d.pth", b"weights\n" * 9)
    )
    with zipfile.ZipFile(tmp_path / "e.pth", "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    assert "a zip archive that torch.save did not write (1 files, such as weights.txt)" in (
        refused(tmp_path / "e.pth")
    )
    torch.save([1, 2], tmp_path / "f.pth")
    assert "holds a list, not a state dict" in refused(tmp_path / "f.pth")
    torch.save({"epoch": 1, "encoder": {"w": torch.ones(1)}}, tmp_path / "g.pth")
    assert "holds no tensors under its keys (epoch, encoder)" in refused(tmp_path / "g.pth")
    save_file({}, tmp_path / "h.safetensors")
    assert "holds no tensors; give a file" in refused(tmp_path / "h.safetensors")


def test_files_that_are_cut_short(tmp_path):
    state = Net().state()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for name, told in (
        ("a.safetensors", "is not a whole safetensors file"),
        ("b.pth", "is cut short or damaged"),
        ("c.pth", "is not a whole file of torch.save"),
    ):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-40])
        assert told in refused(file)
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    assert "is not a whole safetensors file" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite(tmp_path, value):
    state = Net().state()
    state["body.0.bias"][1] = value
    state["fc.weight"][0, 0] = value
    save_file(state, tmp_path / "a.safetensors")
    assert "2 of 9 tensors hold NaN or infinity, 'body.0.bias' first" in refused(
        tmp_path / "a.safetensors"
    )


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda t: t.to("meta")])
def test_tensors_that_are_not_plain(tmp_path, change):
    torch.save({"a": torch.ones(2), "b": change(torch.ones(2))}, tmp_path / "w.pt")
    assert "1 of 2 tensors are sparse, quantised or without data, 'b' first" in refused(
        tmp_path / "w.pt"
    )


def test_a_file_that_holds_itself(tmp_path):
    loop: dict[str, object] = {"a": torch.ones(2)}
    loop["model"] = loop
    torch.save(loop, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt").tensors) == ["a"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_a_cast_would_falsify(tmp_path, dtype):
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3))
    state = module.state_dict()
    torch.save({**state, "0.weight": state["0.weight"].to(dtype)}, tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match=rf"1 of another type \(0.weight: found {dtype}, needs"):
        load_weights(module, read_weights(tmp_path / "w.pt"))


def saved(tmp_path: Path, state: dict[str, torch.Tensor]):
    save_file(state, tmp_path / "w.safetensors")
    return read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("theirs", ["linear", "fc", "head", "classifier", "strange"])
@pytest.mark.parametrize("ours", ["fc", "head"])
def test_the_classifier_is_mapped(tmp_path, theirs, ours):
    state = Net(theirs).state()
    module = Net(ours)
    fit = load_weights(module, saved(tmp_path, state))
    assert fit.renamed == ({} if theirs == ours else {theirs: ours})
    assert torch.equal(module.get_submodule(ours).weight, state[f"{theirs}.weight"])
    assert torch.equal(module.body[0].weight, state["body.0.weight"])


def test_timms_own_word_for_the_classifier(tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1, img_size=32)
    assert classifier_names(module) == ("head",)
    assert classes_of(module) == 3
    state = {n.replace("head.", "classifier.6."): v for n, v in module.state_dict().items()}
    assert load_weights(module, saved(tmp_path, state)).renamed == {"classifier.6": "head"}
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    assert classifier_names(distilled) == ("head", "head_dist")
    assert load_weights(distilled, saved(tmp_path, distilled.state_dict())).renamed == {}


def test_another_number_of_classes(tmp_path):
    state = Net("linear", 7).state()
    weights = saved(tmp_path, state)
    module = Net("fc", 5)
    with pytest.raises(ArtifactError) as caught:
        load_weights(module, weights)
    assert str(caught.value) == (
        f"{weights.path} does not fit Net: its classifier tells 7 classes apart, asked for 5; ask "
        "for 7 (num_classes=7, or --classes 7), or, where the network is trained further, replace "
        "its head"
    )
    before = module.fc.weight.clone()
    fit = load_weights(module, weights, replace_head=True)
    assert fit.reshaped == ("fc.weight", "fc.bias")
    assert torch.equal(module.fc.weight, before)
    assert torch.equal(module.body[0].weight, state["body.0.weight"])


def test_a_head_of_the_right_size_is_kept_and_an_absent_one_left(tmp_path):
    state = Net().state()
    module = Net()
    assert load_weights(module, saved(tmp_path, state), replace_head=True).reshaped == ()
    assert torch.equal(module.fc.weight, state["fc.weight"])
    body = {name: value for name, value in state.items() if name.startswith("body")}
    with pytest.raises(ArtifactError, match=r"2 tensors missing \(fc.weight, fc.bias\)"):
        load_weights(module, saved(tmp_path, body))
    assert load_weights(module, saved(tmp_path, body), replace_head=True).missing == (
        "fc.weight",
        "fc.bias",
    )


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path):
    state = Net().state()
    state["body.0.weight"] = torch.rand(4, 3, 3, 3)
    del state["body.1.weight"]
    state |= {f"extra.{i}": torch.rand(2) for i in range(7)}
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for replace_head in (False, True):
        with pytest.raises(ArtifactError) as caught:
            load_weights(module, saved(tmp_path, state), replace_head=replace_head)
        assert (
            "does not fit Net: 1 tensor missing (body.1.weight); 7 tensors left over (extra.0, "
            "extra.1, extra.2, extra.3, extra.4, …); 1 of another shape (body.0.weight: found "
            "(4, 3, 3, 3), needs (4, 1, 3, 3)); choose the architecture that it was trained as, "
            "with the same options"
        ) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_counters_may_be_absent_and_tied_weights_stored_once(tmp_path):
    state = {n: v for n, v in Net().state().items() if "num_batches" not in n}
    assert load_weights(Net(), saved(tmp_path, state)).missing == ()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    value = torch.rand(4, 4)
    kept = {"0.weight": value, "0.bias": torch.rand(4), "1.bias": torch.rand(4)}
    load_weights(tied, saved(tmp_path, kept))
    assert torch.equal(tied[1].weight, value)


@pytest.mark.real_data
def test_the_shared_networks(weights_root):
    for file, name in (
        ("cifar10_resnet20", "resnet20_cifar"),
        ("mnist_lenet_clean", "mnist_cnn"),
    ):
        weights = read_weights(weights_root / f"{file}.safetensors")
        module = timm.create_model(name, num_classes=10)
        assert load_weights(module, weights).renamed == {}
        state = module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights.tensors.items())
