"""How long the command line waits for a stranger's network: `--timeout`.

Where Python runs, the step that takes too long ends in an error like any other, and what is under
way is ended in order. Where TensorFlow doesn't come back, the process ends after a while: what was
being written has no final name yet, and the next run removes it or goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import click

from cnnfeat.errors import UnendingError
from cnnfeat.watch import watching

GRACE_S = 5.0  # for ending in order
_MARGIN = 50.0  # how many times as long as foreseen a step may take


@contextlib.contextmanager
def waiting(timeout_s: float, context: click.Context) -> Iterator[None]:
    """Wait for each step of a command's network so long and no longer; 0: without end."""
    if not timeout_s:
        yield
        return

    def end(error: UnendingError) -> None:
        from cnnfeat.cli import cli
        from cnnfeat.cli.complaint import show_error

        try:
            show_error(error, [context.info_name or ""], root=cli)
        finally:
            os._exit(error.exit_code)

    patience = Patience(timeout_s, end)
    before = signal.signal(signal.SIGALRM, patience.interrupt)
    try:
        with watching(patience.step):
            yield
    finally:
        patience.over()
        signal.signal(signal.SIGALRM, before)


class Patience:
    """A watcher of steps, each of which may take so long and no longer.

    Parameters
    ----------
    timeout_s : float
        Seconds.
    end : callable
        Ends the process, where that doesn't end in order by itself.
    """

    def __init__(self, timeout_s: float, end: Callable[[UnendingError], None]) -> None:
        self._timeout_s = timeout_s
        self._end = end
        self._error: UnendingError | None = None
        self._over = threading.Event()
        self._done = ""

    def over(self) -> None:
        """Say that all is ended, in order."""
        self._over.set()

    @contextlib.contextmanager
    def step(self, what: str, extra_s: float) -> Iterator[None]:
        """Watch a step."""
        allowed_s = self._timeout_s + _MARGIN * extra_s
        finished = threading.Event()
        timer = threading.Timer(allowed_s, self._expire, (what, allowed_s, finished))
        timer.daemon = True
        began = time.monotonic()
        timer.start()
        try:
            yield
            self._done = f"; {what} took {time.monotonic() - began:.1f} s"
        finally:
            finished.set()
            timer.cancel()

    def _expire(self, what: str, allowed_s: float, finished: threading.Event) -> None:
        if self._error is not None or finished.is_set():
            return
        self._error = UnendingError(
            f"{what} had no end after {allowed_s:g} s{self._done}",
            hint="--timeout SECONDS waits longer, --timeout 0 without end",
        )
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGALRM)
        if not self._over.wait(GRACE_S):
            self._end(self._error)

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Raise the error where Python is."""
        if self._error is not None:
            raise self._error
