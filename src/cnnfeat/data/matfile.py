"""MATLAB's files of arrays, version 5 and 7.3 (HDF5 behind a text of 512 bytes).

MATLAB counts pictures along the last axis: (height, width, channels, n), or (height, width, n).
Here they come first, as everywhere. In version 7.3 axes lie the other way round in the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cnnfeat.archives import DEFLATE_LIMIT
from cnnfeat.data.arrays import is_one_picture
from cnnfeat.data.hdf5 import DAMAGE, Hdf5File, is_hdf5
from cnnfeat.data.mat5 import NUMBERS, read_array, stored_arrays
from cnnfeat.data.source import Rows, open_file
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.records import Array

MAT5_MAGIC = b"MATLAB 5.0 MAT-file"
MAT73_MAGIC = b"MATLAB 7.3 MAT-file"
_CLASS = "MATLAB_class"  # the attribute of an array's class
_CHANNELS = (1, 3, 4)
_DAMAGE = (ValueError, OverflowError, MemoryError, zlib.error)


class _Stored(Protocol):
    """An array of which parts are read: NumPy's, or a data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.generic]: ...

    def __getitem__(self, index: tuple[slice, ...], /) -> Array: ...


class _UprightRows:
    """An array of MATLAB's with the rows in front."""

    def __init__(
        self, stored: _Stored, *, axis: int, reversed_axes: bool, logical: bool, name: str
    ) -> None:
        self._stored = stored
        self._axis = axis  # of MATLAB's, that counts the rows
        self._reversed = reversed_axes
        self._name = name
        shape = stored.shape[::-1] if reversed_axes else stored.shape
        self.shape = upright(shape, axis)
        self.dtype = np.dtype(bool) if logical else stored.dtype

    def __getitem__(self, rows: slice, /) -> Array:
        index = [slice(None)] * len(self._stored.shape)
        index[-1 - self._axis if self._reversed else self._axis] = rows
        try:
            block = np.asarray(self._stored[tuple(index)])
        except DAMAGE as error:
            raise DataError(f"{self._name}: rows {rows.start or 0} on: {error}") from error
        block = np.moveaxis(block.T if self._reversed else block, self._axis, 0)
        return block.reshape(-1, *self.shape[1:]).astype(self.dtype, copy=False)


class Mat5File:
    """A `.mat` file of version 5 (MATLAB 5 to 7): arrays of numbers by name.

    An array is unpacked as a whole when it is asked for.
    """

    kind = "mat"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                listed = {one.name: one for one in stored_arrays(file) if one.name}
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        self._arrays = {name: one for name, one in listed.items() if one.kind in NUMBERS}
        self.others = {name: one.kind for name, one in listed.items() if one.kind not in NUMBERS}
        for name, one in self._arrays.items():
            if math.prod(one.shape) > size * DEFLATE_LIMIT:
                raise DataError(
                    f"{path}:/{name}: declares {one.shape} of {one.kind}; "
                    f"{size:,} bytes can't hold that"
                )
        found = {name: one.shape for name, one in self._arrays.items()}
        self._axes = row_axes(found)
        self.shapes: Mapping[str, tuple[int, ...]] = _upright_shapes(found, self._axes)

    def rows(self, name: str) -> Rows:
        """Read one of the arrays."""
        try:
            with open_file(self._path) as file:
                array = read_array(file, self._arrays[name])
        except _DAMAGE as error:
            raise _damaged(self._path, error) from error
        return _UprightRows(
            array,
            axis=self._axes[name],
            reversed_axes=False,
            logical=self._arrays[name].kind == "logical",
            name=f"{self._path}:/{name}",
        )

    def close(self) -> None:
        """Nothing stays open."""


