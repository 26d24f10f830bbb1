"""``phalanx show``: keys, defaults, paper, claims; installed or only known."""

import json

import pytest

from phalanx import cli, discovery
from phalanx.cli import show
from phalanx.config import AttackConfig, OptimizerConfig, RunConfig
from phalanx.errors import UnknownComponentError
from phalanx.registry import Registry
from phalanx.specs import Kind


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_installed_defense(capsys):
    assert cli.main(["show", "pdd"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pdd  (defense, plugin pdd, phalanx-pdd 0.1.0)\n")
    assert "\n  members: int, default 3\n      K, networks" in out
    assert "Paper: Adversarial Defence by Diversified Simultaneous Training" in out
    assert "Traits: ensemble, differentiable, needs training\n" in out
    assert (
        "\n  fashion_mnist: robust_accuracy 89.85 under fgsm linf:0.01 "
        "[PDD+DEG, K = 3, ResNet-18], of clean-correct images (paper, Table 2; unverified)\n"
    ) in out


def test_json(capsys):
    assert cli.main(["show", "clm/clm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["plugin"], shown["installed"]) == ("defense", "clm", True)
    assert shown["traits"]["stochastic"] is True
    assert shown["threat_models"] == ["linf:0.3", "linf:8/255"]
    assert {"metric": "mra", "value": 51.36}.items() <= shown["claims"][5].items()
    assert {row["name"] for row in shown["fields"]} >= {"variant"}


def test_attack_and_family(capsys):
    assert cli.main(["show", "pgd"]) == 0
    assert "\n  steps: int, default 40\n" in capsys.readouterr().out
    assert cli.main(["show", "art/DeepFool"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("art/DeepFool  (attack, plugin core, phalanx 0.1.0)\n")
    assert "\n  name: str, required\n" in out


def test_known_but_not_installed():
    shown = show.describe(Registry(discover=False), "pdd")
    assert shown["installed"] is False
    assert (shown["state"], shown["install"]) == ("not installed", "pip install ./plugins/pdd")
    assert shown["claims"]


def test_disabled(capsys):
    chosen = discovery.Selection(disabled={"clm": "run 'phalanx plugin enable clm'"})
    shown = show.describe(Registry(selection=chosen), "clm")
    show._print(shown)
    assert "\nDisabled: run 'phalanx plugin enable clm'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pg"], "unknown attack 'pg'; did you mean 'pgd'?"),
        (["pddd"], "unknown defense 'pddd'; did you mean 'pdd'?"),
        (["zzzz"], "unknown component 'zzzz'; 'phalanx list' names them all"),
        (["pgd", "--kind", "defense"], "unknown defense 'pgd'; 'pgd' is of kind attack"),
    ],
)
def test_unknown(capsys, arguments, message):
    assert cli.main(["show", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_unknown_in_a_registry_of_ones_own():
    with pytest.raises(UnknownComponentError, match="unknown attack 'pg'"):
        show.describe(Registry(discover=False), "pg", Kind.ATTACK)


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        (OptimizerConfig, "name", ("'sgd' or 'adam' or 'adamw'", "sgd", False)),
        (OptimizerConfig, "betas", ("list of float", [0.9, 0.999], False)),
        (OptimizerConfig, "clip_grad", ("float", None, False)),
        (AttackConfig, "threat", ("threat", None, False)),
        (RunConfig, "defense", ("defense", None, True)),
        (RunConfig, "training", ("table", {}, False)),
    ],
)
def test_fields(config, key, expected):
    [row] = [row for row in show.fields_of(config) if row["name"] == key]
    assert (row["type"], row["default"], row["required"]) == expected


def test_what_is_neither_a_component_nor_a_run(capsys):
    assert cli.main(["show", "runs/zzzz"]) == 2
    told = "unknown component 'runs/zzzz'; 'phalanx list' names them all; and no run lies in runs/z"
    assert told in capsys.readouterr().err
