"""What a linear solver is given: the matrix, what its rows are, and the two-class problems.

The matrix is scaled, has a column of ones, and is in memory or not. One that does not fit in memory
is only ever read from its first row to its last. Scaling is never applied to a copy of it: a
product with the scaled matrix is one with the raw matrix and scaled weights, and a rank-one
correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.matrix import (
    CHUNK_BYTES,
    FEW,
    ArrayRows,
    Doubles,
    Floats,
    Indices,
    RowBlocks,
    rows_per_chunk,
)

TYPICAL_ROWS = 512
PART_ROWS = 256  # of a matrix in memory, copied at a time
OFFSET_LIMIT = 1e3  # means beyond so many standard deviations are subtracted before a product


class Design:
    """The matrix of a linear problem: rows, scaled, and a last column of ones.

    Parameters
    ----------
    rows : RowBlocks
    mean, scale : ndarray of shape (n_features,), optional
        Each feature has `mean` subtracted and is divided by `scale`.
    intercept : bool
        Whether there is the column of ones.
    """

    def __init__(
        self,
        rows: RowBlocks,
        *,
        mean: Floats | None = None,
        scale: Floats | None = None,
        intercept: bool = True,
    ) -> None:
        self.rows = rows
        self.n_samples = rows.n_samples
        self.n_weights = rows.n_features + intercept
        self.dtype = rows.dtype
        self.intercept = intercept
        self._scaled = mean is not None or scale is not None
        d = rows.n_features
        self._mean = np.zeros(d) if mean is None else np.asarray(mean, np.float64)
        self._factor = 1 / (np.ones(d) if scale is None else np.asarray(scale, np.float64))
        self._matrix: Floats | None = None
        self._ready = False  # the rows are in memory and need no scaling
        self._taken: tuple[Indices, Floats] | None = None
        self._square_sums: Doubles | None = None
        offset = float(np.max(np.abs(self._mean * self._factor), initial=0))
        self._far = offset > OFFSET_LIMIT and self.dtype == np.float32
        self._rest = self._mean - self._mean.astype(self.dtype)

    def hold(self, *, room_bytes: int) -> Design:
        """Keep the finished matrix in memory, if there is room for it and there is need."""
        self._ready = isinstance(self.rows, ArrayRows) and not self._scaled
        if self._ready:
            return self
        size_bytes = self.n_samples * self.n_weights * self.dtype.itemsize
        if self._matrix is None and size_bytes <= room_bytes:
            matrix = np.empty((self.n_samples, self.n_weights), self.dtype)
            for start, block in self.rows.blocks():
                self._finish(block, matrix[start : start + len(block)])
            self._matrix = matrix
        return self

    @property
    def held(self) -> bool:
        """Whether the matrix is in memory."""
        return self._ready or self._matrix is not None

    @property
    def held_bytes(self) -> int:
        """What the finished matrix takes, beside the rows it was made from."""
        return 0 if self._matrix is None else self._matrix.nbytes

    def product(self, weights: Doubles) -> Floats:
        """Multiply by `weights` of shape (n_weights, m); the result has shape (m, n_samples)."""
        if self._matrix is not None:
            return self._held_product(weights.astype(self.dtype))
        d = self.rows.n_features
        inner = weights[:d] * self._factor[:, None]
        constant = weights[d] if self.intercept else np.zeros(weights.shape[1])
        # Of means taken off the rows, what rounding left; else all of them.
        constant = constant - (self._rest if self._far else self._mean) @ inner
        inner, constant = inner.astype(self.dtype), constant.astype(self.dtype)
        values = np.empty((weights.shape[1], self.n_samples), self.dtype)
        for start, block in self.rows.blocks():
            centred = block - self._mean.astype(self.dtype) if self._far else block
            part = centred @ inner
            part += constant
            values[:, start : start + len(block)] = part.T
        return values

    def take(self, rows: Indices) -> Floats:
        """Copy some rows, scaled, with the ones; all of them are not copied where they are held."""
        if self._matrix is not None:
            return self._matrix if len(rows) == self.n_samples else self._matrix[rows]
        if self._ready:
            return self._taken_in_parts(rows)
        self._taken = (rows, self._take(rows))
        return self._taken[1]

    def release(self) -> None:
        """Forget the rows taken last."""
        self._taken = None

    @property
    def taken_bytes(self) -> int:
        """What the rows taken last take."""
        return 0 if self._taken is None else self._taken[1].nbytes

    def _take(self, rows: Indices) -> Floats:
        """Take rows, reading only those that were not among the last ones taken."""
        taken = np.empty((len(rows), self.n_weights), self.dtype)
        unknown = np.arange(len(rows))
        if self._taken is not None and len(self._taken[0]):
            old_rows, old = self._taken
            places = np.searchsorted(old_rows, rows)
            known = old_rows[np.minimum(places, len(old_rows) - 1)] == rows
            unknown = np.flatnonzero(~known)
            step = max(1, CHUNK_BYTES // (self.n_weights * self.dtype.itemsize))
            for start in range(0, len(rows), step):  # without a second copy of them all
                here = start + np.flatnonzero(known[start : start + step])
                taken[here] = old[places[here]]
        missing = rows[unknown]
        if len(missing) <= FEW * self.n_samples:
            taken[unknown] = self._finished(self.rows.take(missing))
            return taken
        done = 0
        for start, block in self.rows.blocks():
            stop = int(np.searchsorted(missing, start + len(block)))
            here = unknown[done:stop]
            taken[here] = self._finished(block[rows[here] - start])
            done = stop
        return taken

    def _taken_in_parts(self, rows: Indices) -> Floats:
        """Take rows of a matrix in memory with no second copy but a small one."""
        taken = np.empty((len(rows), self.n_weights), self.dtype)
        for start in range(0, len(rows), PART_ROWS):
            part = slice(start, start + PART_ROWS)
            self._finish(self.rows.take(rows[part]), taken[part])
        return taken

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield all rows in order, scaled, with the ones."""
        step = rows_per_chunk(self.n_weights, self.dtype)
        if self._matrix is not None:
            for start in range(0, self.n_samples, step):
                yield start, self._matrix[start : start + step]
            return
        # Short blocks are joined: their products would be slow.
        parts: list[Floats] = []
        for start, block in self.rows.blocks():
            parts.append(self._finished(block))
            stop, n_rows = start + len(block), sum(map(len, parts))
            if n_rows >= step or stop == self.n_samples:
                yield stop - n_rows, np.concatenate(parts) if len(parts) > 1 else parts[0]
                parts = []

    def square_sums(self) -> Doubles:
        """Sum each weight's squared entries over the rows, (n_weights,)."""
        if self._square_sums is None:
            total = np.zeros(self.n_weights)
            for _, block in self._blocks_uncopied():
                total[: block.shape[1]] += np.einsum("ij,ij->j", block, block)
            if self.intercept:
                total[-1] = self.n_samples
            self._square_sums = total
        return self._square_sums

    def square_norm(self) -> float:
        """Return the mean over the rows of their squared length."""
        return float(self.square_sums().sum()) / max(1, self.n_samples)

    def typical_square_norm(self) -> float:
        """Return the same, of some of the rows where reading all of them costs a pass."""
        if self.held or self.n_samples <= TYPICAL_ROWS:
            return self.square_norm()
        rows = np.linspace(0, self.n_samples - 1, TYPICAL_ROWS).astype(np.intp)
        block = self._finished(self.rows.take(rows))
        return float(np.einsum("ij,ij->", block, block, dtype=np.float64)) / len(rows)

    def transposed_product(self, values: Floats) -> Doubles:
        """Multiply the transposed matrix, which is held, by `values` of shape (m, n_samples)."""
        total = np.zeros((self.n_weights, len(values)))
        for start, block in self._blocks_uncopied():
            total[: block.shape[1]] += block.T @ values[:, start : start + len(block)].T
        if self.intercept:
            total[-1] = values.sum(axis=1, dtype=np.float64)
        return total

    def _blocks_uncopied(self) -> Iterator[tuple[int, Floats]]:
        """Yield all rows in order; without the ones where a copy would be made to add them."""
        return self.rows.blocks() if self._ready else self.blocks()

    def _held_product(self, weights: Floats) -> Floats:
        values = np.empty((weights.shape[1], self.n_samples), self.dtype)
        for start, block in self.blocks():
            values[:, start : start + len(block)] = (block @ weights).T
        return values

    def _finished(self, block: Floats) -> Floats:
        finished = np.empty((len(block), self.n_weights), self.dtype)
        self._finish(block, finished)
        return finished

    def _finish(self, block: Floats, finished: Floats) -> None:
        """Write a block, scaled and with the ones, into `finished`."""
        d = self.rows.n_features
        if self._scaled:
            np.subtract(block, self._mean.astype(self.dtype), out=finished[:, :d])
            if self._far:
                finished[:, :d] -= self._rest.astype(self.dtype)
            finished[:, :d] *= self._factor.astype(self.dtype)
        else:
            finished[:, :d] = block
        finished[:, d:] = 1


