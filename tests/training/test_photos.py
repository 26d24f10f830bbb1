"""A folder of photos, a checkpoint file of timm's, one command; killed, resumed and evaluated."""

import importlib.util
import json
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import phalanx
from phalanx import cli
from phalanx.data import load_data
from phalanx.errors import ConfigError, DataError
from phalanx.training.artifacts import open_run
from phalanx.training.files import read_tensors

MAKER = Path(__file__).parents[2] / "examples" / "make_photos.py"
RUN = """
[data]
use = "folder"
image_size = 32
[defense]
use = "pgd-at"
[defense.params]
backbone = "{model}"
attack = {{ use = "pgd", params = {{ threat = "linf:4/255", steps = 1 }} }}
[init]
from = "{weights}"
[training]
epochs = 2
batch_size = 6
optimizer = {{ name = "sgd", lr = 0.01, momentum = 0.9 }}
augment = ["flip"]
[evaluation]
attacks = [{{ use = "pgd", params = {{ threat = "linf:4/255", steps = 2 }} }}]
"""
MODELS = {"resnet": "resnet10t", "vit": "vit_tiny_patch16_224"}
"""Networks of timm's whose checkpoints are for larger images than these."""


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_photos", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory, maker):
    folder = tmp_path_factory.mktemp("photos") / "digits in colour"
    maker.make(load_data("digits"), folder, classes=3, per_class=12)
    return folder


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, maker):
    folder = tmp_path_factory.mktemp("photos") / "spoiled"
    maker.make(load_data("digits"), folder, classes=2, per_class=6)
    return folder, maker.cut_one_short(folder)


def run_file(folder, kind):
    """A run file beside its checkpoint: an ImageNet classifier's, though an untrained one's."""
    network = timm.create_model(MODELS[kind], num_classes=1000)
    save_file(network.state_dict(), folder / "timm.safetensors")
    text = RUN.format(model=MODELS[kind], weights=folder / "timm.safetensors")
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


def small(root, **data):
    """A quick run of our own small network, as a mapping."""
    return {
        "data": {"use": "folder", "root": str(root), "image_size": 16, **data},
        "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
        "training": {"epochs": 2, "batch_size": 5},
    }


