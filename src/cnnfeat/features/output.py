"""Whether a feature file may be written, and what an interrupted run left of it."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import LockedError, OutputExistsError, StorageError, UsageError
from cnnfeat.features.disk import OutputLock, storage_errors
from cnnfeat.features.journal import Header, read_header

_TEXT_BYTES_PER_ROW = 96  # an id in the file and in the journal, with what HDF5 adds
_SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """A feature file's final name and the names beside it while it is made."""

    final: Path

    @classmethod
    def of(cls, path: Path) -> OutputPaths:
        """Follow symbolic links, so that two names of one file are one output."""
        return cls(Path(os.path.realpath(path)))

    def _beside(self, suffix: str) -> Path:
        return self.final.with_name(self.final.name + suffix)

    @property
    def partial(self) -> Path:
        """The file in the making."""
        return self._beside(".partial")

    @property
    def compact(self) -> Path:
        """Where the kept rows are moved together when samples were left out."""
        return self._beside(".compact")

    @property
    def journal(self) -> Path:
        """Which blocks are done."""
        return self._beside(".journal")

    @property
    def lock(self) -> Path:
        """Who writes."""
        return self._beside(".lock")


def check_output(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Make sure, before any long work, that a feature file may be written as `path`.

    Raises
    ------
    OutputExistsError
        If it exists, or an interrupted run left a part of it, and neither `overwrite` nor
        `resume` says what to do.
    LockedError
        If another process writes it.
    StorageError
        If the folder can't be made or written to.
    """
    paths = OutputPaths.of(path)
    writer = OutputLock(paths.lock).held_by()
    if writer not in (None, os.getpid()):
        raise locked_error(paths, writer)
    if paths.final.is_dir():
        raise OutputExistsError(f"{path} is a folder, not a file", hint="name a file with -o")
    if not resume and not overwrite:
        _refuse_existing(path, paths)
    with storage_errors(path):
        paths.final.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(paths.final.parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"{path}: the folder {paths.final.parent} is not writable",
            hint="write elsewhere with -o",
        )


def locked_error(paths: OutputPaths, process: object) -> LockedError:
    """Say who writes an output."""
    return LockedError(
        f"{paths.final} is being written by process {process}",
        hint="wait for it, stop it, or write elsewhere with -o",
    )


def _refuse_existing(path: Path, paths: OutputPaths) -> None:
    if paths.final.exists():
        raise OutputExistsError(
            f"{path} exists", hint="--overwrite replaces it; -o writes elsewhere"
        )
    if paths.partial.exists() and read_header(paths.journal) is not None:
        raise OutputExistsError(
            f"{path} was begun and interrupted: {paths.partial} holds what is done",
            hint="--resume goes on with it; --overwrite starts over",
        )


def unfinished_header(path: Path) -> Header | None:
    """Read what an interrupted run was meant to make, or None where there is none."""
    return read_header(OutputPaths.of(path).journal)


def check_same(
    path: Path, before: Mapping[str, str], now: Mapping[str, str], *, hint: str = ""
) -> None:
    """Refuse to go on with an output that was begun with other settings; name the first.

    Raises
    ------
    UsageError
        With the setting's name and both values.
    """
    for name in [*now, *(key for key in before if key not in now)]:
        if before.get(name) != now.get(name):
            raise UsageError(
                f"{path} was begun with another {name}: "
                f"{before.get(name, 'none')}, and now it is {now.get(name, 'none')}",
                hint=hint or "give the same again, or start over with --overwrite",
            )


def check_space(path: Path, *, size_bytes: int, n_rows: int, present_bytes: int = 0) -> None:
    """Compare what a file needs with what the disk and the process's limit leave.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    size_bytes, n_rows : int
        Of all its arrays.
    present_bytes : int
        What an interrupted run has taken of it already.

    Raises
    ------
    StorageError
        With both numbers.
    """
    needed = size_bytes + n_rows * _TEXT_BYTES_PER_ROW + _SLACK_BYTES
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise StorageError(
            f"{path} needs {needed:,} bytes, and this process may write files of {limit:,}",
            hint="raise the limit (ulimit -f), or store less: --dtype float16, --pool, --limit",
        )
    with storage_errors(path):
        stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize
    if needed - present_bytes > free:
        raise StorageError(
            f"{path} needs {needed - present_bytes:,} bytes, and {path.parent} has {free:,} free",
            hint="free some space, write elsewhere with -o, or store less: --dtype float16, --pool",
        )
