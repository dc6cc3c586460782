"""Preconditioners: Cholesky factors of Hessians, or their diagonals, and when to renew them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from cnnfeat.svm.rows import Floats, Indices

Doubles = NDArray[np.float64]

# What the kinds of work cost on a common core, for a choice that needs no precision.
PRODUCT_FLOPS = 5e10  # a second, in matrix products
NARROW_FLOPS = 2.5e10  # a second, in products with few columns
BYTES = 5e9  # a second, read from memory
CALL_S = 1e-4  # of overhead
ROWS_AN_ITERATION = 20  # changed rows that cost conjugate gradients one more, as a rule of thumb
MOST_EXPECTED = 20  # iterations, however many rows have changed
DENSE_LIMIT = 4096  # features up to which Hessians are formed
ADDED_ROWS = 2048  # rows copied at a time


@dataclass(frozen=True, slots=True)
class Factor:
    """Either a lower Cholesky factor or a diagonal."""

    lower: Floats | None = None  # (n, n), Fortran order
    diagonal: Floats | None = None  # (n,)

    def solve(self, right: Floats) -> Floats:
        """Solve for `right` of shape (n, m)."""
        if self.lower is None:
            return right / self.diagonal[:, None] if self.diagonal is not None else right
        (potrs,) = get_lapack_funcs(("potrs",), (self.lower,))
        solved, _ = potrs(self.lower, right.astype(self.lower.dtype, copy=False), lower=1)
        return solved  # type: ignore[no-any-return]


def factorize(matrix: Floats) -> Factor:
    """Factorise a positive definite matrix in Fortran order, of which the lower half counts.

    Where rounding has made it indefinite, a growing multiple of the identity is added, to the
    matrix given too: what comes out serves as a preconditioner all the same.
    """
    (potrf,) = get_lapack_funcs(("potrf",), (matrix,))
    mean = float(np.trace(matrix, dtype=np.float64)) / len(matrix)
    ridge = 0.0
    while True:
        lower, failed = potrf(matrix, lower=1, clean=0)
        if not failed:
            return Factor(lower=lower)
        added = max(10 * ridge, float(np.finfo(matrix.dtype).eps) * mean)
        np.einsum("ii->i", matrix)[:] += added - ridge
        ridge = added


class LossHessian:
    """The sum of ``cost_i x_i x_i^T`` over some rows, to which rows are added and taken away.

    Parameters
    ----------
    n_weights : int
    dtype : numpy.dtype
    """

    def __init__(self, n_weights: int, dtype: np.dtype[np.floating]) -> None:
        self._total = np.zeros((n_weights, n_weights), dtype, order="F")
        (self._syrk,) = get_blas_funcs(("syrk",), (self._total,))

    def clear(self) -> None:
        """Forget all rows."""
        self._total[:] = 0

    def add(self, rows: Floats, costs: Doubles) -> None:
        """Add rows `(n_rows, n_weights)` with costs of either sign."""
        if len(costs) and np.all(costs == costs[0]):
            self._add(rows, float(costs[0]))
            return
        for sign in (1.0, -1.0):
            taken = np.flatnonzero(sign * costs > 0)
            if len(taken):
                roots = np.sqrt(np.abs(costs[taken])).astype(rows.dtype)
                self._add(rows[taken] * roots[:, None], sign)

    def _add(self, rows: Floats, cost: float) -> None:
        self._total = self._syrk(cost, rows.T, beta=1.0, c=self._total, lower=1, overwrite_c=1)

    def factor(self, scale: float) -> Factor:
        """Factorise the identity plus `scale` times the sum."""
        matrix = self._total * self._total.dtype.type(scale)
        np.einsum("ii->i", matrix)[:] += 1
        return factorize(matrix)


class Curvature:
    """A class's Hessian, kept up with the rows that are active, and a factor of it.

    Costs are those at C = 1, so that the sum over the rows serves every C.
    """

    def __init__(self) -> None:
        self.rows: Indices = np.zeros(0, np.intp)  # counted in, ascending
        self.factor: Factor | None = None
        self.iterations = 0  # that conjugate gradients needed with this factor last
        self.promise = 1.0  # part of the objective that the last step was to take away
        self._costs: Doubles = np.zeros(0)  # of the rows
        self._scale = 0.0
        self._loss: LossHessian | None = None

    def keep_factor_only(self) -> None:
        """Let go of the sum: half the memory, and the next factor is made from nothing."""
        self._loss = None

    def fits(self, rows: Indices, costs: Doubles, scale: float) -> bool:
        """Whether the factor is of just these rows, costs and scale."""
        return (
            self.factor is not None
            and scale == self._scale
            and not np.any(costs != self._counted(rows))
        )

    def changes(self, rows: Indices, costs: Doubles) -> int:
        """How many rows have another cost than the factor has for them."""
        return int(np.count_nonzero(costs != self._counted(rows)))

    def rows_to_add(self, changed: int, active: int) -> int:
        """How many rows a new factor takes: those that changed, or all where that is less."""
        return active if self._loss is None else min(active, changed)

    def renew(
        self,
        matrix: Floats,
        rows: Indices,
        costs: Doubles,
        scale: float,
        *,
        check: Callable[[], None],
    ) -> Factor:
        """Make the factor one of the rows with a cost.

        Parameters
        ----------
        matrix : ndarray of shape (n_rows, n_weights)
            The rows that are looked at.
        rows : ndarray of shape (n_rows,)
            What the rows are called, ascending.
        costs : ndarray of shape (n_rows,)
            At C = 1; 0 for rows that are not active.
        scale : float
            The C.
        check : callable
            Called now and then; it may raise.
        """
        difference = costs - self._counted(rows)
        absent = not np.isin(self.rows, rows, assume_unique=True).all()
        anew = self._loss is None or absent
        if self._loss is None:
            self._loss = LossHessian(matrix.shape[1], matrix.dtype)
        if anew or np.count_nonzero(difference) >= np.count_nonzero(costs):
            self._loss.clear()
            difference = costs
        places = np.flatnonzero(difference)
        for start in range(0, len(places), ADDED_ROWS):
            check()
            part = places[start : start + ADDED_ROWS]
            self._loss.add(matrix[part], difference[part])
        kept = np.flatnonzero(costs)
        self.rows, self._costs, self._scale = rows[kept], costs[kept], scale
        self.factor = self._loss.factor(scale)
        self.iterations = 0
        return self.factor

    def _counted(self, rows: Indices) -> Doubles:
        """The cost with which each of `rows` is in the sum."""
        counted = np.zeros(len(rows))
        if len(rows):
            places = np.minimum(np.searchsorted(rows, self.rows), len(rows) - 1)
            there = rows[places] == self.rows
            counted[places[there]] = self._costs[there]
        return counted


def iteration_time(rows: int, *, features: int, columns: int) -> float:
    """Estimate the seconds of one iteration over gathered float32 rows, and with a factor."""
    entries = rows * features
    products_s = max(4 * entries * columns / NARROW_FLOPS, 8 * entries / BYTES)
    return CALL_S + products_s + 8 * features**2 / BYTES


def renewal_time(changed: int, *, features: int) -> float:
    """Estimate the seconds that a new factor takes, with so many rows added or taken away."""
    return CALL_S + (changed * features**2 + features**3 / 3) / PRODUCT_FLOPS
