"""A time limit on code that does not know of it, by the system's alarm signal.

Where there is no such signal (Windows), in a thread, or where a host's alarm handler cannot be
put back, there is no limit. A loop in C that never returns to Python is not ended either.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_AGAIN = 0.5
"""Seconds after which a limit rings again, if what it raised was swallowed."""


class TimeLimit(BaseException):
    """Raised in code that ran out of time; no Exception, so that ``except Exception`` passes it."""


def limited(seconds: float, action: Callable[[], _Result]) -> _Result:
    """The action's result, unless it takes longer; the alarm's handler and timer come back.

    Args:
        seconds: the limit, above 0.
        action: called once, without arguments.

    Raises:
        TimeLimit: if the action did not end in time.
    """
    if not _can_ring():
        return action()
    running = True

    def ring(number: int, frame: Any) -> None:
        if running:
            raise TimeLimit

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        try:
            return action()
        finally:
            running = False
    finally:
        running = False  # again: it may have rung between the two
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # a host's timer goes on, or rings at once if its time is over
            rest = max(left - (time.monotonic() - start), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def _can_ring() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is not None
    )