@dataclass(frozen=True, slots=True)
class Targets:
    """What the rows are, for all columns."""

    codes: NDArray[np.intp]  # (n_samples,) class of each row
    weights: Doubles | None = None  # (n_samples,), a factor of each row's cost
    folds: NDArray[np.intp] | None = None  # (n_samples,) fold of each row
    members: tuple[Indices, ...] = field(init=False)  # rows of each class

    def __post_init__(self) -> None:
        """List the rows of each class once."""
        order = np.argsort(self.codes, kind="stable")
        ends = np.cumsum(np.bincount(self.codes))
        object.__setattr__(self, "members", tuple(np.split(order, ends[:-1])))


@dataclass(frozen=True, slots=True)
class Columns:
    """The two-class problems, m of them."""

    positive: NDArray[np.intp]  # (m,) the class that is +1
    C_positive: Doubles  # (m,) the cost of its rows
    C_negative: Doubles  # (m,) the cost of all others
    held_out: NDArray[np.intp]  # (m,) the fold left out; -1: none

    def __len__(self) -> int:
        return len(self.positive)

    def scaled(self, factor: float) -> Columns:
        """The same problems with all costs times `factor`."""
        return replace(
            self, C_positive=self.C_positive * factor, C_negative=self.C_negative * factor
        )


