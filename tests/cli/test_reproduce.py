"""``phalanx reproduce`` on a toy plugin: digits, one small network, one epoch."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phalanx import catalog, cli, reproduction
from phalanx.evaluation.statistics import wilson
from phalanx.registry import Registry

RECIPE = """
seed = 0
[data]
use = "digits"
[defense]
use = "none"
[defense.params]
backbone = { use = "small_cnn", params = { width = 4 } }
[training]
epochs = 1
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
[evaluation]
threat = "linf:0.1"
limit = 40
attacks = ["fgsm", { use = "pgd", params = { steps = 2 } }]
"""
FILE = """
schema = 1
[[reproduction]]
name = "table1"
component = "toy"
title = "Table 1 of a toy"
[[reproduction.paper.run]]
id = "base"
recipe = "digits.toml"
[[reproduction.paper.run]]
id = "large"
recipe = "cifar.toml"
[reproduction.cpu]
differs = "width 4, 1 epoch"
[[reproduction.cpu.run]]
id = "base"
recipe = "digits.toml"
[[reproduction.cpu.run]]
id = "tuned"
recipe = "tuned.toml"
init = "base"
set = { training = { epochs = 2 } }
[[reproduction.answers]]
run = "base"
claim = { source = "Table 1", dataset = "digits", setting = "base" }
rows = [
  { metric = "clean_accuracy" },
  { attack = "fgsm", note = "A note." },
  { attack = "pgd", by = "pgd:steps=2" },
  { attack = "pgd:steps=100", by = "worst", incomparable = "two steps for a hundred" },
]
[[reproduction.answers]]
run = "tuned"
claim = { setting = "tuned" }
over = ["base"]
rows = [{ metric = "clean_accuracy_gain" }]
[[reproduction.answers]]
run = "large"
claim = { dataset = "cifar10" }
rows = [{ attack = "fgsm" }]

