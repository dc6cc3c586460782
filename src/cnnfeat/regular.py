"""Regular files, the only ones that are read: a pipe would be waited for, a device has no end."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class IrregularError(OSError):
    """What a path leads to is no regular file."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; raises as `regular_handle` does."""
    return os.fdopen(regular_handle(path), "rb")


def regular_handle(path: Path) -> int:
    """Open a regular file for reading, as the system has it.

    What is none, a pipe or a device, is refused before it is opened, so that nothing waits for it.

    Raises
    ------
    FileNotFoundError
        If there is none, or no file can have such a name.
    IrregularError
        If it is something else; with what it is.
    OSError
        If the system refuses it.
    """
    require_regular(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(path, os.fstat(handle).st_mode)
    except IrregularError:
        os.close(handle)
        raise
    return handle


def require_regular(path: Path) -> None:
    """Make sure that a path leads to a regular file; raises as `regular_handle` does."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise FileNotFoundError(errno.ENOENT, "no file has such a name", str(path)) from error
    _check_mode(path, mode)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in _KINDS if test(mode)), "something else")
        raise IrregularError(errno.EINVAL, f"is {kind}, not a regular file", str(path))


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8 text.

    Raises
    ------
    OSError
        As `regular_handle` does.
    UnicodeDecodeError
        If it is no such text.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, wherever links lead it."""
    # Unlike `resolve`, this also ends where links lead in a circle.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
