"""``phalanx doctor`` on what is installed; broken plugins are in tests/broken."""

import json
import subprocess
from pathlib import Path

import pytest

from phalanx import cli
from phalanx.cli import doctor

PLUGINS = sorted(
    found.parent.name.replace("_", "-")
    for found in Path(__file__).parents[2].glob("plugins/*/pyproject.toml")
)
"""All of ours; requirements-dev.txt installs them."""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PHALANX_PLUGINS", "PHALANX_DISABLE", "PHALANX_STRICT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch):
    """Answers of the probe, without a process."""
    answers = {"import": {"problems": [], "components": [], "seconds": 0.0}}
    answers["resolve"] = {"problems": [], "notes": []}
    monkeypatch.setattr(doctor, "_probe", lambda stage, plugin, seconds: dict(answers[stage]))
    return answers


def test_our_plugin_is_well(capsys):
    code = cli.main(["doctor", "pdd", "--json"])
    shown = json.loads(capsys.readouterr().out)
    [finding] = shown["plugins"]
    assert finding["problems"] == []
    assert (code, finding["state"], finding["components"]) == (0, "ok", [["defense", "pdd"]])
    assert set(shown["environment"]) >= {"Python", "phalanx", "torch", "timm"}


def test_all_are_examined(capsys, quick):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == "core (phalanx 0.1.0): ok"
    assert {"clm (phalanx-clm 0.1.0): ok", "pdd (phalanx-pdd 0.1.0): ok"} <= set(lines)


def test_disabled_ones_are_examined_only_when_named(capsys, quick, monkeypatch):
    monkeypatch.setenv("PHALANX_DISABLE", "clm")
    assert cli.main(["doctor"]) == 0
    assert "clm (phalanx-clm 0.1.0): disabled\n" in capsys.readouterr().out
    assert cli.main(["doctor", "clm"]) == 0
    assert "clm (phalanx-clm 0.1.0): ok\n" in capsys.readouterr().out


def test_component_that_does_not_resolve(capsys, quick):
    quick["resolve"] = {"problems": ["it is gone"], "notes": ["by the way"]}
    assert cli.main(["doctor", "core", "pdd"]) == 1
    assert capsys.readouterr().out.split("\n", 1)[1] == (
        "core (phalanx 0.1.0): broken\n"
        "  problem: it is gone\n"
        "  note: by the way\n"
        "  fix: install phalanx again, with its dependencies\n"
        "pdd (phalanx-pdd 0.1.0): broken\n"
        "  problem: it is gone\n"
        "  note: by the way\n"
        "  fix: install it again, with its dependencies: pip install ./plugins/pdd; "
        "until then: phalanx plugin disable pdd\n"
    )


def test_clash_of_two(capsys, quick):
    quick["import"]["components"] = [["defense", "same"]]
    assert cli.main(["doctor", "clm", "pdd"]) == 1
    out = capsys.readouterr().out
    assert "  problem: it and the plugin 'pdd' both register the defense 'same'\n" in out
    assert "  problem: it and the plugin 'clm' both register the defense 'same'\n" in out


def test_time_limit(monkeypatch):
    def hang(*arguments, timeout, **rest):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor._probe("import", "pdd", 10)["problems"] == ["its import did not end within 10 s"]


@pytest.mark.parametrize("printed", ["", "hello", "{}", "[1]", '{"problems": 3'])
def test_a_process_that_ends_without_an_answer(monkeypatch, printed):
    def silent(*arguments, **rest):
        return subprocess.CompletedProcess(arguments, 0, stdout=f"{printed}\n", stderr="why\n")

    monkeypatch.setattr(doctor.subprocess, "run", silent)
    found = doctor._probe("import", "pdd", 10)
    assert found["problems"] == ["its process ended with code 0: why"]


def test_unknown_plugin(capsys):
    assert cli.main(["doctor", "nope"]) == 2
    assert capsys.readouterr().err == (
        f"error: unknown plugin 'nope'; installed: core, {', '.join(PLUGINS)}\n"
    )
