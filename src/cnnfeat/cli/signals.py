"""Ctrl-C and SIGTERM as a wish: the first is heard at the next batch, the second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked to stop; call it to know."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal_number is not None

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number
        # Not through Python's buffers: this may run in the middle of another write to them.
        os.write(2, b"\nstopping after this block; once more to stop at once\n")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Hear signals while a long task runs; what held before holds again afterwards."""
    request = StopRequest()
    before = {number: signal.signal(number, request._hear) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