[[reproduction]]
name = "only-paper"
component = "toy"
title = "Too large for a CPU"
[[reproduction.paper.run]]
id = "large"
recipe = "cifar.toml"
[[reproduction.answers]]
run = "large"
claim = { dataset = "cifar10" }
rows = [{ attack = "fgsm" }]
"""
CLAIM = """
[[plugin.component.claim]]
source = "Table 1"
dataset = "{dataset}"
setting = "{setting}"
{more}
metric = "{metric}"
value = {value}
"""
LEDGER = """
schema = 1
[[plugin]]
id = "toy"
package = "phalanx-toy"
path = "plugins/toy"
entry_point = "phalanx_toy.plugin"
api = ">=1.0,<2"
core = ">=0.1,<0.2"
status = "experimental"
[[plugin.component]]
kind = "defense"
name = "toy"
summary = "A toy."
"""


def claim(
    metric: str, value: float, *, dataset: str = "digits", setting: str = "base", **more: Any
):
    lines = "\n".join(f"{name} = {json.dumps(one)}" for name, one in more.items())
    return CLAIM.format(dataset=dataset, setting=setting, more=lines, metric=metric, value=value)


BALL = {"threat": "linf:0.1"}
CLAIMS = (
    claim("clean_accuracy", 100),
    claim("robust_accuracy", 0, attack="fgsm", **BALL),
    claim("robust_accuracy", 50, attack="pgd", conditional=True, **BALL),
    claim("robust_accuracy", 50, attack="pgd:steps=100", **BALL),
    claim("clean_accuracy_gain", 3, setting="tuned"),
    claim("robust_accuracy", 50, dataset="cifar10", attack="fgsm", **BALL),
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin's project in an editable install, the only one that is there; its folder."""
    project = tmp_path / "toy"
    package = project / "phalanx_toy"
    package.mkdir(parents=True)
    (project / "pyproject.toml").touch()
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(
        "from phalanx.api import hookimpl\n\n@hookimpl\ndef phalanx_components():\n    return ()\n"
    )
    (project / "recipes").mkdir()
    (project / "recipes" / "digits.toml").write_text(RECIPE)
    (project / "recipes" / "tuned.toml").write_text(RECIPE + '[init]\nfrom = "elsewhere"\n')
    (project / "recipes" / "cifar.toml").write_text(RECIPE.replace('"digits"', '"cifar10"'))
    (project / "reproductions.toml").write_text(FILE)
    monkeypatch.syspath_prepend(str(project))
    module = importlib.import_module("phalanx_toy.plugin")
    ledger = catalog.read(LEDGER + "".join(CLAIMS))
    monkeypatch.setattr(catalog, "load", lambda: ledger)
    own = Registry(plugins=[module], discover=False)
    monkeypatch.setattr("phalanx.cli.reproduce.load_registry", lambda: own)
    monkeypatch.chdir(tmp_path)
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "phalanx_toy"]:
        del sys.modules[name]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["reproduce", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_name_it_lists_what_there_is(toy, capsys):
    code, shown, told = call(capsys)
    assert (code, told) == (0, "")
    assert [re.split(r"  +", line) for line in shown.splitlines()] == [
        ["NAME", "SCALES", "DATA", "TRAINS", "CLAIMS", "WHAT"],
        ["toy/table1", "paper, cpu", "digits, cifar10", "none", "6", "Table 1 of a toy"],
        ["toy/only-paper", "paper", "cifar10", "none", "1", "Too large for a CPU"],
    ]
    code, shown, _ = call(capsys, "--json")
    first, second = json.loads(shown)
    assert first["scales"]["cpu"] == {
        "differs": "width 4, 1 epoch",
        "takes": "",
        "runs": ["base", "tuned"],
    }
    assert (first["sources"], second["problem"]) == (["Table 1"], "")


def test_a_table_is_trained_attacked_and_compared_and_a_repeat_computes_nothing(
    toy, tmp_path, capsys
):
    code, shown, told = call(capsys, "toy/table1", "--out", tmp_path / "out")
    assert code == 0, told
    assert "run 2 of 2: tuned (none on digits)" in told
    lines = shown.splitlines()
    assert lines[:2] == [
        "toy/table1 at scale cpu: Table 1 of a toy",
        "reduced: width 4, 1 epoch: not the paper's setting",
    ]
    stored = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    rows = json.loads((tmp_path / "out" / "report-base" / "report.json").read_text())["rows"]
    tuned = json.loads((tmp_path / "out" / "report-tuned" / "report.json").read_text())["rows"]
    fgsm, pgd, worst = rows
    clean, attacked, conditional, other, gained = stored["lines"]

    assert clean["reproduced"] == pytest.approx(100 * fgsm["clean_accuracy"])
    bounds = [100 * one for one in wilson(40 * fgsm["clean_accuracy"], 40)]
    assert clean["interval"] == pytest.approx(bounds)
    assert (clean["n"], clean["compared"]) == (40, "lower")
    assert clean["delta"] == pytest.approx(100 * fgsm["clean_accuracy"] - 100)

    assert attacked["reproduced"] == pytest.approx(100 * fgsm["robust_accuracy"])
    assert attacked["interval"] == pytest.approx([100 * one for one in fgsm["ci95"]])
    assert attacked["verdict"] == fgsm["verdict"]
    assert attacked["remarks"] == ["A note."]

    right = round(40 * fgsm["clean_accuracy"])
    withstood = round(40 * pgd["robust_accuracy"])
    assert 0 < withstood < right < 40
    assert conditional["n"] == right
    assert conditional["reproduced"] == pytest.approx(100 * withstood / right)
    bounds = [100 * one for one in wilson(withstood, right)]
    assert conditional["interval"] == pytest.approx(bounds)

    assert (other["compared"], other["delta"]) == ("not comparable", None)
    assert other["reproduced"] == pytest.approx(100 * worst["robust_accuracy"])

    difference = 100 * (tuned[0]["clean_accuracy"] - fgsm["clean_accuracy"])
    assert gained["reproduced"] == pytest.approx(difference)
    assert gained["interval"][0] < difference < gained["interval"][1]

    config = json.loads((tmp_path / "out" / "tuned" / "config.json").read_text())
    assert config["init"]["from"] == str(tmp_path / "out" / "base")
    assert config["training"]["epochs"] == 2
    assert [one["claim"]["dataset"] for one in stored["elsewhere"]] == ["cifar10"]
    note = "note: 1 more claim is answered at scale paper only (phalanx reproduce toy/table1"
    assert any(line.startswith(note) for line in lines)
    page = (tmp_path / "out" / "reproduction.md").read_text()
    assert "Reduced: width 4, 1 epoch: not the paper's setting." in page
    assert "two steps for a hundred" in page

    code, again, told = call(capsys, "toy/table1", "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(again)["lines"] == stored["lines"]
    assert told.count("(stored)") == 6
    assert "fit" not in told


def test_what_was_interrupted_is_gone_on_with(toy, tmp_path, capsys, monkeypatch):
    from phalanx.attacks.gradient import PGD

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PGD, "__call__", interrupted)
        code, _, told = call(capsys, "table1", "--out", out, "--limit", 20)
    assert code == 130
    assert f"what is finished is kept in {out}: the same command again goes on" in told
    assert not (out / "reproduction.json").exists()
    weights = (out / "tuned" / "weights.safetensors").stat().st_mtime_ns
    code, shown, told = call(capsys, "toy/table1", "--out", out, "--limit", 20, "--json")
    assert code == 0, told
    assert (out / "tuned" / "weights.safetensors").stat().st_mtime_ns == weights
    assert json.loads(shown)["lines"][0]["n"] == 20
    assert told.count("(stored)") == 2  # clean and FGSM of the first run


def test_an_attack_that_cannot_run_leaves_its_line_empty(toy, tmp_path, capsys, monkeypatch):
    from phalanx.attacks.gradient import FGSM
    from phalanx.errors import AttackInapplicable

    def refuses(*_: object, **__: object) -> None:
        raise AttackInapplicable("no package x: pip install x")

    with monkeypatch.context() as patch:
        patch.setattr(FGSM, "__call__", refuses)
        code, shown, _ = call(capsys, "toy/table1", "--limit", 4, "--json")
    assert code == 0
    line = json.loads(shown)["lines"][1]
    assert (line["reproduced"], line["delta"], line["compared"]) == (None, None, "not measured")
    assert line["remarks"] == ["could not be run: no package x: pip install x", "A note."]
    assert (tmp_path / "reproductions" / "toy-table1-cpu" / "reproduction.md").is_file()


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["toy/tabel1"],
            "no reproduction is called 'toy/tabel1'; did you mean 'toy/table1'?",
        ),
        (
            ["toy/nothing"],
            "no reproduction is called 'toy/nothing'; toy has 'toy/table1', 'toy/only-paper'",
        ),
        (
            ["zzz"],
            "no reproduction is called 'zzz'; `phalanx reproduce` lists what there is",
        ),
        (
            ["toy/only-paper"],
            "toy/only-paper has no scale cpu; it has paper: phalanx reproduce toy/only-paper "
            "--scale paper",
        ),
    ],
)
def test_one_clear_message(toy, tmp_path, capsys, arguments, message):
    code, shown, told = call(capsys, *arguments, "--out", tmp_path / "q")
    assert (code, shown, told) == (2, "", f"error: {message}\n")
    assert not (tmp_path / "q").exists()


