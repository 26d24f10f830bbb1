"""The command line. Each command is a module that is imported only when it is asked for.

A command's module offers ``command``, a function with Typer annotations, whose docstring (and the
module's ``EPILOG``, if there is one) is its help; paragraphs with indented lines, such as the
examples, keep their lines. Errors made for the user become one message and an exit code: 0 done,
1 the run failed, 2 the input is wrong, 130 interrupted.

This package imports next to nothing, so that Ctrl-C finds `main` at its post from the first moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from errno import ENAMETOOLONG

from phalanx.cli.stopping import Interrupted, stoppable
from phalanx.errors import PhalanxError

COMMANDS = {
    "quickstart": ("phalanx.cli.quickstart:command", "Train, attack and report in four minutes."),
    "list": ("phalanx.cli.listing:command", "List defenses, attacks and their plugins."),
    "show": ("phalanx.cli.show:command", "Show a component: keys, paper, claims; or a run's size."),
    "train": ("phalanx.cli.train:command", "Train a defense by name or from a run file."),
    "evaluate": ("phalanx.cli.evaluate:command", "Attack runs, or any model, and write a report."),
    "compare": ("phalanx.cli.compare:command", "Runs against each other, image by image."),
    "verify": ("phalanx.cli.verify:command", "Check kept adversarial examples again."),
    "reproduce": ("phalanx.cli.reproduce:command", "Train a paper's table again; claims, deltas."),
    "report": ("phalanx.cli.report:command", "Write a report again from stored results."),
    "convert": ("phalanx.cli.convert:command", "Turn a checkpoint over into safetensors."),
    "doctor": ("phalanx.cli.doctor:command", "Check each plugin in a process of its own."),
    "plugin": ("phalanx.cli.plugin:app", "Disable and enable plugins."),
}
"""Name, what it runs, and its line in ``phalanx --help``, which imports none of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; absent is ``sys.argv``.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
    """
    # Before torch is imported: else two of its threads beside a busy process take 24 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with stoppable(as_program=arguments is None) as stopped:
        try:
            code = _run(arguments)
            return _tell_interrupt("") if code == 130 else code
        except (KeyboardInterrupt, Interrupted) as error:
            return _tell_interrupt(str(error))
        except PhalanxError as error:
            return _fail(str(error), error.exit_code)
        except OSError as error:
            return _fail_of_the_system(error)
        except Exception:
            if stopped():  # an import that Ctrl-C cut short may say anything
                return _tell_interrupt("")
            raise


def _run(arguments: Sequence[str] | None) -> int:
    from phalanx.cli.frame import build

    try:
        build().main(args=arguments, prog_name="phalanx")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    return code


def _fail_of_the_system(error: OSError) -> int:
    """What no command expected: a full disk, a folder that is none, a reader that has gone."""
    from phalanx.storage import reason_of

    if isinstance(error, BrokenPipeError):  # as in `phalanx list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    where = f"{error.filename}: " if error.filename else ""
    asked = isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
    wrong_input = asked or isinstance(error, IsADirectoryError) or error.errno == ENAMETOOLONG
    return _fail(f"{where}{reason_of(error)}", 2 if wrong_input else 1)


def _tell_interrupt(kept: str) -> int:
    told = kept or "no file is half written, and the same command can be given again"
    sys.stderr.write(f"interrupted: {told}\n")
    return 130