def one_against_rest(n_classes: int, *, C: float, class_weight: Doubles | None = None) -> Columns:
    """Make the columns: one a class, or a single one for two classes."""
    weight = np.ones(n_classes) if class_weight is None else np.asarray(class_weight, np.float64)
    positive = np.arange(n_classes) if n_classes > 2 else np.array([1])
    negative = np.ones(len(positive)) if n_classes > 2 else weight[:1]
    return Columns(
        positive=positive,
        C_positive=C * weight[positive],
        C_negative=C * negative,
        held_out=np.full(len(positive), -1),
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """All that is to be minimised at once."""

    design: Design
    targets: Targets
    columns: Columns
    check: Callable[[], None]  # called now and then; it may raise

    def slack(self, j: int, decision: Floats) -> Floats:
        """Compute 1 - sign * decision of each row in column `j`, shape (n_samples,)."""
        return self.signed(j, -decision) + decision.dtype.type(1)

    def signed(self, j: int, values: Floats) -> Floats:
        """Multiply `values`, one a row, with the labels +1 and -1 of column `j`."""
        result: Floats = -values
        members = self.targets.members[self.columns.positive[j]]
        result[members] = values[members]
        return result

    def signs(self, j: int, rows: Indices) -> Doubles:
        """Labels of some rows in column `j`, +1 and -1."""
        return np.where(self.targets.codes[rows] == self.columns.positive[j], 1.0, -1.0)

    def costs(self, j: int, rows: Indices) -> Doubles:
        """Costs of some rows in column `j`; 0 in the fold left out."""
        positive = self.targets.codes[rows] == self.columns.positive[j]
        costs: Doubles = np.where(positive, self.columns.C_positive[j], self.columns.C_negative[j])
        if self.targets.weights is not None:
            costs *= self.targets.weights[rows]
        if self.columns.held_out[j] >= 0 and self.targets.folds is not None:
            costs[self.targets.folds[rows] == self.columns.held_out[j]] = 0
        return costs
