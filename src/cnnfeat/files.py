"""Outputs that appear whole or not at all: checked before, locked meanwhile, renamed at the end."""

from __future__ import annotations

import csv
import errno
import io
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cnnfeat.documents import json_text
from cnnfeat.errors import LockedError, OutputExistsError, StorageError
from cnnfeat.regular import IrregularError, open_regular, require_regular
from cnnfeat.temporary import NO_LOCKS, remove_abandoned, temporary_file

_QUOTED_ENDS = "\r\n"  # the csv module quotes a cell only for characters of its own line end
_HOLDER_WAIT_S = 0.5
_LONGEST_NUMBER = 20  # bytes of a process id


def check_output(
    path: Path,
    *,
    overwrite: bool,
    resume: bool = False,
    needed_bytes: int = 0,
    unfinished: Path | None = None,
) -> None:
    """Make sure, before any long work, that `path` can be written.

    Parameters
    ----------
    path : Path
        The final name. Its folder need not be there.
    overwrite : bool
        Whether a file of that name may be replaced.
    resume : bool
        Whether to go on with what is there.
    needed_bytes : int
        What must be free on the disk, in bytes.
    unfinished : Path, optional
        What an interrupted run has left, and only `overwrite` or `resume` may touch.

    Raises
    ------
    OutputExistsError
        If there is a file, or a part of one, and neither `overwrite` nor `resume` says what to do.
    LockedError
        If another process writes it.
    StorageError
        If the folder can't be made or written to, or the disk is too full.
    """
    writer = _writer_of(lock_path(path))
    if writer not in (None, os.getpid()):
        raise _locked_error(path, writer)
    with _storage_errors(path):
        _refuse_irregular(path)
        if not overwrite and not resume:
            _refuse_existing(path, unfinished)
        # A folder is made when there is something for it; what it would lie in is tried.
        with tempfile.TemporaryFile(dir=_there(path.parent)) as probe:
            probe.write(b"\0")
        remove_abandoned(path)
    if needed_bytes:
        check_space(path, needed_bytes)


def _there(folder: Path) -> Path:
    """The folder itself, or of those that it is to lie in the nearest that there is."""
    whole = folder.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those it lies in; what is still empty at the end is removed again."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in made:
            with suppress(OSError):  # something lies in it
                one.rmdir()


def _refuse_irregular(path: Path) -> None:
    try:
        require_regular(path)
    except FileNotFoundError:
        return
    except IrregularError as error:
        raise OutputExistsError(f"{path} {error}", hint="name a file with -o") from error


def _refuse_existing(path: Path, unfinished: Path | None) -> None:
    if path.exists():
        raise OutputExistsError(
            f"{path} exists", hint="--overwrite replaces it; -o writes elsewhere"
        )
    if unfinished is not None:
        raise OutputExistsError(
            f"{path} was begun and interrupted: {unfinished} holds what is done",
            hint="--resume goes on with it; --overwrite starts over",
        )


def check_space(
    path: Path,
    needed_bytes: int,
    *,
    present_bytes: int = 0,
    n_files: int = 1,
    smaller: str = "",
) -> None:
    """Compare what a file needs with what the disk and the process's limit leave.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    needed_bytes : int
        Its size when it is complete.
    present_bytes : int
        What an interrupted run has taken of it already.
    n_files : int
        How many files that is, of one size about.
    smaller : str
        Options that make it smaller, for the hint.

    Raises
    ------
    StorageError
        With both numbers.
    """
    less = f"; or store less: {smaller}" if smaller else ""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    file_bytes = needed_bytes // n_files
    if limit != resource.RLIM_INFINITY and file_bytes > limit:
        raise StorageError(
            f"{path} needs {file_bytes:,} bytes, and this process may write files of {limit:,}",
            hint=f"raise the limit (ulimit -f){less}",
        )
    with _storage_errors(path):
        free_bytes = shutil.disk_usage(_there(path.parent)).free
    if needed_bytes - present_bytes > free_bytes:
        raise StorageError(
            f"{path} needs {needed_bytes - present_bytes:,} bytes, "
            f"and {path.parent} has {free_bytes:,} free",
            hint=f"free some space, or write elsewhere with -o{less}",
        )


