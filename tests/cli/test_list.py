"""``phalanx list`` and the frame around every command."""

import json
import os
import resource
import subprocess
import sys

import pytest

from phalanx import cli
from phalanx.cli import frame, listing
from phalanx.errors import ConfigError, StorageError, TrainingError
from phalanx.registry import Registry
from phalanx.specs import Kind

HEAVY = {"torch", "torchvision", "timm", "art", "sklearn", "lightning_fabric", "numpy"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PHALANX_PLUGINS", "PHALANX_DISABLE", "PHALANX_STRICT"):
        monkeypatch.delenv(name, raising=False)


def cpu_seconds(code):
    """Processor time of a fresh interpreter, which a busy machine does not lengthen."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


LIST = "from phalanx.cli import main; main(['list'])"


def test_takes_less_than_a_quarter_of_importing_torch():
    of_torch = min(cpu_seconds("import torch") for _ in range(2))
    of_list = min(cpu_seconds(LIST) for _ in range(3))
    assert of_list < of_torch / 4


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["--help"], ["doctor", "--help"]]
)
def test_imports_nothing_heavy(arguments):
    code = (
        f"from phalanx.cli import main; main({arguments!r}); import sys; "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stderr.split())


def test_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["defense", "pdd"] == {
        "kind": "defense",
        "name": "pdd",
        "plugin": "pdd",
        "installed": True,
        "state": "installed",
        "summary": "An ensemble diversified by structured dropout of features and dispersed "
        "gradients.",
        "package": "phalanx-pdd",
        "version": "0.1.0",
    }
    assert rows["attack", "pgd"]["plugin"] == "core"


def test_text_of_one_kind(capsys):
    assert cli.main(["list", "defense"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KIND", "NAME", "PLUGIN", "SUMMARY"]
    assert {line.split()[0] for line in lines[1:]} == {"defense"}
    assert len({line.index("core") for line in lines if " core " in line}) == 1


def test_known_components_that_are_not_installed():
    rows = {row["name"]: row for row in listing.entries(Registry(discover=False), Kind.DEFENSE)}
    assert rows["pdd"]["installed"] is False
    assert rows["pdd"]["install"] == "pip install ./plugins/pdd"
    assert rows["none"]["installed"] is True
    assert listing._cells(rows["pdd"])[-1].endswith(
        "gradients. (not installed: pip install ./plugins/pdd)"
    )


def test_table_on_a_terminal(capsys):
    listing._print_table(listing.entries(Registry(discover=False), Kind.DEFENSE))
    assert "Madry's adversarial training" in capsys.readouterr().out


class TestFrame:
    def test_help_lists_every_command(self, capsys):
        assert cli.main(["--help"]) == 0
        out = capsys.readouterr().out
        for name, (_, line) in cli.COMMANDS.items():
            assert f"  {name} " in out
            assert line in out
        assert "      phalanx list defense\n" in out

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_each_help_has_examples(self, capsys, name):
        assert cli.main([name, "--help"]) == 0
        assert "phalanx " + name in capsys.readouterr().out.split("Usage:")[1]

    @pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "plugin"])
    def test_examples_keep_their_lines(self, capsys, name):
        cli.main([name, "--help"])
        out = capsys.readouterr().out
        assert "Examples:\n" in out
        assert [line for line in out.splitlines() if line.strip().startswith(f"phalanx {name}")]

    def test_version(self, capsys):
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == "phalanx 0.1.0\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["lst"], "Error: No such command 'lst'. Did you mean 'list'?"),
            (["list", "--jsn"], "Error: No such option: --jsn"),
            (["list", "defence"], "'defence' is not one of 'defense', 'attack'"),
            (["show"], "Error: Missing argument"),
        ],
    )
    def test_usage_errors_exit_with_2(self, capsys, arguments, message):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (ConfigError(["a: b"], source="x.toml"), 2, "error: x.toml: 1 problem\n  a: b\n"),
            (TrainingError("a loss is not finite"), 1, "error: a loss is not finite\n"),
            (
                StorageError("x cannot be written", "y stands"),
                1,
                "error: x cannot be written; y stands\n",
            ),
            (OSError(28, "No space left", "x"), 1, "error: x: the disk is full\n"),
            (PermissionError(13, "Permission denied", "x"), 2, "error: x: no permission\n"),
            (OSError(36, "File name too long", "x"), 2, "error: x: File name too long\n"),
            (
                KeyboardInterrupt(),
                130,
                "interrupted: no file is half written, and the same command can be given again\n",
            ),
            (KeyboardInterrupt("cells are kept"), 130, "interrupted: cells are kept\n"),
        ],
    )
    def test_errors_become_one_message_and_a_code(self, capsys, monkeypatch, error, code, text):
        def fail(*_):
            raise error

        monkeypatch.setattr(listing, "load_registry", fail)
        assert cli.main(["list"]) == code
        assert capsys.readouterr().err == text

    def test_a_reader_that_has_gone_is_no_traceback(self):
        code = "import sys; from phalanx.cli import main; sys.exit(main(['list', '--json']))"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (1, b"")

    def test_bugs_keep_their_traceback(self, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError

        monkeypatch.setattr(listing, "load_registry", fail)
        with pytest.raises(ZeroDivisionError):
            cli.main(["list"])

    def test_threads_wait_passively(self, monkeypatch):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        cli.main(["--version"])
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        cli.main(["--version"])
        assert os.environ["OMP_WAIT_POLICY"] == "active"

    def test_help_leaves_out_sections_for_readers_of_the_code(self):
        def function():
            """Do it.

            Examples:
                phalanx do
                  more

            Args:
                none: at all.
            """

        assert frame.help_of(function) == "Do it.\n\n\b\nExamples:\n    phalanx do\n      more"
