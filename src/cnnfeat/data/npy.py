"""Arrays that stay in their file, and NumPy's files of them: `.npy`, one array, and `.npz`, a zip.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html - nothing is ever unpickled.

Rows are read when they are asked for, at their position in the file instead of through a memory
map: what was read doesn't count as this process's memory for ever, and a file that shrinks
meanwhile gives an error instead of killing the process.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import numpy as np

from cnnfeat.archives import DEFLATE_LIMIT, Archive
from cnnfeat.data.source import Rows, open_file
from cnnfeat.errors import DataError, StorageError
from cnnfeat.npyheader import NpyHeader, read_npy_header

if TYPE_CHECKING:
    from cnnfeat.records import Array

IN_MEMORY_BYTES = 256 * 2**20  # what is unpacked and larger goes to a temporary file
_CHUNK_BYTES = 2**20
_ENDING = ".npy"
ZIP_MAGIC = b"PK\x03\x04"


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
    chunks = _chunks(stream, size_bytes, name=name)
    if size_bytes > IN_MEMORY_BYTES:
        with _temporary_file(size_bytes, name=name) as file:
            for chunk in chunks:
                _write(file, chunk)
            file.flush()
            return StoredRows(file, shape, dtype=dtype, offset=0, name=name)
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    for chunk in chunks:
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    array.flags.writeable = False
    return array


def _chunks(stream: BinaryIO, size_bytes: int, *, name: str) -> Iterator[bytes]:
    done = 0
    while done < size_bytes:
        chunk = stream.read(min(_CHUNK_BYTES, size_bytes - done))
        if not chunk:
            raise DataError(
                f"{name}: ends after {done:,} of the {size_bytes:,} bytes its header declares"
            )
        yield chunk
        done += len(chunk)


def _temporary_file(size_bytes: int, *, name: str) -> BinaryIO:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise StorageError(
            f"{name}: unpacking needs {size_bytes:,} bytes in {folder}, which has {free:,} left",
            hint="unpack it yourself, or set TMPDIR to a folder on a larger disk",
        )
    return cast(BinaryIO, tempfile.TemporaryFile())


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise StorageError(
            f"unpacking to {tempfile.gettempdir()} failed: {error.strerror}",
            hint="set TMPDIR to a folder on a larger disk",
        ) from error


class NpyFile:
    """An `.npy` file: one array, which has no name."""

    kind = "npy"

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            self._header = read_npy_header(file, str(path), size_bytes=size)
        self.shapes: Mapping[str, tuple[int, ...]] = {"": self._header.shape}

    def rows(self, name: str) -> Rows:
        """Open the array; `name` is ""."""
        if name not in self.shapes:
            raise DataError(f"{self._path}: an .npy file has one array, without a name")
        _refuse_objects(self._header, str(self._path))
        with open_file(self._path) as file:
            return _rows_at(file, self._header, offset=0, name=str(self._path))

    def close(self) -> None:
        """Nothing stays open."""


class NpzFile:
    """An `.npz` file: arrays by name.

    A member stored without compression is read in place; a compressed one is unpacked when it is
    asked for, into memory or, when it is large, a temporary file.
    """

    kind = "npz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_file(path)
        try:
            self._archive = Archive(path, file=self._file, ratio=DEFLATE_LIMIT)
            arrays = [name for name in self._archive.names if name.endswith(_ENDING)]
            if not arrays:
                raise DataError(
                    f"{path}: a ZIP archive without arrays, and nothing is unpacked here",
                    hint="unpack it first: unzip FILE",
                )
            self._headers = {name.removesuffix(_ENDING): self._header(name) for name in arrays}
        except DataError:
            self._file.close()
            raise
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: header.shape for name, header in self._headers.items()
        }

    def rows(self, name: str) -> Rows:
        """Open one of the arrays."""
        member, header = f"{name}{_ENDING}", self._headers[name]
        label = f"{self._path}:/{name}"
        _refuse_objects(header, label)
        start = self._archive.start(member)
        if start is not None:
            return _rows_at(self._file, header, offset=start, name=label)
        packed_bytes = self._archive.packed_bytes(member)
        with self._archive.open(member) as stream:
            return _unpack(stream, header, packed_bytes=packed_bytes, name=label)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()
        self._file.close()

    def _header(self, member: str) -> NpyHeader:
        label = f"{self._path}:/{member.removesuffix(_ENDING)}"
        with self._archive.open(member) as stream:
            return read_npy_header(stream, label, size_bytes=self._archive.size_bytes(member))


def _refuse_objects(header: NpyHeader, name: str) -> None:
    if header.dtype.hasobject:
        raise DataError(
            f"{name}: an array of Python objects, which only unpickling could read; that is "
            "refused",
            hint="save it again as an array of numbers, for example "
            "np.stack(list(x)).astype('uint8'), or of text, x.astype(str)",
        )


def _rows_at(file: BinaryIO, header: NpyHeader, *, offset: int, name: str) -> Rows:
    begin = offset + header.length
    if header.fortran_order and len(header.shape) > 1:  # rows are scattered over the file
        mapped: Rows = np.memmap(
            file, header.dtype, mode="r", offset=begin, shape=header.shape, order="F"
        )
        return mapped
    return StoredRows(file, header.shape, dtype=header.dtype, offset=begin, name=name)


def _unpack(stream: IO[bytes], header: NpyHeader, *, packed_bytes: int, name: str) -> Rows:
    if header.data_bytes > packed_bytes * DEFLATE_LIMIT:
        raise DataError(
            f"{name}: declares {header.shape} of {header.dtype}; {packed_bytes:,} packed bytes "
            "can't hold that"
        )
    if header.fortran_order and len(header.shape) > 1:
        raise DataError(
            f"{name}: compressed in Fortran order; rows can't be read one by one",
            hint="save it again from np.ascontiguousarray(x)",
        )
    stream.read(header.length)
    rows = unpack(cast(BinaryIO, stream), header.shape, dtype=header.dtype, name=name)
    if stream.read(1):  # reading to the end also checks the member's checksum
        raise DataError(f"{name}: goes on after the array its header declares")
    return rows
