"""Trainings that can be killed: processes that are forked where everything is imported already."""

import multiprocessing
from multiprocessing.process import BaseProcess

import pytest

from phalanx import cli


@pytest.fixture(scope="session")
def in_background():
    """Starts ``phalanx train …`` in a process of its own, without the seconds that imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["phalanx.training.run", "phalanx.cli.progress"])

    def start(*arguments: str) -> BaseProcess:
        process = context.Process(target=cli.main, args=(["train", *arguments],))
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:  # for the process that forks, which is started once
        patch.setenv("OMP_WAIT_POLICY", "passive")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield start
