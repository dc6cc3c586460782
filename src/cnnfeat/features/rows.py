"""Where an array's rows lie in a feature file, and reading them from there."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError, UsageError
from cnnfeat.features.seal import byte_view
from cnnfeat.records import Array

PIECE_BYTES = 64 << 20  # read together where nobody says how many rows


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array's rows lie."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together where nobody says how many."""
        return max(1, PIECE_BYTES // self.row_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_rows(wanted: NDArray[np.int64], n_rows: int) -> None:
    """Refuse numbers of rows that aren't there.

    Raises
    ------
    UsageError
        With those that are.
    """
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < n_rows:
        raise UsageError(f"rows must lie between 0 and {n_rows - 1}")


class RowReader:
    """A file of rows, open for reading; threads may share it.

    Parameters
    ----------
    handle : int
        An open file, duplicated here: opening it a second time by its name could open another.
    path : Path
        For messages.
    """

    def __init__(self, handle: int, path: Path) -> None:
        self._path = path
        self._handle = os.dup(handle)

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def read(self, place: Place, start: int, stop: int) -> Array:
        """Read consecutive rows."""
        rows = np.empty((max(0, stop - start), *place.shape[1:]), place.dtype)
        self._fill(rows, place.offset + start * place.row_bytes)
        return rows

    def take(self, place: Place, wanted: NDArray[np.int64]) -> Array:
        """Read some rows in the order given; neighbours are read together."""
        check_rows(wanted, place.shape[0])
        taken = np.empty((len(wanted), *place.shape[1:]), place.dtype)
        breaks = (np.flatnonzero(np.diff(wanted) != 1) + 1).tolist()
        for begin, end in itertools.pairwise(sorted({0, *breaks, len(wanted)})):
            self._fill(taken[begin:end], place.offset + int(wanted[begin]) * place.row_bytes)
        return taken

    def _fill(self, rows: Array, offset: int) -> None:
        view = byte_view(rows)
        while len(view):
            try:
                count = os.preadv(self._handle, [view], offset)
            except OSError as error:
                raise FeatureFileError(f"{self._path}: {error.strerror}") from error
            if count == 0:
                raise FeatureFileError(f"{self._path}: truncated at byte {offset:,}")
            view, offset = view[count:], offset + count
