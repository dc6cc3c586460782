"""Temporary files and folders, which their makers' deaths don't leave for good.

Who makes one holds a lock on it, which ends with the process, however that ends. Who makes the next
of the same kind removes those that nobody holds, and says so.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without them says
_MARK = "cnnfeat-"
_FOLDER = f"{_MARK}scratch-"
_log = logging.getLogger("cnnfeat")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Make an empty file beside `path` with its ending; it is removed at the end, if still there.

    Raises
    ------
    OSError
        If the system refuses it.
    """
    remove_abandoned(path)
    handle, temporary = -1, path
    try:
        while handle < 0:
            made, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
            handle, temporary = _held(made, Path(name)), Path(name)
        yield temporary
    finally:
        if handle >= 0:
            temporary.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Make an empty folder; it is removed at the end.

    Parameters
    ----------
    beside : Path, optional
        A file whose folder it is made in, to be moved from one to the other; else it is made where
        temporary files belong.

    Raises
    ------
    OSError
        If the system refuses it.
    """
    if beside is None:
        remove_abandoned_folders(Path(tempfile.gettempdir()))
    prefix = _FOLDER if beside is None else f".{_FOLDER}{beside.stem}-"
    handle, folder = -1, Path()
    try:
        while handle < 0:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside and beside.parent))
            handle = _held_folder(folder)
        yield folder
    finally:
        if handle >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def remove_abandoned(path: Path) -> None:
    """Remove what dead makers of `path` have left beside it."""
    pattern = f"{glob.escape(_prefix(path))}*{glob.escape(path.suffix)}"
    for left in _abandoned(path.parent, pattern):
        left.unlink(missing_ok=True)


def remove_abandoned_folders(inside: Path) -> None:
    """Remove temporary folders that dead makers have left in another."""
    for pattern in (f"{_FOLDER}*", f".{_FOLDER}*"):
        for left in _abandoned(inside, pattern):
            shutil.rmtree(left, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.stem}.{_MARK}"


def _held_folder(path: Path) -> int:
    """Lock a folder that was just made, as `_held` does; until it is open nothing holds it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    return _held(handle, path)


def _held(handle: int, path: Path) -> int:
    """Lock what was just made; -1 where another process has taken it for abandoned till then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    except FileNotFoundError:
        pass
    except OSError as error:
        # Then nobody can tell it from an abandoned one, or will; NFS has no locks of folders.
        if error.errno in (*NO_LOCKS, errno.EBADF):
            return handle
        raise
    os.close(handle)
    return -1


def _abandoned(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield what nobody holds, held meanwhile."""
    for path in folder.glob(pattern):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # of another user, or gone
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _log.info("%s was left by a run that was killed; removed", path)
            yield path
        except OSError:  # its maker lives, or there are no locks
            continue
        finally:
            os.close(handle)
