"""Ctrl-C: one line and exit code 130, wherever it falls."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from phalanx.cli.stopping import keeps, stoppable


@pytest.fixture
def handlers():
    """The interpreter's own handlers, whatever runs the tests."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def test_what_is_kept_is_asked_after_the_interrupt():
    kept = []

    def work():
        kept.extend(["one", "two"])
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt, match="2 cells are kept"),
        keeps(lambda: f"{len(kept)} cells are kept"),
    ):
        work()
    with keeps(lambda: "nothing"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_unwinds(handlers, number):
    hook = sys.unraisablehook
    with stoppable(as_program=False) as stopped:
        assert not stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert stopped()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sys.unraisablehook is hook


def test_a_program_that_is_about_to_end_ends_silently(handlers):
    with stoppable(as_program=True):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_hosts_own_handler_is_left_alone(handlers):
    def own(number, frame):
        pass

    signal.signal(signal.SIGINT, own)
    with stoppable(as_program=True):
        assert signal.getsignal(signal.SIGINT) is own
    assert signal.getsignal(signal.SIGINT) is own


def test_a_thread_has_no_signals(handlers):
    def enter():
        with stoppable(as_program=True) as stopped:
            seen.append(stopped())

    seen = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


CASES = {
    "twice": """
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: pass
        signal.raise_signal(signal.SIGINT)""",
    "destructor": """
        class Late:
            def __del__(self): signal.raise_signal(signal.SIGINT)
        Late()""",
    "import that says something else": """
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: raise ImportError('numpy is odd')""",
    "once": "signal.raise_signal(signal.SIGINT)",
}
PROGRAM = """
import signal, sys
from phalanx import cli
from phalanx.cli import listing
def load():
{body}
    print("went on")
listing.load_registry = load
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(["list"]))
"""


@pytest.mark.parametrize("case", CASES)
def test_never_a_traceback(case):
    body = textwrap.indent(textwrap.dedent(CASES[case]), "    ")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().startswith("interrupted")
    assert len(done.stderr.strip().splitlines()) == 1
