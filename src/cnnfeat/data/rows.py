"""Arrays that stay in their file: rows are read when they are asked for.

Rows are read at their position in the file instead of through a memory map: what was read doesn't
count as this process's memory for ever, and a file that shrinks meanwhile gives an error instead of
killing the process.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from cnnfeat.errors import DataError, StorageError

if TYPE_CHECKING:
    from cnnfeat.records import Array

IN_MEMORY_BYTES = 256 * 2**20  # what is unpacked and larger goes to a temporary file
_CHUNK_BYTES = 2**20


class Rows(Protocol):
    """An array read in slices of its first axis: a NumPy array, an HDF5 data set, `StoredRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.generic]: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


class StoredRows:
    """Rows that lie one after the other in a file.

    Parameters
    ----------
    file : BinaryIO
        Open for reading; its descriptor is duplicated, so it may be closed afterwards.
    shape : tuple of int
        With rows along the first axis.
    dtype : numpy.dtype
    offset : int
        Where the first row begins, in bytes.
    name : str
        For messages.
    """

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, ...],
        *,
        dtype: np.dtype[np.generic],
        offset: int,
        name: str,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._offset = offset
        self._name = name
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._descriptor = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        block = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        view = block.reshape(-1).view(np.uint8).data
        position = self._offset + start * self._row_bytes
        done = 0
        while done < len(view):
            n_read = os.preadv(self._descriptor, [view[done:]], position + done)
            if not n_read:
                raise DataError(
                    f"{self._name}: ends within row {start + done // self._row_bytes} of "
                    f"{self.shape[0]}; it was cut short while being read"
                )
            done += n_read
        return block

    def close(self) -> None:
        """Let go of the file."""
        self._close()


def unpack(
    stream: BinaryIO, shape: tuple[int, ...], *, dtype: np.dtype[np.generic], name: str
) -> Rows:
    """Read an array out of a compressed stream, never more than its shape declares.

    Up to 256 MiB it is held in memory; a larger one goes to a temporary file without a name, which
    vanishes with the process.

    Raises
    ------
    DataError
        If the stream ends before the array does.
    StorageError
        If the temporary file doesn't fit on its disk.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes > IN_MEMORY_BYTES:
        return _unpack_to_disk(stream, shape, dtype=dtype, name=name)
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < size_bytes:
        chunk = stream.read(min(_CHUNK_BYTES, size_bytes - done))
        if not chunk:
            raise _ended(name, done, size_bytes)
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    array.flags.writeable = False
    return array


def _unpack_to_disk(
    stream: BinaryIO, shape: tuple[int, ...], *, dtype: np.dtype[np.generic], name: str
) -> Rows:
    size_bytes = math.prod(shape) * dtype.itemsize
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise StorageError(
            f"{name}: unpacking needs {size_bytes:,} bytes in {folder}, which has {free:,} left",
            hint="unpack it yourself, or set TMPDIR to a folder on a larger disk",
        )
    with tempfile.TemporaryFile() as file:
        done = 0
        while done < size_bytes:
            chunk = stream.read(min(_CHUNK_BYTES, size_bytes - done))
            if not chunk:
                raise _ended(name, done, size_bytes)
            _write(file, chunk, folder=folder)
            done += len(chunk)
        file.flush()
        return StoredRows(file, shape, dtype=dtype, offset=0, name=name)


def _write(file: BinaryIO, chunk: bytes, *, folder: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise StorageError(
            f"unpacking to {folder} failed: {error.strerror}",
            hint="set TMPDIR to a folder on a larger disk",
        ) from error


def _ended(name: str, done: int, size_bytes: int) -> DataError:
    return DataError(f"{name}: ends after {done:,} of the {size_bytes:,} bytes its header declares")
