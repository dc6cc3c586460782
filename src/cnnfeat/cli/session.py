"""One invocation of the command line: its settings, its signals, and the start of TensorFlow."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from cnnfeat.address import Address
from cnnfeat.errors import Interrupted, MissingInputError

if TYPE_CHECKING:
    from cnnfeat.options import RunOptions

ARTIFACTS_VARIABLE = "CNNFEAT_DIR"
_DEFAULTS = {"model": "model.keras", "argument": "features.h5", "svm": "svm.skops"}
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


def typed(command: str, *words: str, **artifacts: Path | Address | str) -> str:
    """Write a command to type next, with what it can't find by itself.

    Parameters
    ----------
    command : str
        The command's name.
    words : str
        What is typed behind it.
    **artifacts : Path, Address or str
        Files by the options that name them, or `argument`; those that lie where the command looks
        for them need no word.
    """
    for option, path in artifacts.items():
        if Path(str(path)) != artifact(_DEFAULTS[option]):
            words = (*words, *([] if option == "argument" else [f"--{option}"]), str(path))
    return shlex.join(["cnnfeat", command, *words])


def own_model(otherwise: str) -> str:
    """Find the network that `cnnfeat train` makes.

    Raises
    ------
    MissingInputError
        If it isn't there; the hint ends in `otherwise`, which says how another is named.
    """
    path = artifact("model.keras")
    if not path.exists():
        raise MissingInputError(
            f"there is no model {path}", hint=f"`cnnfeat train` makes one; {otherwise}"
        )
    return str(path)


def start_tensorflow(settings: Settings, *, n_calls: int = 1, device: str = "auto") -> None:
    """Start TensorFlow for `n_calls` of a network at a time; what it writes is shown with -v."""
    from cnnfeat.memory import limit_memory
    from cnnfeat.network import starting

    quiet = settings.verbosity <= 0
    starting.start_tensorflow(n_calls=n_calls, device=device, quiet=quiet)
    limit_memory()


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


def told_to_resume(
    error: Interrupted, signal_number: int | None = None, *, by: Sequence[str] = ("--resume",)
) -> Interrupted:
    """Say which command goes on, where something is left that it can go on with.

    Parameters
    ----------
    error : Interrupted
        What was raised; with a hint, if so.
    signal_number : int, optional
        The signal, where another one was heard than that of the error.
    by : sequence of str
        What the command that goes on says besides.
    """
    given = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    command = shlex.join(["cnnfeat", *given, *by])
    return Interrupted(
        error.message,
        signal_number=signal_number or error.signal_number,
        hint=error.hint and f"{command} goes on from there",
    )
