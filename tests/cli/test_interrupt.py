"""Ctrl-C in the midst of a compiled computation."""

import signal
import subprocess
import sys
import threading
import time

import pytest

import scoresens as ss
from scoresens.cli._interrupt import FEW, INTERRUPTED, attended, interruptible

BUSY = """
import signal
import jax
from scoresens.cli._interrupt import interruptible
spin = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 3, lambda x: jax.numpy.sin(x) + 1, x))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
print("ready", flush=True)
with interruptible():
    spin(1.0).block_until_ready()
"""


@pytest.fixture(autouse=True)
def heard():
    """Interrupts as at a terminal: a shell lets what it runs in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_second_interrupt_ends_an_endless_computation():
    command = [sys.executable, "-c", BUSY]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        watchdog = threading.Timer(120, running.kill)  # so that no line is waited for without end
        watchdog.start()
        try:
            assert running.stdout.readline() == "ready\n"
            time.sleep(2)  # to compile, and to begin
            running.send_signal(signal.SIGINT)
            said = next(line for line in running.stderr if line.strip())
            assert "Ctrl-C again ends it at once" in said
            assert running.poll() is None  # the computation goes on
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == INTERRUPTED
        finally:
            watchdog.cancel()
            running.kill()


def test_the_first_is_an_exception_as_ever():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)


def test_nothing_is_left_behind():
    before, threads = signal.set_wakeup_fd(-1), threading.active_count()
    with interruptible():
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(before) == -1


def test_where_signals_cannot_be_heard_nothing_is_done():
    found = []

    def elsewhere():
        with interruptible():
            found.append(threading.active_count())

    other = threading.Thread(target=elsewhere)
    before = threading.active_count()
    other.start()
    other.join()
    assert found == [before + 1]  # that thread itself


@pytest.mark.parametrize(("watched", "size"), [(True, FEW), (False, ss.Solve().batch_size)])
def test_batches_are_small_at_a_terminal(monkeypatch, watched, size):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
    assert attended(ss.Solve(steps=7)) == ss.Solve(steps=7, batch_size=size)
