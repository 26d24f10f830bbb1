"""``phalanx plugin``: the user's choice is stored, and told."""

import json
import re
from pathlib import Path

import pytest

from phalanx import cli

PLUGINS = sorted(
    found.parent.name.replace("_", "-")
    for found in Path(__file__).parents[2].glob("plugins/*/pyproject.toml")
)
"""All of ours; requirements-dev.txt installs them."""


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PHALANX_PLUGINS", "PHALANX_DISABLE", "PHALANX_STRICT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "phalanx" / "plugins.json"


def test_disable_and_enable(capsys, path):
    assert cli.main(["plugin", "disable", "clm"]) == 0
    assert json.loads(path.read_text()) == {"disabled": ["clm"]}
    assert cli.main(["plugin", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    disabled = {row["id"]: row["disabled"] for row in rows}
    assert disabled == dict.fromkeys(PLUGINS, False) | {"clm": True}
    assert cli.main(["plugin", "enable", "clm"]) == 0
    assert json.loads(path.read_text()) == {"disabled": []}
    assert capsys.readouterr().out == "enabled 'clm'\n"


def test_list_as_text(capsys):
    cli.main(["plugin", "disable", "clm"])
    capsys.readouterr()
    assert cli.main(["plugin", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    state = {"clm": "disabled"}
    assert [re.split(" {2,}", line)[:3] for line in lines] == [
        [name, f"phalanx-{name} 0.1.0", state.get(name, "enabled")] for name in PLUGINS
    ]


def test_enable_what_was_not_disabled(capsys):
    assert cli.main(["plugin", "enable", "clm"]) == 0
    assert capsys.readouterr().out == "'clm' was not disabled\n"


def test_enable_what_the_environment_disables(capsys, monkeypatch, path):
    monkeypatch.setenv("PHALANX_DISABLE", "clm")
    assert cli.main(["plugin", "enable", "clm"]) == 0
    assert capsys.readouterr().out == (
        f"enabled 'clm' in {path}, but it is still left out: take clm out of PHALANX_DISABLE\n"
    )


def test_a_plugin_that_is_gone_can_be_enabled(path):
    path.parent.mkdir(parents=True)
    path.write_text('{"disabled": ["gone"]}')
    assert cli.main(["plugin", "enable", "gone"]) == 0
    assert json.loads(path.read_text()) == {"disabled": []}


@pytest.mark.parametrize("command", ["disable", "enable"])
def test_unknown(capsys, path, command):
    assert cli.main(["plugin", command, "pddd"]) == 2
    assert capsys.readouterr().err == "error: unknown plugin 'pddd'; did you mean 'pdd'?\n"
    assert cli.main(["plugin", command, "zzz"]) == 2
    assert capsys.readouterr().err == (
        f"error: unknown plugin 'zzz'; installed: {', '.join(PLUGINS)}\n"
    )
    assert not path.exists()


def test_damaged_choice(capsys, path):
    path.parent.mkdir(parents=True)
    path.write_text("?")
    assert cli.main(["plugin", "list"]) == 2
    assert capsys.readouterr().err == (
        f'error: {path}: 1 problem\n  cannot be read; write {{"disabled": []}} into it, '
        f"or delete it\n"
    )


def test_help_has_examples(capsys):
    assert cli.main(["plugin", "disable", "--help"]) == 0
    assert "Examples:\n      phalanx plugin disable clm\n" in capsys.readouterr().out
