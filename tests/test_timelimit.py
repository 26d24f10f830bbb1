"""A limit ends what runs too long, and the host's own alarm goes on."""

import signal
import threading
import time

import pytest

from phalanx.timelimit import TimeLimit, limited

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm signal here")


def forever():
    while True:
        pass


@pytest.fixture
def host():
    """A host's handler and a timer of 100 s; pytest's own come back."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    timer = signal.setitimer(signal.ITIMER_REAL, 100.0, 7.0)
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_result_comes_through():
    assert limited(60.0, lambda: 3) == 3
    with pytest.raises(KeyError):
        limited(60.0, lambda: {}["x"])


def test_an_endless_loop_ends():
    with pytest.raises(TimeLimit):
        limited(0.05, forever)


def test_except_exception_does_not_swallow_it():
    def stubborn():
        try:
            forever()
        except Exception:
            return "swallowed"

    with pytest.raises(TimeLimit):
        limited(0.05, stubborn)


def test_it_rings_again_where_it_was_swallowed_once():
    def stubborn():
        try:
            forever()
        except BaseException:  # what a careless plugin may do
            forever()

    with pytest.raises(TimeLimit):
        limited(0.05, stubborn)


def test_handler_and_timer_come_back(host):
    handler = signal.getsignal(signal.SIGALRM)
    limited(60.0, lambda: None)
    with pytest.raises(TimeLimit):
        limited(0.05, forever)
    assert signal.getsignal(signal.SIGALRM) is handler
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left < 100
    assert interval == 7.0
    assert host == []


def test_a_hosts_timer_that_ended_meanwhile_rings_afterwards(host):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    with pytest.raises(TimeLimit):
        limited(0.1, forever)
    while not host:
        time.sleep(0.001)
    assert len(host) == 1


def test_a_thread_has_no_limit():
    done = []
    thread = threading.Thread(target=lambda: done.append(limited(0.001, lambda: time.sleep(0.05))))
    thread.start()
    thread.join()
    assert done == [None]
