"""Work by processes: in order, a few pieces ahead, and ended with the generator."""

import multiprocessing
import os
import signal

import pytest
import torch

from phalanx.data.workers import AHEAD, worked
from phalanx.errors import DataError


def squares(rows):
    return [row**2 for row in rows], os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    pieces = [[n, n + 1] for n in range(0, 20, 2)]
    found = list(worked(squares, pieces, workers=workers))
    assert [values for values, _ in found] == [[n**2, (n + 1) ** 2] for n in range(0, 20, 2)]
    assert len({pid for _, pid in found}) == max(1, workers)
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 0)


def test_few_pieces_are_done_ahead():
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield [drawn[-1]]

    running = worked(squares, endless(), workers=2)
    for place in range(6):
        assert next(running)[0] == [place**2]
        assert len(drawn) <= place + 1 + 2 * AHEAD
    running.close()


def test_workers_end_with_the_generator():
    before = set(multiprocessing.active_children())
    running = worked(squares, ([n] for n in range(1000)), workers=2)
    next(running)
    assert len(set(multiprocessing.active_children()) - before) == 2
    running.close()
    assert set(multiprocessing.active_children()) == before


def test_global_random_state_stays():
    before = torch.get_rng_state()
    list(worked(squares, [[1], [2]], workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def die(rows):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_told_with_what_to_do():
    with pytest.raises(DataError) as error:
        list(worked(die, [[1], [2]], workers=1))
    text = str(error.value)
    assert text.startswith("a worker that decodes images died: DataLoader worker (pid")
    assert "lower [data] workers, or set it to 0" in text


def fail(rows):
    raise RuntimeError("of our own")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_stay_what_they_are(workers):
    with pytest.raises(RuntimeError, match="of our own"):
        list(worked(fail, [[1]], workers=workers))


def signals(rows):
    return [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


def test_ctrl_c_is_left_to_the_trainer():
    assert list(worked(signals, [[1]], workers=1)) == [[signal.SIG_IGN, signal.SIG_DFL]]
