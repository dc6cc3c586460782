"""The arrays of numbers in a `.mat` file of version 5.

What MATLAB's "MAT-File Format" (MathWorks, R2022a, chapter 1) lays down, without what holds no
numbers. Every length is held against the file's before anything is read by it.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from cnnfeat.records import Array

_HEADER_BYTES = 128
_MATRIX, _PACKED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"} | {
    12: "i8",
    13: "u8",
}  # as which data are stored
_KINDS = (
    *("none", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8"),
    *("int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque"),
)  # of arrays, by number
_DTYPES = {name: name for name in _KINDS[8:16]} | {"double": "f8", "single": "f4"}
_OPAQUE = _KINDS.index("opaque")
_COMPLEX, _LOGICAL = 0x800, 0x200
_MOST_AXES = 32
_HEAD_BYTES = 4096  # in which an array says what it is
NUMBERS = frozenset(("logical", *_DTYPES))  # kinds of arrays that hold some


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array as its file describes it."""

    name: str
    kind: str  # MATLAB's word: "uint8", "logical", "cell"
    shape: tuple[int, ...]  # MATLAB's, the first axis running fastest
    dtype: str  # NumPy's; "" where it holds no numbers
    place: int  # in the file, of the bytes that follow its tag
    size: int  # of these bytes
    packed: bool
    start: int  # of its numbers, within it once it is unpacked


def stored_arrays(file: BinaryIO) -> Iterator[StoredArray]:
    """Go through the arrays of a file, packed or not; their numbers are not read.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    order = _byte_order(file)
    end = os.fstat(file.fileno()).st_size
    place = _HEADER_BYTES
    while place < end:
        file.seek(place)
        kind, size, start = _tag(file.read(8), 0, order)
        place += start
        if size > end - place:
            raise ValueError(f"it ends {size - (end - place):,} bytes before an array does")
        if kind in (_MATRIX, _PACKED) and size:
            yield _described(file, place, size, packed=kind == _PACKED)
        place += size


def read_array(file: BinaryIO, stored: StoredArray) -> Array:
    """Read the numbers of one array.

    Raises
    ------
    ValueError
        If they are damaged, or not as many as its shape says.
    """
    order = _byte_order(file)
    file.seek(stored.place)
    data = file.read(stored.size)
    n_numbers = math.prod(stored.shape)
    if stored.packed:
        data = _unpacked(data, most_bytes=stored.start + 16 + 8 * n_numbers)
    kind, size, start = _tag(data, stored.start, order)
    if kind not in _NUMBERS:
        raise ValueError(f"{stored.name}: its numbers are of type {kind}, which there isn't")
    dtype = np.dtype(order + _NUMBERS[kind])
    if size != n_numbers * dtype.itemsize or stored.start + start + size > len(data):
        raise ValueError(f"{stored.name}: {size:,} bytes aren't {n_numbers:,} numbers of {dtype}")
    numbers = np.frombuffer(data, dtype, count=n_numbers, offset=stored.start + start)
    return numbers.reshape(stored.shape, order="F").astype(stored.dtype)


def _byte_order(file: BinaryIO) -> str:
    file.seek(_HEADER_BYTES - 2)
    mark = file.read(2)
    if mark not in (b"IM", b"MI"):
        raise ValueError(f"its byte order is {mark!r}, neither IM nor MI")
    return "<" if mark == b"IM" else ">"


def _tag(data: bytes, at: int, order: str) -> tuple[int, int, int]:
    """Read type and size of an element, and how far behind the tag's begin its data lie."""
    if at + 8 > len(data):
        raise ValueError("it ends within an element's tag")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # a small one, with its data in the tag
        return kind & 0xFFFF, kind >> 16, 4
    return int(kind), int(size), 8


def _element(data: bytes, at: int, order: str) -> tuple[bytes, int]:
    """Read the data of an element, and where the next one begins."""
    _, size, start = _tag(data, at, order)
    if at + start + size > len(data) or (start == 4 and size > 4):
        raise ValueError("it ends before what an array says of itself does")
    after = at + 8 if start == 4 else at + 8 + -(-size // 8) * 8
    return data[at + start : at + start + size], after


def _described(file: BinaryIO, place: int, size: int, *, packed: bool) -> StoredArray:
    order = _byte_order(file)
    file.seek(place)
    head = file.read(min(size, _HEAD_BYTES))
    at = 0
    if packed:
        head = zlib.decompressobj().decompress(head, _HEAD_BYTES)
        kind, _, at = _tag(head, 0, order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} is packed, which is no array")
    flags, at = _element(head, at, order)
    if len(flags) != 8:
        raise ValueError("an array doesn't say of which class it is")
    (said,) = struct.unpack_from(f"{order}I", flags)
    number, shape = said & 0xFF, b""
    if number >= len(_KINDS):
        raise ValueError(f"an array is of class {number}, which there isn't")
    if number != _OPAQUE:
        shape, at = _element(head, at, order)
    name, at = _element(head, at, order)
    lengths = struct.unpack(f"{order}{len(shape) // 4}i", shape[: len(shape) // 4 * 4])
    axes = 0 if number == _OPAQUE else 2  # MATLAB's arrays have so many at least
    if not axes <= len(lengths) <= _MOST_AXES or any(length < 0 for length in lengths):
        raise ValueError(f"an array has the shape {lengths[: _MOST_AXES + 1]}")
    word = _KINDS[number]
    dtype = _DTYPES.get(word, "")
    if dtype and said & _LOGICAL:
        word = "logical"
    if said & _COMPLEX:
        word, dtype = f"complex {word}", ""
    text = name.decode("utf-8", "replace")
    return StoredArray(text, word, lengths, dtype, place, size, packed, at)


def _unpacked(data: bytes, *, most_bytes: int) -> bytes:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(data, most_bytes)
    if not unpacking.eof and unpacking.decompress(unpacking.unconsumed_tail, 16):
        raise ValueError(f"an array unpacks to more than the {most_bytes:,} bytes it should have")
    if not unpacking.eof:
        raise ValueError("a packed array ends early")
    return found
