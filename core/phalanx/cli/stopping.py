"""Ctrl-C and SIGTERM: the first one unwinds the command, a second ends the process at once.

Nothing is lost by ending at once: files are whole or absent, and locks end with their process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """A KeyboardInterrupt on its way through code that would swallow it, with the same text."""


@contextmanager
def keeps(told: Callable[[], str]) -> Iterator[None]:
    """Say what is kept when Ctrl-C ends what runs inside.

    Args:
        told: asked after the interrupt; one line, and how to go on.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(told()) from None


@contextmanager
def stoppable(*, as_program: bool) -> Iterator[Callable[[], bool]]:
    """Watch Ctrl-C and SIGTERM inside; yields whether one came.

    Args:
        as_program: the interpreter ends after this, so a late Ctrl-C just ends it, silently.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not ours:  # a thread, or a host with a handler of its own
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            _end_now()
        pressed = True
        raise KeyboardInterrupt

    def swallowed(unraisable: Any) -> None:
        """Python ignores an exception in a destructor or a callback: this one counts."""
        if unraisable.exc_type is KeyboardInterrupt:
            _end_now()
        hook(unraisable)

    hook = sys.unraisablehook
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    sys.unraisablehook = swallowed
    try:
        yield lambda: pressed
    finally:
        sys.unraisablehook = hook
        after = signal.SIG_DFL if as_program else signal.default_int_handler
        signal.signal(signal.SIGINT, after)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_now() -> None:
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
    os.write(2, f"{shown}\ninterrupted\n".encode())
    os._exit(130)