# ---------------------------------------------------------------- the whole way


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_fine_tuned_killed_resumed_and_evaluated(tmp_path, root, kind, capsys, in_background):
    config = run_file(tmp_path, kind)
    whole = phalanx.train(config, out=tmp_path / "whole", data_root=root, checkpoint_seconds=1000.0)
    process = in_background(
        *[str(config), "--data-root", str(root), "--out", str(tmp_path / "parts")],
        *["--checkpoint-seconds", "0"],
    )
    while process.is_alive() and not running(tmp_path / "parts"):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    position = running(tmp_path / "parts")
    assert 0 < position["epoch"] * 6 + position["index"] < 12
    phalanx.train(config, out=tmp_path / "parts", resume=True, data_root=root)
    one, other = (
        read_tensors(tmp_path / name / "weights.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]
    assert whole.task.class_names == ("0", "1", "2")
    assert whole.task.preprocessing.size == (32, 32)

    report = tmp_path / "report"
    assert cli.main(["evaluate", str(tmp_path / "parts"), "--out", str(report)]) == 0
    capsys.readouterr()
    found = json.loads((report / "report.json").read_text())
    assert {row["n"] for row in found["rows"]} == {18}
    assert found["environment"]["preprocessing"] == str(whole.task.preprocessing)
    assert "unreadable" not in found["environment"]
    assert found["notes"][0].startswith(
        "The attacker changes the resized image in [0, 1], not the file: shorter side resized to"
    )


def running(folder):
    """Where the run in `folder` stands; None before its first batch is done."""
    try:
        found = json.loads((folder / "state.json").read_text())["running"]
    except FileNotFoundError:
        return None
    return found


# ---------------------------------------------------------------- workers


def test_workers_change_no_weight(tmp_path, root):
    runs = [
        phalanx.train(small(root, workers=workers), out=tmp_path / str(workers))
        for workers in (0, 2)
    ]
    one, other = (run.model.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[line["loss"] for line in run.metrics] for run in runs]
    assert losses[0] == losses[1]


# ---------------------------------------------------------------- unreadable files


def test_a_corrupt_file_ends_the_run_before_it_begins(tmp_path, spoiled, capsys):
    root, bad = spoiled
    (tmp_path / "run.json").write_text(json.dumps(small(root)))
    out = tmp_path / "out"
    assert cli.main(["train", str(tmp_path / "run.json"), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"error: {bad} cannot be read as an image (image file is truncated" in told
    assert "skip such files with --skip-unreadable" in told
    assert not (out / "state.json").exists()


def test_skipped_files_stand_in_manifest_and_report(tmp_path, spoiled, capsys):
    root, bad = spoiled
    (tmp_path / "run.json").write_text(json.dumps(small(root)))
    out = tmp_path / "out"
    arguments = ["train", str(tmp_path / "run.json"), "--skip-unreadable", "--out", str(out)]
    assert cli.main(arguments) == 0
    file = str(bad.relative_to(root / "train"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert [one["file"] for one in manifest["data"]["parts"]["train"]["unreadable"]] == [file]
    assert open_run(out).task.train_size == 11
    report = tmp_path / "report"
    assert cli.main(["evaluate", str(out), "--attack", "fgsm", "--norm", "linf", "--eps", "4/255",
                     "--out", str(report)]) == 0  # fmt: skip
    capsys.readouterr()
    told = json.loads((report / "report.json").read_text())["environment"]["unreadable"]
    assert told.startswith(f"train: 1 of 12 files: {file} (image file is truncated")
    assert told in (report / "report.md").read_text()


def test_a_file_that_goes_bad_keeps_what_is_computed(tmp_path, maker):
    """Damage in its middle is met while training; with a whole copy there the run goes on."""
    root = tmp_path / "photos"
    maker.make(load_data("digits"), root, classes=2, per_class=6)
    whole = phalanx.train(small(root, workers=0), out=tmp_path / "whole")
    bad = next((root / "train" / "1").glob("*-rgb.png"))
    content = bad.read_bytes()
    bad.write_bytes(content[:200] + bytes(8) + content[208:])
    with pytest.raises(DataError, match="cannot be read as an image"):
        phalanx.train(small(root, workers=0), out=tmp_path / "parts")
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert state["running"] is not None
    bad.write_bytes(content)
    again = phalanx.train(small(root, workers=0), out=tmp_path / "parts", resume=True)
    one, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- what does not fit


def test_a_changed_folder_is_not_resumed(tmp_path, maker):
    root = tmp_path / "photos"
    maker.make(load_data("digits"), root, classes=2, per_class=6)
    config = small(root)
    stopped = phalanx.train(config, out=tmp_path / "out", time_budget=0.0)
    assert not stopped.finished
    next((root / "train" / "1").iterdir()).unlink()
    with pytest.raises(
        DataError, match=r"has changed since the run began: it had 12 train images, "
    ):
        phalanx.train(config, out=tmp_path / "out", resume=True)


def test_a_folder_of_other_classes_is_not_evaluated_on(tmp_path, root, maker, capsys):
    out = tmp_path / "out"
    phalanx.train(small(root), out=out)
    maker.make(load_data("digits"), tmp_path / "two", classes=2, per_class=2)
    arguments = ["evaluate", str(out), "--data-root", str(tmp_path / "two"), "--attack", "fgsm"]
    code = cli.main([*arguments, "--norm", "linf", "--eps", "0.1", "--out", str(tmp_path / "rep")])
    assert code == 2
    assert "lacks '2' of the model" in capsys.readouterr().err


def test_a_folder_has_to_be_named(tmp_path):
    config = {**small("x"), "data": {"use": "folder"}}
    with pytest.raises(
        ConfigError, match=r"data\.root: name the folder of photos here, or by --da"
    ):
        phalanx.train(config, out=tmp_path / "out")


def test_an_attack_on_photos_needs_a_threat(tmp_path, root):
    config = {**small(root), "defense": {"use": "pgd-at", "params": {"backbone": "small_cnn"}}}
    with pytest.raises(ValueError, match="no default one: write threat = 'linf:8/255'"):
        phalanx.train(config, out=tmp_path / "out")


def test_where_the_photos_lie_does_not_name_the_run():
    from phalanx.runfile import config_hash, read_run

    named = [small("here"), small("there", workers=0), small("here", skip_unreadable=True)]
    assert len({config_hash(read_run(one)) for one in named}) == 1
    larger = small("here")
    larger["data"]["image_size"] = 32
    assert config_hash(read_run(larger)) != config_hash(read_run(named[0]))