class Mat73File:
    """A `.mat` file of version 7.3: data sets by name, whose rows are read when asked for."""

    kind = "mat"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = Hdf5File(path)
        try:
            found = {name: shape[::-1] for name, shape in self._numbers().items()}
            self.others = self._not_numbers()
        except DAMAGE as error:
            self._file.close()
            raise _damaged(path, error) from error
        self._axes = row_axes(found)
        self.shapes: Mapping[str, tuple[int, ...]] = _upright_shapes(found, self._axes)

    def rows(self, name: str) -> Rows:
        """Open one of the data sets."""
        return _UprightRows(
            self._file.dataset(name),
            axis=self._axes[name],
            reversed_axes=True,
            logical=self._class_of(name) == "logical",
            name=f"{self._path}:/{name}",
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _numbers(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of numbers as they lie there, without those cells refer to."""
        return {
            name: shape
            for name, shape in self._file.shapes.items()
            if shape
            and not name.startswith("#")
            and self._class_of(name) in NUMBERS
            and "MATLAB_empty" not in self._attributes(name)
        }

    def _not_numbers(self) -> dict[str, str]:
        """MATLAB's names for what the other arrays are, by theirs; of what lies in one, none."""
        kinds = {
            name: self._class_of(name)
            for name in self._file.shapes
            if not name.startswith("#") and "/" not in name
        }
        return {name: kind for name, kind in kinds.items() if kind and kind not in NUMBERS}

    def _attributes(self, name: str) -> Mapping[str, object]:
        found: Mapping[str, object] = self._file.dataset(name).attrs
        return found

    def _class_of(self, name: str) -> str:
        """MATLAB's name for what an array holds; of what it didn't write, by the numbers' own."""
        kind = self._attributes(name).get(_CLASS, b"")
        if isinstance(kind, bytes) and kind:
            return kind.decode("ascii", "replace")
        return "double" if self._file.dataset(name).dtype.kind in "biuf" else ""


def is_mat(path: Path) -> bool:
    """Whether a file begins as MATLAB's do, from version 5 on; or is HDF5 of the same manner.

    That is, without the text, it ends in `.mat` or says of an array which class of MATLAB's it is.
    """
    with open_file(path) as file:
        start = file.read(len(MAT73_MAGIC))
    if start.startswith((MAT5_MAGIC, MAT73_MAGIC)):
        return True
    return is_hdf5(path) and (path.suffix.lower() == ".mat" or _names_classes(path))


def _names_classes(path: Path) -> bool:
    try:
        with contextlib.closing(Hdf5File(path)) as file:
            return any(_CLASS in file.dataset(name).attrs for name in file.shapes)
    except DAMAGE:  # whoever reads it says so
        return False


def open_mat(path: Path) -> Mat5File | Mat73File:
    """Open a file that is one of MATLAB's."""
    with open_file(path) as file:
        version_5 = file.read(len(MAT5_MAGIC)) == MAT5_MAGIC
    return Mat5File(path) if version_5 else Mat73File(path)


def row_axes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Say for each array of MATLAB's which of its axes counts the rows.

    Of pictures the one, the last or the first, that is as long as a vector beside them, which may
    be their labels. Where that decides nothing, it is the last, unless what comes after the first
    looks like a picture and what comes before the last does not.
    """
    lengths = {math.prod(shape) for shape in shapes.values() if _is_vector(shape)} - {1}
    return {name: _row_axis(shape, lengths) for name, shape in shapes.items()}


def _row_axis(shape: tuple[int, ...], lengths: Collection[int]) -> int:
    last = len(shape) - 1
    if _is_vector(shape):
        return shape.index(max(shape))
    if last < 2:
        return 0
    if (shape[0] in lengths) != (shape[last] in lengths):
        return last if shape[last] in lengths else 0
    if is_one_picture(shape):  # whose rows are no rows of pictures
        return 0
    return 0 if _is_picture(shape[1:]) and not _is_picture(shape[:-1]) else last


def _is_vector(shape: tuple[int, ...]) -> bool:
    return bool(shape) and math.prod(shape) == max(shape)


def _is_picture(shape: tuple[int, ...]) -> bool:
    """Whether it is (height, width, channels), or (height, width) of a square."""
    return shape[2] in _CHANNELS if len(shape) == 3 else shape[0] == shape[-1]


def upright(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Put the axis that counts rows in front; of a vector nothing else is left."""
    if _is_vector(shape):
        return (max(shape),)
    return shape[axis], *shape[:axis], *shape[axis + 1 :]


def _upright_shapes(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    return {name: upright(shape, axes[name]) for name, shape in shapes.items()}


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a complete .mat file: {error or type(error).__name__}")