def test_a_missing_data_set_is_told_before_anything_is_trained(toy, tmp_path, capsys):
    options = ("--scale", "paper", "--data-root", tmp_path / "data", "--out", tmp_path / "q")
    code, _, told = call(capsys, "toy/table1", *options)
    assert code == 2
    assert f"error: data set 'cifar10' is not in {tmp_path / 'data'}: missing " in told
    assert "Add --download" in told
    assert not (tmp_path / "q").exists()


def test_a_broken_file_hides_its_own_reproductions_only(toy, tmp_path, capsys):
    file = toy / "reproductions.toml"
    file.write_text(FILE.replace("title", "titel", 1))
    code, shown, told = call(capsys)
    assert (code, shown.splitlines()[1:]) == (0, [])
    assert f"{file}: " in told
    assert "reproduction.0.titel: unknown key; did you mean 'title'?" in told
    code, _, told = call(capsys, "toy/table1")
    assert (code, "did you mean 'title'?" in told) == (2, True)


def test_another_reproductions_folder_is_refused(toy, tmp_path, capsys):
    out = tmp_path / "out"
    code, *_ = call(capsys, "toy/table1", "--limit", 2, "--out", out)
    assert code == 0
    recipe = toy / "recipes" / "digits.toml"
    recipe.write_text(RECIPE.replace("lr = 0.1", "lr = 0.2"))
    code, _, told = call(capsys, "toy/table1", "--limit", 2, "--out", out)
    assert code == 2
    assert f"{out / 'base'}" in told


def test_a_wheel_holds_what_a_project_does(toy):
    package = toy / "phalanx_toy"
    assert reproduction.home_of("phalanx_toy.plugin") == toy
    shutil.move(toy / "recipes", package / "recipes")
    shutil.move(toy / "reproductions.toml", package / "reproductions.toml")
    assert reproduction.home_of("phalanx_toy.plugin") == package
    (toy / "pyproject.toml").unlink()
    (toy / "recipes").mkdir()
    shutil.rmtree(package / "recipes")
    (package / "reproductions.toml").unlink()
    assert reproduction.home_of("phalanx_toy.plugin") is None


def test_help_has_examples(capsys):
    code, shown, _ = call(capsys, "--help")
    assert code == 0
    assert "  phalanx reproduce pdd/table2 --scale cpu" in shown
