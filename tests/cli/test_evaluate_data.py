"""``phalanx evaluate`` on photos: what goes together, and a foreign model on a folder."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import phalanx
from phalanx import cli
from phalanx.cli.evaluate_data import AskedData, data_of_runs
from phalanx.data import load_data
from phalanx.errors import InputError
from phalanx.specs import Preprocessing

MAKER = Path(__file__).parents[2] / "examples" / "make_photos.py"
FEW = ("--attack", "fgsm", "--norm", "linf", "--eps", "4/255")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_photos", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    folder = tmp_path_factory.mktemp("photos") / "digits"
    maker.make(load_data("digits"), folder, classes=2, per_class=4)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, root):
    config = {
        "data": {"use": "folder", "root": str(root), "image_size": 16, "workers": 0},
        "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
        "training": {"epochs": 1},
    }
    return phalanx.train(config, out=tmp_path_factory.mktemp("runs") / "one")


def asked(**more):
    nothing = AskedData(None, None, None, skip_unreadable=False, told=lambda done, files: None)
    return replace(nothing, **more)


def call(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_a_foreign_model_on_a_folder_of_classes_alone(tmp_path, root, capsys):
    """Photos are prepared as timm has it for the model, at the size that was asked for."""
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=2).state_dict(), weights)
    model = ["--model", "resnet10t", "--weights", weights, "--data", "folder", "--image-size", 32]
    reports = []
    for name, place in (("layout", root), ("flat", root / "test")):
        out = tmp_path / name
        code, told = call(capsys, "evaluate", *model, "--data-root", place, *FEW, "--out", out)
        assert code == 0, told
        reports.append(json.loads((out / "report.json").read_text()))
    assert "normalisation: mean 0.485,0.456,0.406, std 0.229,0.224,0.225 (of test" in told
    assert reports[0]["rows"] == reports[1]["rows"]
    known = timm.get_pretrained_cfg("resnet10t")
    assert reports[0]["environment"]["preprocessing"].startswith(
        f"shorter side resized to {int(32 / known.crop_pct)} ({known.interpolation}), centre 32 x"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "folder"], "--data folder needs --data-root DIR, the folder of photos"),
        ([], "--model resnet10t needs --data NAME, such as --data cifar10, or --data folder"),
        (["--data", "digits", "--image-size", 8], "--image-size are for --data folder"),
        (["--data", "digits", "--skip-unreadable"], "--image-size are for --data folder"),
    ],
)
def test_options_of_a_foreign_model_that_do_not_go_together(tmp_path, capsys, arguments, message):
    (tmp_path / "w").write_text("")
    model = ["--model", "resnet10t", "--weights", tmp_path / "w"]
    code, told = call(capsys, "evaluate", *model, *arguments, *FEW, "--out", tmp_path / "out")
    assert (code, message in told) == (2, True), told


def test_a_run_knows_its_photos(run, root):
    data = data_of_runs([run], asked())
    assert data.test.part.root == root / "test"
    assert data.task.preprocessing == run.task.preprocessing
    assert list(data.folder.parts) == ["train", "test"]
    assert data_of_runs([run], asked(root=root / "test")).task.name == "test"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_size": 32}, "--image-size is for --model; a run remembers the size of its images"),
        ({"name": "digits"}, "was trained on folder; leave --data out"),
    ],
)
def test_options_of_a_run_that_do_not_go_together(run, more, message):
    with pytest.raises(InputError, match=message):
        data_of_runs([run], asked(**more))


def test_skipping_is_for_folders(run):
    other = replace(run, config=run.config.model_copy(update={"data": type(run.config.data)()}))
    with pytest.raises(InputError, match="is for a folder of photos; these runs are of digits"):
        data_of_runs([other], asked(skip_unreadable=True))


def test_runs_that_take_different_images_are_not_compared(run):
    larger = replace(
        run, task=run.task.model_copy(update={"preprocessing": Preprocessing(size=(32, 32))})
    )
    with pytest.raises(InputError, match="cannot be compared on the same images: their preprocess"):
        data_of_runs([run, larger], asked())
    data = run.config.data.model_copy(update={"root": "elsewhere"})
    moved = replace(run, config=run.config.model_copy(update={"data": data}))
    with pytest.raises(InputError, match=r"were trained on different folders .* by --data-root"):
        data_of_runs([run, moved], asked())
