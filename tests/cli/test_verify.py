"""``phalanx verify`` on untrained runs of the bundled digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from phalanx import cli
from phalanx.data import load_data
from phalanx.runfile import read_run
from phalanx.training.artifacts import build_model, write_weights
from phalanx.training.files import read_tensors, write_tensors


class Made(NamedTuple):
    """A run, and the folder of its evaluation with kept examples."""

    run: Path
    report: Path


def make_run(folder: Path, *, seed: int = 0) -> Path:
    """A run folder with an untrained network."""
    config = read_run(
        {"seed": seed, "defense": {"use": "none", "params": {"backbone": "small_cnn"}}}
    )
    task = load_data("digits").task
    write_weights(folder, build_model(config, task), config, task, {})
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    run, report = make_run(folder / "plain"), folder / "report"
    few = ["--attack", "fgsm", "--attack", "bim:steps=2", "--limit", "20", "--keep-examples"]
    assert cli.main(["evaluate", str(run), *few, "--out", str(report)]) == 0
    return Made(run, report)


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """The same, to be tampered with."""
    return Made(made.run, Path(shutil.copytree(made.report, tmp_path / "report")))


def test_kept_examples_are_checked_and_scored_again(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((made.report / "report.json").read_text())["rows"]
    robust = {row["attack"]: 100 * row["robust_accuracy"] for row in rows}
    code, shown, told = call(capsys, "verify", made.report, made.run)
    assert (code, told) == (0, "")
    lines = shown.splitlines()
    assert [line.partition(" (linf")[0] for line in lines] == [
        "none, deployed, bim:steps=2",
        "none, deployed, fgsm",
    ]
    for name, line in zip(("bim:steps=2", "fgsm"), lines, strict=True):
        assert line.startswith(
            f"none, deployed, {name} (linf:0.1): 20 examples, 0 outside; robust "
        )
        stored, again = line.rpartition("robust ")[2].split(" % ")[:2]
        assert stored == again.rpartition(", ")[2]  # a deterministic model says the same again
        assert float(stored) >= robust[name] - 1e-9  # rows count clean errors too
    code, shown, _ = call(capsys, "verify", made.report, made.run, "--json", "--seed", 7)
    assert code == 0
    found = json.loads(shown)
    assert [(one["attack"], one["images"], one["outside"]) for one in found] == [
        ("bim:steps=2", 20, 0),
        ("fgsm", 20, 0),
    ]


def test_an_example_outside_is_told_and_ends_with_1(
    copied: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (copied.report / "examples").glob("*.safetensors"):
        tensors, header = read_tensors(path)
        tensors["images"][0] += torch.where(tensors["images"][0] < 0.5, 0.25, -0.25)
        write_tensors(path, tensors, header)
    code, shown, _ = call(capsys, "verify", copied.report, copied.run)
    assert code == 1
    assert shown.count("20 examples, 1 outside") == 2
    wrong = shown.splitlines()[2:]
    assert len(wrong) == 2
    assert wrong[0].startswith(
        "none, deployed, bim:steps=2 (linf:0.1): 1 of 20 leave ball or box by up to 0."
    )


def test_files_of_other_models_are_counted(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "other", seed=1)
    code, shown, _ = call(capsys, "verify", made.report, other)
    assert (code, shown) == (
        0,
        "2 files are of other models; name their runs too to check them\n",
    )
    code, shown, _ = call(capsys, "verify", made.report, other, made.run)
    assert [line.partition(",")[0] for line in shown.splitlines()] == ["plain", "plain"]


def test_an_accuracy_that_is_gone(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied.report / "cells")
    code, shown, _ = call(capsys, "verify", copied.report, copied.run)
    assert code == 0
    assert shown.count("robust gone as stored, ") == 2


def test_nothing_to_verify(
    made: Made, copied: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied.report / "examples")
    code, shown, told = call(capsys, "verify", copied.report, made.run)
    assert (code, shown) == (2, "")
    assert told == (
        f"error: {copied.report} holds no adversarial examples; evaluate with --keep-examples "
        "first\n"
    )
    code, _, told = call(capsys, "verify", made.report, tmp_path / "nothing")
    assert (code, "does not exist" in told) == (2, True)
    code, _, told = call(capsys, "verify", made.report, made.run, "--data", "mnist")
    assert (code, "was trained on digits; leave --data out" in told) == (2, True)


def test_damaged_examples(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    path = min((copied.report / "examples").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    code, _, told = call(capsys, "verify", copied.report, copied.run)
    assert code == 2
    assert told.startswith(f"error: {path} ")
    assert "Traceback" not in told


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = call(capsys, "verify", "--help")
    assert code == 0
    assert "  phalanx verify report runs/pdd" in shown
    assert "Raises" not in shown