def lock_path(path: Path) -> Path:
    """Name the file that says who writes `path`; two names of one file have one lock."""
    return Path(os.path.realpath(path) + ".lock")


@contextmanager
def locked(path: Path, *, name: object = None) -> Iterator[None]:
    """Let no other process write `path` meanwhile.

    The lock ends with its process, however that ends. Its file keeps the process's number and is
    removed at the end; one left by a dead process doesn't block.

    Parameters
    ----------
    path : Path
        What is written; the lock's file lies beside it.
    name : object, optional
        What it is called in words, where that is something else.

    Raises
    ------
    LockedError
        At once, if another process has the lock.
    StorageError
        If the lock file can't be made.
    """
    from filelock import FileLock, Timeout  # takes 0.08 s, and few outputs are locked

    file = lock_path(path)
    lock = FileLock(
        file,
        timeout=0,
        thread_local=False,
        fallback_to_soft=False,
        on_acquired=_write_process_id,
    )
    end = time.monotonic() + _HOLDER_WAIT_S
    with ExitStack() as stack:
        with _storage_errors(file):
            stack.enter_context(_folder(file.parent))
            while not lock.is_locked:
                try:
                    lock.acquire()
                except Timeout as error:  # its holder may be about to write its number, or to end
                    holder = _process_in(file)
                    if holder is not None or time.monotonic() > end:
                        raise _locked_error(name or path, holder or "unknown") from error
                    time.sleep(0.01)
                except (OSError, NotImplementedError) as error:
                    if getattr(error, "errno", errno.ENOSYS) in NO_LOCKS:
                        raise _no_locks(path) from error
                    raise
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # before letting go: no second one of that name while held
            lock.release()


def _no_locks(path: Path) -> StorageError:
    folder = Path(os.path.realpath(path)).parent
    return StorageError(
        f"{folder}: its file system has no locks, which keep others from writing {path.name}",
        hint="-o writes elsewhere, such as to a local disk",
    )


def _write_process_id(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def _process_in(lock: Path) -> int | None:
    """The process id in a lock file, if it is one that lives."""
    try:
        with open_regular(lock) as file:
            pid = int(file.read(_LONGEST_NUMBER))
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and _lives(pid) else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _writer_of(lock: Path) -> int | None:
    """The process that holds a lock now; None where it could be taken."""
    pid = _process_in(lock)
    if pid is None:
        return None
    from filelock import lock_descriptor

    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:  # of another user
        return pid
    except OSError:
        return None
    try:
        return None if lock_descriptor(handle, blocking=False) else pid
    finally:
        os.close(handle)


def _locked_error(place: object, process: object) -> LockedError:
    name = os.path.realpath(place) if isinstance(place, Path) else place
    return LockedError(
        f"{name} is being written by process {process}",
        hint="wait for it, stop it, or write elsewhere with -o",
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, with its ending; give it the final name at the end.

    The file is synced before it is renamed, and the folder after. If the block fails or is
    interrupted, the temporary file is removed and an older file of the final name is untouched.

    Raises
    ------
    StorageError
        If the disk is full or the folder can't be written.
    """
    with _storage_errors(path), _folder(path.parent), temporary_file(path) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: object) -> None:
    """Write a JSON document, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(document, indent=2) + "\n", "utf-8")


def csv_cells(row: Sequence[object]) -> str:
    """Write one row as CSV without its line end, quoting cells that hold one of any kind."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator=_QUOTED_ENDS).writerow(row)
    return line.getvalue().removesuffix(_QUOTED_ENDS)


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Write rows as lines of CSV."""
    return (csv_cells(row) + "\n" for row in rows)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Name the output in what the system says of it."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno is None:  # not the system's
            raise
        raise StorageError(
            f"can't write {path}: {error.strerror}", hint="write elsewhere with -o"
        ) from error
