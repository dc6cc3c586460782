"""One invocation of the command line: its settings, its signals, and the start of TensorFlow."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from cnnfeat.errors import Interrupted

if TYPE_CHECKING:
    from cnnfeat.options import RunOptions

ARTIFACTS_VARIABLE = "CNNFEAT_DIR"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Settings:
    """Filled in by the options that every command has."""

    debug: bool = False
    verbosity: int = 0  # -1: warnings only, 0: normal, 1: everything
    progress: bool = True
    config: RunOptions | None = None  # of --config


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def artifact(name: str) -> Path:
    """Where an artifact lies by default: `$CNNFEAT_DIR/name`, or `artifacts/name`."""
    return Path(os.environ.get(ARTIFACTS_VARIABLE) or "artifacts") / name


def start_tensorflow(settings: Settings, *, n_calls: int = 1) -> None:
    """Import TensorFlow and find its devices; what it writes meanwhile is shown with -v alone.

    Its C++ half logs to the process's stderr before any of its own settings takes effect. `n_calls`
    of a network will be under way at a time.
    """
    with _native_stderr_hidden(hidden=settings.verbosity <= 0):
        from cnnfeat.network import runtime

        runtime.start(n_calls=n_calls)


@contextlib.contextmanager
def _native_stderr_hidden(*, hidden: bool) -> Iterator[None]:
    """Send file descriptor 2 to a temporary file; show what came there if the block fails."""
    if not hidden:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except (KeyboardInterrupt, Interrupted):
            raise
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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
