"""IDX, the format of MNIST and its relatives, and folders of IDX files as sources.

http://yann.lecun.com/exdb/mnist/ (section "file formats"): four bytes, two zeros, the type of the
numbers, the number of dimensions. Then each dimension as a big-endian 32-bit integer, then the
numbers, big-endian, the last dimension varying fastest. Nothing in a file is believed: magic,
dimensions and length are checked before memory is taken.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from cnnfeat.archives import DEFLATE_LIMIT
from cnnfeat.data.arrays import ArraySource, ArraySplit, index_labels, make_split
from cnnfeat.data.npy import StoredRows, unpack
from cnnfeat.data.source import FileStates, Rows, file_states, open_file, unreadable
from cnnfeat.errors import DataError, StorageError
from cnnfeat.records import VALIDATION_WORDS

if TYPE_CHECKING:
    from cnnfeat.records import Array

GZIP_MAGIC = b"\x1f\x8b"
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 4
_BAD_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
_NAMED = re.compile(r"idx\d-ubyte(\.gz)?$")
_SPLIT_WORDS = {"train": "train", "t10k": "test", "test": "test"}
_VALIDATION = re.compile(rf"(^|[^a-z])({'|'.join(VALIDATION_WORDS)})([^a-z]|$)")
_MAX_ENTRIES = 200  # a folder with more entries holds something else


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
    with _opened(path) as (file, packed):
        return _read_packed(file, path) if packed else _read_plain(file, path)


def read_idx_header(path: Path) -> IdxHeader:
    """Read the header of an IDX file alone.

    Raises
    ------
    DataError
        If it isn't IDX.
    """
    with _opened(path) as (file, packed):
        return _read_header(_unpacked(file) if packed else file, str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open a file, and say whether it is packed; what is wrong with it becomes a `DataError`."""
    with open_file(path) as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            yield file, packed
        except StorageError:
            raise
        except _BAD_GZIP as error:
            raise DataError(
                f"{path}: not a complete gzip file: {error}", hint="download or copy it again"
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file))


def _read_header(stream: BinaryIO, name: str) -> IdxHeader:
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
    header = _read_header(file, str(path))
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
    stream = _unpacked(file)
    header = _read_header(stream, str(path))
    packed_bytes = os.fstat(file.fileno()).st_size
    if header.data_bytes > packed_bytes * DEFLATE_LIMIT:
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


def find_idx_files(folder: Path) -> tuple[Path, ...]:
    """IDX files right in `folder`, told by their content, or by a name like MNIST's."""
    try:
        entries = sorted(islice(folder.iterdir(), _MAX_ENTRIES + 1))
    except OSError as error:
        raise unreadable(folder, error) from error
    if len(entries) > _MAX_ENTRIES:
        return ()
    return tuple(path for path in entries if path.is_file() and _looks_like_idx(path))


def open_idx_folder(folder: Path, files: tuple[Path, ...]) -> ArraySource:
    """Open the IDX files of a folder as a source.

    `train` in a file's name makes it part of the split "train", `test` or `t10k` of "test", a word
    `val`, `valid`, `validation` or `dev` of "validation"; without any, images and labels make the
    split "all".

    Raises
    ------
    DataError
        If a file is damaged, a split has no images, or counts disagree.
    """
    pairs = _pair(folder, files)
    used = {path.name: path for pair in pairs.values() for path in pair if path}
    return open_idx_pairs(
        pairs,
        name=str(folder),
        kind="idx",
        states=lambda: file_states(used),
    )


def open_idx_pairs(
    pairs: Mapping[str, tuple[Path | None, Path | None]],
    *,
    name: str,
    kind: str,
    states: Callable[[], FileStates],
    classes: tuple[str, ...] = (),
) -> ArraySource:
    """Open pairs of image and label files, one pair a split."""
    images: dict[str, Rows] = {}
    raw_labels: dict[str, Array] = {}
    for split, (image_path, label_path) in pairs.items():
        if image_path is None:
            raise DataError(f"{name}: the split {split} has labels ({label_path}) but no images")
        images[split] = read_idx(image_path)[1]
        if label_path is not None:
            raw_labels[split] = read_idx(label_path)[1][:]
    labels, found = index_labels(raw_labels, name=name)
    arrays: dict[str, ArraySplit] = {
        split: make_split(rows, labels.get(split), name=str(pairs[split][0]))
        for split, rows in images.items()
    }
    if classes and len(found) > len(classes):
        raise DataError(f"{name}: labels up to {found[-1]}; there are {len(classes)} classes")
    return ArraySource(
        name,
        kind,
        arrays=arrays,
        classes=classes or found,
        states=states,
        close=[rows.close for rows in images.values() if isinstance(rows, StoredRows)],
    )


def _looks_like_idx(path: Path) -> bool:
    if _NAMED.search(path.name):
        return True
    try:
        read_idx_header(path)
    except DataError:
        return False
    return True


def _split_of(file_name: str) -> str:
    for word, split in _SPLIT_WORDS.items():
        if word in file_name.lower():
            return split
    return "validation" if _VALIDATION.search(file_name.lower()) else "all"


def _pair(folder: Path, files: tuple[Path, ...]) -> dict[str, tuple[Path | None, Path | None]]:
    """Find the images and the labels of each split."""
    unpacked = {path.name for path in files}
    found: dict[tuple[str, str], Path] = {}
    for path in files:
        if path.suffix == ".gz" and path.stem in unpacked:
            continue  # the same file, packed
        split = _split_of(path.name)
        part = "labels" if len(read_idx_header(path).shape) == 1 else "images"
        other = found.setdefault((split, part), path)
        if other != path:
            raise DataError(
                f"{folder}: {other.name} and {path.name} both look like the {part} "
                f"of the split {split}",
                hint="keep one data set in a folder",
            )
    return {
        split: (found.get((split, "images")), found.get((split, "labels")))
        for split in ("train", "validation", "test", "all")
        if (split, "images") in found or (split, "labels") in found
    }
