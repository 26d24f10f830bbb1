"""Work on rows by worker processes, in order and a few pieces ahead."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from phalanx.errors import DataError

ResultT = TypeVar("ResultT")

AHEAD = 2
"""Pieces that each worker may have done before they are asked for."""
_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""


class _Work(Dataset[Any], Generic[ResultT]):
    """A function of rows, as torch's DataLoader calls it: once for a whole piece."""

    def __init__(self, function: Callable[[list[int]], ResultT]) -> None:
        self.function = function

    def __getitems__(self, rows: list[int]) -> ResultT:
        return self.function(rows)


def worked(
    function: Callable[[list[int]], ResultT], pieces: Iterable[list[int]], *, workers: int
) -> Generator[ResultT, None, None]:
    """`function` of each piece in turn.

    At most `AHEAD` pieces a worker are done or being done, so memory does not grow with their
    number; `pieces` is drawn from as it is needed. The workers end with the generator.

    Args:
        function: must not touch random state or an accelerator; pickled where the system cannot
            fork.
        pieces: rows; an endless iterable will do.
        workers: processes, no more of them than cores; 0 works here, without any.

    Raises:
        DataError: if a worker dies, with what to do.
    """
    if not workers:
        for rows in pieces:
            yield function(rows)
        return
    # forked where that is possible: a spawned process imports torch and the caller's main module
    method = "fork" if sys.platform == "linux" else "spawn"
    loader: DataLoader[Any] = DataLoader(
        _Work(function),
        batch_sampler=pieces,  # any iterable of lists of rows will do
        num_workers=min(workers, _cores()),
        collate_fn=_as_it_is,
        worker_init_fn=_own_signals,
        prefetch_factor=AHEAD,
        multiprocessing_context=multiprocessing.get_context(method),
        generator=torch.Generator(),  # else it draws from the global one
    )
    with warnings.catch_warnings():
        # from 3.12 on, of forking beside threads; workers take no lock that one could hold
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        running = iter(loader)
    try:
        yield from running
    except RuntimeError as error:
        if not re.match(r"DataLoader worker \(pid", str(error)):
            raise
        raise DataError(
            f"a worker that decodes images died: {str(error).splitlines()[0]}. It may have been "
            "short of memory, or of shared memory (/dev/shm, in a container --shm-size); lower "
            "[data] workers, or set it to 0 to decode without workers"
        ) from error
    finally:
        running._shutdown_workers()  # type: ignore[attr-defined]  # else it waits for collection


def _cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_it_is(found: ResultT) -> ResultT:
    return found


def _own_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains decides what comes of it."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # a killed trainer takes its workers along, which hold its lock on the run folder
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
