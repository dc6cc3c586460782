"""IDX, the format of MNIST: http://yann.lecun.com/exdb/mnist/ (section "file formats").

Four bytes: two zeros, the type of the numbers, the number of dimensions. Then each dimension as a
big-endian 32-bit integer, then the numbers, big-endian, the last dimension varying fastest.
Nothing in a file is believed: magic, dimensions and length are checked before memory is taken.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from cnnfeat.data.regular import open_regular, unreadable
from cnnfeat.data.rows import Rows, StoredRows, unpack
from cnnfeat.errors import DataError, StorageError

GZIP_MAGIC = b"\x1f\x8b"
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 4
_DEFLATE_LIMIT = 1032  # DEFLATE can't pack better than this
_BAD_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class IdxHeader:
    """What an IDX file declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def length(self) -> int:
        """Bytes of the header itself."""
        return 4 + 4 * len(self.shape)

    @property
    def data_bytes(self) -> int:
        """Bytes that must follow the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_idx(path: Path) -> tuple[IdxHeader, Rows]:
    """Open an IDX file, packed by gzip or not.

    A packed one is unpacked, up to the size its header declares; one that isn't packed stays on
    disk, and its rows are read when they are asked for.

    Raises
    ------
    DataError
        If it isn't IDX, or its length isn't what its header declares.
    """
    with open_regular(path) as file:
        magic = file.read(2)
        file.seek(0)
        try:
            if magic == GZIP_MAGIC:
                return _read_packed(file, path)
            return _read_plain(file, path)
        except StorageError:
            raise
        except _BAD_GZIP as error:
            raise _bad_gzip(path, error) from error
        except OSError as error:
            raise unreadable(path, error) from error


def read_idx_header(path: Path) -> IdxHeader:
    """Read the header of an IDX file alone.

    Raises
    ------
    DataError
        If it isn't IDX.
    """
    with open_regular(path) as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            return read_header(stream, str(path))
        except _BAD_GZIP as error:
            raise _bad_gzip(path, error) from error
        except OSError as error:
            raise unreadable(path, error) from error


def read_header(stream: BinaryIO, name: str) -> IdxHeader:
    """Read and check the header at the start of a stream.

    Raises
    ------
    DataError
        With the bytes that were found.
    """
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise DataError(
            f"{name}: not an IDX file: begins with {magic.hex(' ') or 'nothing'}, "
            "expected 00 00, a type (08, 09, 0b, 0c, 0d, 0e) and the number of dimensions"
        )
    n_dimensions = magic[3]
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise DataError(f"{name}: {n_dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are allowed")
    raw = stream.read(4 * n_dimensions)
    if len(raw) < 4 * n_dimensions:
        raise DataError(
            f"{name}: ends within its header, after {4 + len(raw)} of {4 + 4 * n_dimensions} bytes"
        )
    shape = tuple(int(length) for length in np.frombuffer(raw, ">u4"))
    return IdxHeader(shape, np.dtype(_TYPES[magic[2]]))


def _read_plain(file: BinaryIO, path: Path) -> tuple[IdxHeader, Rows]:
    header = read_header(file, str(path))
    expected = header.length + header.data_bytes
    actual = os.fstat(file.fileno()).st_size
    if actual != expected:
        raise DataError(
            f"{path}: has {actual:,} bytes; its header declares {header.shape}, "
            f"which takes {expected:,}"
        )
    rows = StoredRows(file, header.shape, dtype=header.dtype, offset=header.length, name=str(path))
    return header, rows


def _read_packed(file: BinaryIO, path: Path) -> tuple[IdxHeader, Rows]:
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    header = read_header(stream, str(path))
    packed_bytes = os.fstat(file.fileno()).st_size
    if header.data_bytes > packed_bytes * _DEFLATE_LIMIT:
        raise DataError(
            f"{path}: its header declares {header.shape}, {header.data_bytes:,} bytes; "
            f"{packed_bytes:,} packed bytes can't hold them"
        )
    rows = unpack(stream, header.shape, dtype=header.dtype, name=str(path))
    if stream.read(1):
        raise DataError(
            f"{path}: goes on after the {header.data_bytes:,} bytes its header declares"
        )
    return header, rows


def _bad_gzip(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a complete gzip file: {error}", hint="download or copy it again")
