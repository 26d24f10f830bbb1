"""The command line. Each command is a module that is imported only when it is asked for.

A command's module offers ``command``, a function with Typer annotations, whose docstring (and the
module's ``EPILOG``, if there is one) is its help; paragraphs with indented lines, such as the
examples, keep their lines. Errors made for the user become one message and an exit code: 0 done,
1 the run failed, 2 the input is wrong.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
import typer.core

import phalanx
from phalanx.errors import PhalanxError

COMMANDS = {
    "quickstart": ("phalanx.cli.quickstart:command", "Train, attack and report in four minutes."),
    "list": ("phalanx.cli.listing:command", "List defenses, attacks and their plugins."),
    "show": ("phalanx.cli.show:command", "Show a component: its keys, defaults, paper, claims."),
    "train": ("phalanx.cli.train:command", "Train a defense by name or from a run file."),
    "evaluate": ("phalanx.cli.evaluate:command", "Attack trained runs and write a report."),
    "report": ("phalanx.cli.report:command", "Write a report again from stored results."),
    "doctor": ("phalanx.cli.doctor:command", "Check each plugin in a process of its own."),
    "plugin": ("phalanx.cli.plugin:app", "Disable and enable plugins."),
}
"""Name, what it runs, and its line in ``phalanx --help``, which imports none of them."""


class _LazyGroup(typer.core.TyperGroup):
    """Shows every command by its one line; imports one when it is invoked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _import_command(args[0])
        return super().resolve_command(ctx, args)


def _import_command(name: str) -> Any:
    """The command as Typer builds it, from its module."""
    path, _, attribute = COMMANDS[name][0].partition(":")
    module = importlib.import_module(path)
    target = getattr(module, attribute)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    return command_of(name, target, epilog=getattr(module, "EPILOG", ""))


def command_of(name: str, function: Callable[..., Any], *, epilog: str = "") -> Any:
    """One function as a command that stands alone."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, help=help_of(function), epilog=keep_lines(epilog) or None)(function)
    return typer.main.get_command(app)


def help_of(function: Callable[..., Any]) -> str:
    """A command's docstring as its help: sections for the code's readers left out."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    internal = ("Args:", "Raises:", "Returns:")
    return keep_lines("\n\n".join(one for one in paragraphs if not one.startswith(internal)))


def keep_lines(text: str) -> str:
    """Text whose paragraphs with indented lines are not wrapped in a help page."""
    paragraphs = text.strip().split("\n\n")
    indented = [any(line.startswith(" ") for line in one.splitlines()) for one in paragraphs]
    return "\n\n".join(
        f"\b\n{one}" if keep else one for one, keep in zip(paragraphs, indented, strict=True)
    )


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"phalanx {phalanx.__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Show the version."
    ),
) -> None:
    """Adversarial defenses for PyTorch image classifiers: train, attack, report.

    Examples:
        phalanx quickstart
        phalanx list defense
        phalanx train pdd --data fashion_mnist --out runs/pdd
    """


def _build() -> Any:
    app = typer.Typer(
        cls=_LazyGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True
    )
    app.callback(help=help_of(_root))(_root)
    for name, (_, line) in COMMANDS.items():
        app.command(name, help=line)(lambda: None)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; absent is ``sys.argv``.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: INTERFACE.md section 3.11
    try:
        _build().main(args=arguments, prog_name="phalanx")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except PhalanxError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _fail(str(error), 1)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    typer.echo(f"error: {message}", err=True)
    return code
