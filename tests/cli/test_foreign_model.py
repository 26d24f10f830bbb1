"""``phalanx evaluate --model`` and ``phalanx convert``: somebody else's weights."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import phalanx.nn  # noqa: F401  # registers our backbones
from phalanx import cli
from phalanx.training.files import sha256


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network for digits, its classifier called otherwise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("small_cnn", num_classes=10, in_chans=1, width=8)
    name = network.classifier_name
    state = {key.replace(f"{name}.", "last."): value for key, value in network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


MODEL = ("--model", "small_cnn", "--model-option", "width=8", "--data", "digits")
FEW = ("--attack", "fgsm", "--limit", 20)


def test_a_model_of_timms_registry(weights, tmp_path, capsys):
    out = ("--out", tmp_path / "r")
    code, shown, told = call(capsys, "evaluate", *MODEL, "--weights", weights, *FEW, *out)
    assert code == 0, told
    assert "small_cnn  deployed  fgsm    linf:0.1" in shown
    assert "w.safetensors: its classifier 'last' is " in told
    assert (
        "normalisation: mean 0.3061, std 0.3767 (of digits; --mean and --std change them)" in told
    )
    own = ("--mean", "0.5", "--std", "0.25", "--norm", "l2", "--eps", "0.5/255", "--json")
    code, shown, told = call(capsys, "evaluate", *MODEL, "--weights", weights, *FEW, *own, *out)
    assert code == 0, told
    assert "normalisation: mean 0.5, std 0.25 (given)" in told
    assert "(stored)" not in told  # another normalisation is another model
    assert {row["threat"] for row in json.loads(shown)["rows"]} == {"l2:0.5/255"}
    code, shown, told = call(capsys, "evaluate", *MODEL, "--weights", weights, *FEW, *own, *out)
    assert told.count("(stored)") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give RUN… or --model NAME with its --weights FILE, one of the two"),
        (
            ("runs/pdd", "--model", "small_cnn", "--weights", "w", "--data", "digits"),
            "give RUN… or --model NAME with its --weights FILE, one of the two",
        ),
        (
            ("runs/pdd", "--mean", "0.5", "--weights", "w"),
            "--weights, --mean describe a --model NAME, and none is given",
        ),
        (
            ("--model", "small_cnn", "--data", "digits"),
            "--model small_cnn needs --weights FILE, its trained weights: .safetensors, or what "
            "torch.save wrote of its state dict",
        ),
        (
            ("--model", "small_cnn", "--weights", "w"),
            "--model small_cnn needs --data NAME, such as --data cifar10, or --data folder "
            "--data-root DIR",
        ),
        (
            ("--model", "small_cnn", "--weights", "w", "--mean", "0.5"),
            "--mean and --std belong together, such as --mean 0.5 --std 0.25",
        ),
        (
            ("--model", "small_cnn", "--weights", "w", "--mean", "0,x", "--std", "1"),
            "--mean '0,x': numbers with commas between, one for each channel, such as --mean "
            "0.485,0.456,0.406",
        ),
        (
            ("--model", "small_cnn", "--weights", "w", "--model-option", "num_classes=3"),
            "--model-option: 1 problem\n  num_classes: cannot be set here: --classes says how many "
            "there are",
        ),
        (
            ("--model", "small_cnn", "--weights", "w", "--model-option", "width"),
            "--model-option: 1 problem\n  'width' is not of the form key.path=value",
        ),
    ],
)
def test_options_that_contradict(options, message, tmp_path, capsys):
    code, shown, told = call(capsys, "evaluate", *options, "--out", tmp_path / "r")
    assert (code, shown, told) == (2, "", f"error: {message}\n")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "smal_cnn"), "no classifier is called 'smal_cnn'; did you mean small_cnn"),
        (("--model-option", "depth=9"), "--model small_cnn cannot be built with num_classes=10, "),
        (("--classes", 3), "its classifier tells 10 classes apart, asked for 3; ask for 10"),
        (("--model-option", "width=16"), "of another shape"),
        (("--mean", "0.5,0.5", "--std", "1,1"), "--mean has 2 values, but images of digits have 1"),
        (("--data", "digit"), "no data set is called 'digit'"),
    ],
)
def test_what_does_not_fit(options, message, weights, tmp_path, capsys):
    given = ("evaluate", *MODEL, "--weights", weights, *options, *FEW, "--out", tmp_path / "r")
    code, shown, told = call(capsys, *given)
    assert (code, shown) == (2, "")
    assert message in told
    assert "Traceback" not in told


def test_weights_of_a_run_are_told(tmp_path, capsys):
    from phalanx.training.files import write_tensors

    file = tmp_path / "weights.safetensors"
    write_tensors(file, {"a": torch.ones(1)}, {"format": "phalanx/1"})
    code, _, told = call(capsys, "evaluate", *MODEL, "--weights", file, "--out", tmp_path / "r")
    assert code == 2
    assert f"evaluate it without --model: phalanx evaluate {file}" in told


def test_data_beside_a_run_has_to_be_its_own(tmp_path, capsys):
    from phalanx.data import load_data
    from phalanx.runfile import read_run
    from phalanx.training.artifacts import build_model, write_weights

    config = read_run({"defense": {"use": "none", "params": {"backbone": "small_cnn"}}})
    task = load_data("digits").task
    write_weights(tmp_path / "run", build_model(config, task), config, task, {})
    out = ("--out", tmp_path / "r")
    code, _, told = call(capsys, "evaluate", tmp_path / "run", "--data", "mnist", *FEW, *out)
    assert code == 2
    assert told == (
        f"error: --data mnist, but {tmp_path / 'run'} was trained on digits; leave --data out\n"
    )
    code, _, told = call(capsys, "evaluate", tmp_path / "run", "--data", "digits", *FEW, *out)
    assert code == 0, told


@pytest.mark.real_data
def test_the_shared_network_by_one_command(data_root, weights_root, tmp_path, capsys):
    code, shown, told = call(
        capsys,
        *("evaluate", "--model", "resnet20_cifar", "--model-option", "shortcut=pad"),
        *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
        *("--weights", weights_root / "cifar10_resnet20.safetensors", "--data", "cifar10"),
        *("--data-root", data_root, "--norm", "linf", "--eps", "0.5/255", "--limit", "32"),
        *("--attack", "fgsm", "--out", tmp_path, "--json"),
    )
    assert code == 0, told
    row, _ = json.loads(shown)["rows"]
    assert (row["defense"], row["threat"], row["n"]) == ("resnet20_cifar", "linf:0.5/255", 32)
    assert row["clean_accuracy"] >= 0.9
    assert 0.4 < row["robust_accuracy"] < row["clean_accuracy"]


# ---------------------------------------------------------------- phalanx convert


@pytest.fixture
def checkpoint(weights: Path, tmp_path: Path) -> Path:
    """What a training script writes: nested, prefixed, and with tensors that share memory."""
    state = {f"module.{name}": value for name, value in load_file(weights).items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_a_state_dict_is_turned_over(checkpoint, weights, tmp_path, capsys):
    out = tmp_path / "new" / "out.safetensors"
    code, shown, told = call(capsys, "convert", checkpoint, out)
    assert (code, told) == (0, "")
    found, expected = load_file(out), load_file(weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert shown.splitlines() == [
        f"{checkpoint}: {len(expected)} tensors",
        f"wrote {out}",
        f"sha256 {sha256(out)}",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out.safetensors"]


def test_shared_tensors_are_written_twice(tmp_path, capsys):
    value = torch.rand(4)
    torch.save({"a": value, "b": value[:2], "c": value.view(2, 2).t()}, tmp_path / "w.pth")
    code, *_ = call(capsys, "convert", tmp_path / "w.pth", tmp_path / "out.safetensors")
    assert code == 0
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["b"], value[:2])
    assert torch.equal(found["c"], value.view(2, 2).t())


def test_held_against_a_model(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    options = ("--model", "small_cnn", "--model-option", "width=8", "--model-option", "in_chans=1")
    code, shown, told = call(capsys, "convert", checkpoint, out, *options, "--classes", 10)
    assert code == 0, told
    assert "; fits small_cnn: nothing missing, nothing left over, 'last' is now " in shown
    network = timm.create_model("small_cnn", num_classes=10, in_chans=1, width=8)
    network.load_state_dict(load_file(out), strict=True)
    out.unlink()
    code, shown, told = call(capsys, "convert", checkpoint, out, *options[:2], "--classes", 10)
    assert (code, shown) == (2, "")
    assert " of another shape (" in told
    assert "; nothing was written" in told
    code, _, told = call(capsys, "convert", checkpoint, out, "--model", "resnet20_cifar")
    assert (code, "tensors missing (" in told, "tensors left over (" in told) == (2, True, True)
    assert not out.exists()


def test_what_cannot_be_turned_over(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    torch.save({"model": {}, "args": Namespace(lr=1)}, tmp_path / "args.pth")
    for arguments, message in (
        ((tmp_path / "args.pth", out), "holds Python objects (argparse.Namespace) besides tensors"),
        ((tmp_path / "none.pth", out), "does not exist; give a file with a network's weights"),
        ((checkpoint, tmp_path / "out.pth"), "give it the ending .safetensors"),
        ((checkpoint, out, "--classes", 3), "describe a --model NAME, and none is given"),
    ):
        code, shown, told = call(capsys, "convert", *arguments)
        assert (code, shown) == (2, "")
        assert message in told
        assert not out.exists()


@pytest.mark.parametrize("name", ["evaluate", "convert"])
def test_help_shows_the_command(name, capsys):
    code, shown, _ = call(capsys, name, "--help")
    assert code == 0
    assert "--model resnet20_cifar" in shown
