"""``phalanx show RUN``: sizes that can be counted by hand, latencies that were measured."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phalanx import cli
from phalanx.cli import show_run
from phalanx.config import DefenseConfig, UsePruner
from phalanx.data import load_data
from phalanx.errors import PhalanxWarning
from phalanx.runfile import read_run
from phalanx.specs import Kind, Spec
from phalanx.training.artifacts import WEIGHTS, build_model, write_weights
from phalanx.training.files import write_tensors


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("phalanx.nn.size.SECONDS", 0.0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def make_run(folder: Path, *, zero_filters: bool = False, threads: int = 1) -> Path:
    """A run folder with an untrained network: conv 1-4, conv 4-8 (3x3, with biases), linear."""
    backbone = {"use": "small_cnn", "params": {"width": 32}}
    config = read_run(
        {
            "data": {"use": "digits"},
            "defense": {"use": "none", "params": {"backbone": backbone}},
            "training": {"threads": threads},
        }
    )
    task = load_data("digits").task
    model = build_model(config, task)
    if zero_filters:
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, nn.Conv2d):
                    part.weight[: len(part.weight) // 4 * 3] = 0.0
    write_weights(folder, model, config, task, {})
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def shown_as_json(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    code, out, _ = call(capsys, "show", path, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_dense_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "plain")
    shown = shown_as_json(capsys, folder)
    assert (shown["defense"], shown["data"], shown["members"]) == ("none", "digits", 1)
    assert shown["backbones"] == {"small_cnn(width=32)": 1}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert shown["sha256"] == manifest["sha256"]
    size = (folder / WEIGHTS).stat().st_size
    assert shown["disk"] == {"bytes": size, "dense_bytes": size}
    assert shown["parameters"] == shown["nonzero"]
    assert shown["sparsity"] == 0.0
    assert shown["compacted"] is None
    assert [one["batch"] for one in shown["latency"]] == [1, 64]
    assert all(0.0 < one["seconds"] < 5.0 and one["passes"] == 5 for one in shown["latency"])
    assert (shown["threads"], bool(shown["processor"])) == (1, True)


def test_a_run_with_zeros_is_smaller_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = shown_as_json(capsys, make_run(tmp_path / "plain"))
    shown = shown_as_json(capsys, make_run(tmp_path / "zeros", zero_filters=True))
    assert shown["parameters"] == dense["parameters"]
    assert shown["sparsity"] == 0.75
    zeros = shown["convolution_weights"] - shown["convolution_nonzero"]
    assert shown["nonzero"] == dense["nonzero"] - zeros
    assert 0 < shown["disk"]["dense_bytes"] - dense["disk"]["bytes"] < 1000  # its longer header
    saved = shown["disk"]["dense_bytes"] - shown["disk"]["bytes"]
    assert zeros * 4 * 0.95 < saved < zeros * 4


def test_text_of_a_folder_and_of_its_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "zeros", zero_filters=True, threads=2)
    before = torch.get_num_threads()
    for path in (folder, folder / WEIGHTS):
        code, out, _ = call(capsys, "show", path)
        assert code == 0
        lines = out.splitlines()
        assert lines[0] == f"{path}  (none on digits)"
        assert lines[1] == "  members: 1 (1 x small_cnn(width=32))"
        assert "% of its dense form" in lines[3]
        assert "weights, 75.0% of them zero" in lines[5]
        assert lines[6].endswith("ms an image, one image at a time (5 passes)")
        assert lines[7].endswith("ms an image, batches of 64 (5 passes)")
        assert lines[8].startswith("Latencies: medians, 2 threads of ")
        assert len(lines) == 9
    assert torch.get_num_threads() == before


class Holder(Spec):
    """A config with pruners inside."""

    one: UsePruner
    several: tuple[UsePruner, ...]
    table: dict[str, UsePruner]


def test_pruners_are_found_wherever_a_config_holds_them() -> None:
    uses = [UsePruner.model_construct(use=name, params=Spec()) for name in "abc"]
    held = Holder.model_construct(one=uses[0], several=(uses[1],), table={"x": uses[2]})
    assert list(show_run._pruners(held)) == uses
    assert list(show_run._pruners(DefenseConfig())) == []


class Unbiased:
    """Stands for a `UsePruner`; takes biases away, which is seen in the number of parameters."""

    kind = Kind.PRUNER
    use = "unbiased"

    def create(self) -> Unbiased:
        return self

    def compact(self, model: nn.Module) -> nn.Module:
        warnings.warn("one layer stays", PhalanxWarning, stacklevel=2)
        found = copy.deepcopy(model)
        for part in found.modules():
            if isinstance(part, nn.Conv2d):
                part.bias = None
        return found


def test_the_pruner_of_a_run_compacts_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show_run, "_pruners", lambda defense: iter([Unbiased()]))
    folder = make_run(tmp_path / "plain")
    shown = shown_as_json(capsys, folder)
    assert shown["compacted"]["parameters"] == shown["parameters"] - 32 - 64
    assert [one["batch"] for one in shown["compacted"]["latency"]] == [1, 64]
    code, out, err = call(capsys, "show", folder)
    assert code == 0
    assert "Compacted, with the same answers:\n  parameters: " in out
    assert err == "warning: one layer stays\n"


def test_a_components_name_goes_before_a_folder_of_that_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "pgd")
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "show", "pgd")[1].startswith("pgd  (attack, ")
    assert call(capsys, "show", "./pgd")[1].startswith("pgd  (none on digits)\n")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: None, r"zzz does not exist; give a run folder that `phalanx train` wrote"),
        (lambda p: p.mkdir(), "zzz is not a run folder: it has no manifest.json; give a folder"),
        (lambda p: p.write_text("words"), "zzz is not a whole safetensors file: it is text; give"),
        (
            lambda p: write_tensors(p, {"w": torch.ones(2)}),
            "zzz is a safetensors file that Phalanx did not write",
        ),
    ],
    ids=["nothing", "folder", "text", "foreign"],
)
def test_what_is_no_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, told: str
) -> None:
    make(tmp_path / "zzz")
    code, _, err = call(capsys, "show", tmp_path / "zzz")
    assert code == 2
    assert told in err


def test_a_damaged_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "zeros", zero_filters=True)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    code, _, err = call(capsys, "show", folder)
    assert code == 2
    assert f"{folder / WEIGHTS} is damaged: its sha256 is " in err
