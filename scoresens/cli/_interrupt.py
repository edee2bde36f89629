"""Ctrl-C, heard in the midst of a computation.

Python hears a signal between two of its own instructions, and a compiled computation, which may
take minutes, is one of them. The operating system tells a thread at once
(`signal.set_wakeup_fd`): it says that the interrupt was heard, and at a second one ends the process
as it stands. Files are whole or absent whenever that is.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from scoresens.cli._progress import tell
from scoresens.flow.solve import Solve

FEW = 8  # samples side by side where somebody may interrupt
INTERRUPTED = 130  # the exit code
PATIENCE = 1.0  # seconds for Python to hear of it by itself


def attended(solve: Solve) -> Solve:
    """With few samples side by side where somebody sits at a terminal: between the batches that
    Python itself goes through, one interrupt is enough."""
    return replace(solve, batch_size=FEW) if sys.stderr.isatty() else solve


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, a second Ctrl-C ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals cannot be listened to
        return
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(source,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(sink)  # which ends the listener
        listener.join()
        os.close(source)


def _listen(source: int) -> None:
    """End the process at the second interrupt; return where no more can come."""
    heard, told = 0, False
    while heard < 2:
        waiting = PATIENCE if heard and not told else None
        if not select.select([source], [], [], waiting)[0]:
            words = "interrupted: the computation at hand ends first; Ctrl-C again ends it at once"
            tell(f"\nscoresens: {words}")
            told = True
        elif numbers := os.read(source, 64):
            heard += numbers.count(signal.SIGINT)
        else:
            return
    os._exit(INTERRUPTED)
