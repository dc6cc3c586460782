"""Outputs that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cnnfeat.errors import OutputExistsError, StorageError

_QUOTED_ENDS = "\r\n"  # the csv module quotes a cell only for characters of its own line end


def check_output(path: Path, *, overwrite: bool, needed_bytes: int = 0) -> None:
    """Make sure, before any long work, that `path` can be written.

    Parameters
    ----------
    path : Path
        The final name. Its folder is made if there is none.
    overwrite : bool
        Whether a file of that name may be replaced.
    needed_bytes : int
        What must be free on the disk, in bytes.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    StorageError
        If the folder can't be made or written to, or the disk is too full.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder, not a file", hint="name a file with -o")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists", hint="--overwrite replaces it; -o writes elsewhere"
        )
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"\0")
        free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{path} needs {needed_bytes:,} bytes, and {path.parent} has {free_bytes:,} free",
            hint="free some space, or write elsewhere with -o",
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
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


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
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", "utf-8")


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
