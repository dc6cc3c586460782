"""A matrix of features, read by consecutive rows: it need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]

CHUNK_BYTES = 16 * 2**20  # of a matrix in memory, worked on at a time: it stays in the cache
FEW = 0.1  # share of the rows up to which each is read for itself


class RowBlocks(Protocol):
    """A matrix that is read by consecutive rows."""

    n_samples: int
    n_features: int
    dtype: np.dtype[np.floating]  # of the blocks: float32 or float64

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield all rows in order: the first row's index, and rows `(n_rows, n_features)`."""

    def take(self, rows: Indices) -> Floats:
        """Copy the rows whose ascending indices are `rows`."""


class ArrayRows:
    """Rows of a matrix in memory.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), float16, float32 or float64
    rows_per_block : int, optional
        By default as many as stay in the processor's cache.
    """

    def __init__(self, X: Floats, *, rows_per_block: int | None = None) -> None:
        self.n_samples, self.n_features = X.shape
        self.dtype: np.dtype[np.floating] = (
            np.dtype(np.float64) if X.dtype == np.float64 else np.dtype(np.float32)
        )
        self._X = X
        self._step = rows_per_block or rows_per_chunk(self.n_features, self.dtype)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield views of the matrix, or float32 copies of float16 ones."""
        for start in range(0, self.n_samples, self._step):
            yield start, self._X[start : start + self._step].astype(self.dtype, copy=False)

    def take(self, rows: Indices) -> Floats:
        """Copy some rows."""
        # `take` lets other threads run, but would first copy a matrix in another order.
        taken = self._X.take(rows, axis=0) if self._X.flags.c_contiguous else self._X[rows]
        return taken.astype(self.dtype, copy=False)


class SubsetRows:
    """Some rows of a matrix, in their order.

    Parameters
    ----------
    rows : RowBlocks
    keep : ndarray of shape (n_samples,), bool
    """

    def __init__(self, rows: RowBlocks, keep: NDArray[np.bool_]) -> None:
        self._rows, self._keep = rows, keep
        self._places = np.flatnonzero(keep)
        self.n_samples, self.n_features = len(self._places), rows.n_features
        self.dtype = rows.dtype

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Read all rows and yield those kept."""
        done = 0
        for start, block in self._rows.blocks():
            kept = block[self._keep[start : start + len(block)]]
            if len(kept):
                yield done, kept
                done += len(kept)

    def take(self, rows: Indices) -> Floats:
        """Copy some of the rows kept."""
        return self._rows.take(self._places[rows])


class ChainedRows:
    """Matrices of the same width, one below the other.

    Parameters
    ----------
    parts : sequence of RowBlocks
        One at least.
    """

    def __init__(self, parts: Sequence[RowBlocks]) -> None:
        self._parts = tuple(parts)
        self.n_samples = sum(part.n_samples for part in parts)
        self.n_features, self.dtype = parts[0].n_features, parts[0].dtype

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Read one after the other."""
        before = 0
        for part in self._parts:
            for start, block in part.blocks():
                yield before + start, block
            before += part.n_samples

    def take(self, rows: Indices) -> Floats:
        """Copy some rows."""
        taken = np.empty((len(rows), self.n_features), self.dtype)
        before = done = 0
        for part in self._parts:
            before, first = before + part.n_samples, before
            stop = int(np.searchsorted(rows, before))
            if stop > done:
                taken[done:stop] = part.take(rows[done:stop] - first)
            done = stop
        return taken


class MappedRows:
    """Rows that are changed when they are read.

    Parameters
    ----------
    rows : RowBlocks
    change : callable
        Takes rows `(n_rows, ...)` and returns `(n_rows, n_features)`.
    n_features : int
        Features after the change.
    """

    def __init__(
        self, rows: RowBlocks, change: Callable[[Floats], Floats], *, n_features: int
    ) -> None:
        self._rows, self._change = rows, change
        self.n_samples, self.n_features, self.dtype = rows.n_samples, n_features, rows.dtype

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Read and change all rows."""
        for start, block in self._rows.blocks():
            yield start, self._change(block).astype(self.dtype, copy=False)

    def take(self, rows: Indices) -> Floats:
        """Copy and change some rows, a part at a time."""
        taken = np.empty((len(rows), self.n_features), self.dtype)
        step = max(1, CHUNK_BYTES // max(1, self._rows.n_features))
        for start in range(0, len(rows), step):
            part = self._rows.take(rows[start : start + step])
            taken[start : start + step] = self._change(part)
        return taken


def rows_per_chunk(n_columns: int, dtype: np.dtype[np.floating]) -> int:
    """Return how many rows of a matrix stay in the processor's cache."""
    return max(64, CHUNK_BYTES // max(1, n_columns * dtype.itemsize))


def read_all(rows: RowBlocks) -> Floats:
    """Read all rows into one matrix in memory."""
    matrix = np.empty((rows.n_samples, rows.n_features), rows.dtype)
    for start, block in rows.blocks():
        matrix[start : start + len(block)] = block
    return matrix


@dataclass(frozen=True, slots=True)
class Moments:
    """What one pass over rows tells of their features."""

    n_samples: int
    mean: Doubles  # (n_features,)
    variance: Doubles  # (n_features,), divided by n_samples
    bad_rows: int  # rows with NaN, infinite or immense values
    first_bad_row: int  # -1: none


def moments(rows: RowBlocks) -> Moments:
    """Compute mean and variance in one pass, block by block.

    Blocks are merged as in T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing
    the sample variance", The American Statistician 37 (1983) 242-247.
    """
    from cnnfeat.pixels import LARGEST

    count, bad, first = 0, 0, -1
    mean, squares = np.zeros(rows.n_features), np.zeros(rows.n_features)
    for start, block in rows.blocks():
        good = block
        if block.size and not (block.min() >= -LARGEST and block.max() <= LARGEST):
            wrong = ~(np.abs(block) <= LARGEST).all(axis=1)  # NaN too
            bad += int(wrong.sum())
            if first < 0:
                first = start + int(wrong.argmax())
            good = block[~wrong]
        n = len(good)
        if not n:
            continue
        part_mean = good.mean(axis=0, dtype=np.float64)
        centred = good - part_mean.astype(block.dtype)
        part_squares = np.einsum("ij,ij->j", centred, centred).astype(np.float64)
        delta = part_mean - mean
        squares += part_squares + delta**2 * (count * n / (count + n))
        mean += delta * (n / (count + n))
        count += n
    return Moments(count, mean, squares / max(1, count), bad, first)
