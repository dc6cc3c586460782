"""What stands at the beginning of an `.npy` file: the shape and the type of the array behind it.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html - the header is a Python
literal; it is read as one, and never run or unpickled.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from dataclasses import dataclass
from typing import IO, cast

import numpy as np

from cnnfeat.errors import DataError

NPY_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # of the header, by version of the format
_LONGEST = 10_000  # as NumPy has it
_MOST_AXES = 32
_TYPE = re.compile(r"[<>|=]?\w+(?:\[\w+\])?")
_MOST_BYTES = 2**62
_DAMAGE = (
    ValueError, SyntaxError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What an `.npy` stream declares, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran_order: bool
    length: int

    @property
    def data_bytes(self) -> int:
        """Bytes that must follow the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], name: str, *, size_bytes: int) -> NpyHeader:
    """Read the header at the start of an `.npy` stream.

    Parameters
    ----------
    stream : IO[bytes]
        At its beginning; afterwards where the header ends.
    name : str
        For messages.
    size_bytes : int
        How many bytes the stream has.

    Raises
    ------
    DataError
        If it isn't one, or declares what doesn't follow it; of objects, whatever follows.
    """
    try:
        text, length = _read(stream)
        header = _parsed(text, length)
    except _DAMAGE as error:
        raise DataError(f"{name}: not a complete .npy header: {error}") from error
    if not header.dtype.hasobject and size_bytes != header.length + header.data_bytes:
        raise DataError(
            f"{name}: has {size_bytes:,} bytes; its header declares {header.shape} of "
            f"{header.dtype}, which takes {header.length + header.data_bytes:,}"
        )
    return header


def _read(stream: IO[bytes]) -> tuple[str, int]:
    """The text of a header, and how many bytes stand before the numbers."""
    start = stream.read(len(NPY_MAGIC) + 2)
    if not start.startswith(NPY_MAGIC) or len(start) < len(NPY_MAGIC) + 2:
        raise ValueError(f"it begins with {start[:8]!r}")
    version = (start[-2], start[-1])
    if version not in _LENGTH_BYTES:
        raise ValueError(f".npy version {version[0]}.{version[1]}; 1.0 to 3.0 are read")
    length = int.from_bytes(stream.read(_LENGTH_BYTES[version]), "little")
    if length > _LONGEST:
        raise ValueError(f"{length:,} bytes long; at most {_LONGEST:,} are read")
    text = stream.read(length)
    if len(text) < length:
        raise ValueError(f"it ends after {len(text):,} of {length:,} bytes")
    before = len(start) + _LENGTH_BYTES[version]
    return text.decode("utf-8" if version == (3, 0) else "latin-1"), before + length


def _parsed(text: str, length: int) -> NpyHeader:
    with warnings.catch_warnings(action="ignore"):  # Python's, about odd literals
        fields = ast.literal_eval(text.strip())
        if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError("it is no record of descr, fortran_order and shape")
        shape, order, kind = fields["shape"], fields["fortran_order"], fields["descr"]
        if not isinstance(kind, list) and not (isinstance(kind, str) and _TYPE.fullmatch(kind)):
            raise ValueError(f"its type is {kind!r:.60}")
        dtype = np.lib.format.descr_to_dtype(cast("list[tuple[str, str]]", kind))
    if not isinstance(order, bool):
        raise ValueError(f"its fortran_order is {order!r:.60}")
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise ValueError(f"its shape is {shape!r:.60}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape is {shape!r:.60}")
    if not dtype.itemsize or math.prod(n for n in shape if n) * dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"it declares {shape} of {dtype}")
    return NpyHeader(shape, dtype, order, length)
