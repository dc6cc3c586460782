"""Opening files without being led astray: only regular ones, and never waiting for a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cnnfeat.errors import DataError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, error: type[DataError] = DataError) -> BinaryIO:
    """Open a regular file for reading.

    A pipe, socket or device is refused before it is opened, so that reading can't hang.

    Raises
    ------
    DataError
        Or its subclass `error`, if there is no such file, it isn't a regular one, or it can't be
        read.
    """
    try:
        _check_regular(path, path.stat().st_mode, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise unreadable(path, problem, error=error) from problem
    try:
        _check_regular(path, os.fstat(descriptor).st_mode, error)
    except DataError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def unreadable(path: Path, problem: OSError, *, error: type[DataError] = DataError) -> DataError:
    """Make the error for a file the system refuses to read."""
    return error(f"{path}: can't be read: {problem.strerror or problem}")


def printable(name: str) -> str:
    """Show a file's name, with bytes that aren't UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_regular(path: Path, mode: int, error: type[DataError]) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((words for test, words in _KINDS if test(mode)), "something else")
    raise error(f"{path}: is {kind}, not a regular file")
