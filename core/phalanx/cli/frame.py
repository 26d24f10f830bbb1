"""The frame around the commands, in Typer: help, versions, and a command's module on demand."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import typer
import typer.core

import phalanx
from phalanx.cli import COMMANDS
from phalanx.cli.stopping import Interrupted


class _LazyGroup(typer.core.TyperGroup):
    """Shows every command by its one line; imports one when it is invoked."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # which Typer would swallow
            raise Interrupted(str(error)) from None

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


def build() -> Any:
    """The whole command line, to be called with the arguments."""
    app = typer.Typer(
        cls=_LazyGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True
    )
    app.callback(help=help_of(_root))(_root)
    for name, (_, line) in COMMANDS.items():
        app.command(name, help=line)(lambda: None)
    return typer.main.get_command(app)
