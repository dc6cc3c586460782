"""Preconditioners: Cholesky factors of Hessians, or their diagonals, and when to renew them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs, solve_triangular

from cnnfeat.svm.matrix import Doubles, Floats, Indices
from cnnfeat.svm.solver.blas import solve_by_pointer

DENSE_LIMIT = 4097  # weights up to which Hessians are formed: 4,096 features and the intercept
ROUNDING = 1e-9
ADDED_ROWS = 2048  # rows copied at a time


@dataclass(frozen=True, slots=True)
class Change:
    """A matrix of low rank to be added to one that is factorised.

    With the Cholesky factor L and the changed rows V of costs S, ``(L L^T + V^T S V)^-1 = L^-T (I -
    T K^-1 T^T) L^-1`` where ``T = L^-1 V^T`` and ``K = S^-1 + T^T T`` (Sherman, Morrison and
    Woodbury).
    """

    half: Floats  # T, (n, k)
    inverse: Floats  # of K, (k, k)

    def apply(self, vectors: Floats) -> Floats:
        """Multiply by the matrix in the middle."""
        return vectors - self.half @ (self.inverse @ (self.half.T @ vectors))


@dataclass(frozen=True, slots=True)
class Factor:
    """A lower Cholesky factor, perhaps with a change to what it is of; a diagonal; or neither."""

    lower: Floats | None = None  # (n, n), Fortran order
    change: Change | None = None
    diagonal: Floats | None = None  # (n,)

    def solve(self, right: Floats) -> Floats:
        """Solve for `right` of shape (n, m)."""
        if self.lower is None:
            return right / self.diagonal[:, None] if self.diagonal is not None else right
        solved = np.array(right, self.lower.dtype, order="F")
        solve_triangle(self.lower, solved, transposed=False)
        if self.change is not None:
            solved = np.asfortranarray(self.change.apply(solved))
        solve_triangle(self.lower, solved, transposed=True)
        return solved

    def changed(self, rows: Floats, costs: Doubles) -> Factor | None:
        """Add rows `(k, n)` with costs of either sign, other than 0.

        Returns
        -------
        Factor or None
            None if what comes out is not positive definite, by rounding.
        """
        if self.lower is None:
            return None
        half = np.array(rows.T, self.lower.dtype, order="F")
        solve_triangle(self.lower, half, transposed=False)
        core = (half.T @ half).astype(np.float64)
        np.einsum("ii->i", core)[:] += 1 / costs
        if not _keeps_definite(core, costs > 0):
            return None
        return Factor(lower=self.lower, change=Change(half, np.linalg.inv(core).astype(half.dtype)))


def _keeps_definite(core: Doubles, added: NDArray[np.bool_]) -> bool:
    """Whether ``S^-1 + T^T T`` has as many negative eigenvalues as S: Haynsworth's inertia."""
    plus, minus = np.flatnonzero(added), np.flatnonzero(~added)
    try:
        lower = np.linalg.cholesky(core[np.ix_(plus, plus)])
        across = solve_triangular(lower, core[np.ix_(plus, minus)], lower=True)
        np.linalg.cholesky(across.T @ across - core[np.ix_(minus, minus)])
    except np.linalg.LinAlgError:
        return False
    return True


def add_products(rows: Floats, cost: float, total: Floats) -> None:
    """Add ``cost * rows^T rows`` to `total`, in place.

    By NumPy, whose products leave Python's lock to other threads; SciPy's SYRK does not.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n)
        In C order.
    cost : float
        Of all of them.
    total : ndarray of shape (n, n)
        In Fortran order, of the same dtype.
    """
    _check_fit(rows.flags.c_contiguous and total.flags.f_contiguous and rows.dtype == total.dtype)
    _check_fit(rows.shape[1] == total.shape[0] == total.shape[1])
    product = rows.T @ rows
    product *= product.dtype.type(cost)
    total += product.T  # the same, and in the order of `total`


def solve_triangle(lower: Floats, columns: Floats, *, transposed: bool) -> None:
    """Solve ``lower x = columns``, or with its transpose, in place.

    Parameters
    ----------
    lower : ndarray of shape (n, n)
        In Fortran order. What is above its diagonal is not read.
    columns : ndarray of shape (n, m)
        In Fortran order, of the same dtype.
    transposed : bool
        Whether with the transpose.
    """
    _check_fit(lower.flags.f_contiguous and columns.flags.f_contiguous)
    _check_fit(lower.shape == (len(columns), len(columns)) and lower.dtype == columns.dtype)
    if columns.size and not solve_by_pointer(lower, columns, transposed=transposed):
        columns[:] = solve_triangular(
            lower, columns, lower=True, trans=int(transposed), check_finite=False
        )


def _check_fit(fits: bool) -> None:
    if not fits:
        raise ValueError("arrays of other types, shapes or orders than BLAS is told")


class LossHessian:
    """The sum of ``cost_i x_i x_i^T`` over some rows, to which rows are added and taken away.

    Parameters
    ----------
    n_weights : int
    dtype : numpy.dtype
    """

    def __init__(self, n_weights: int, dtype: np.dtype[np.floating]) -> None:
        # Symmetric: only the lower half counts.
        self._total = np.zeros((n_weights, n_weights), dtype, order="F")

    def clear(self) -> None:
        """Forget all rows."""
        self._total[:] = 0

    def add(self, rows: Floats, costs: Doubles) -> None:
        """Add rows `(n_rows, n_weights)` with costs of either sign."""
        if len(costs) and np.all(costs == costs[0]):
            add_products(rows, float(costs[0]), self._total)
            return
        for sign in (1.0, -1.0):
            taken = np.flatnonzero(sign * costs > 0)
            if len(taken):
                weighted = rows.take(taken, axis=0)
                weighted *= np.sqrt(np.abs(costs[taken])).astype(rows.dtype)[:, None]
                add_products(weighted, sign, self._total)

    def add_diagonal(self, values: Doubles) -> None:
        """Add to the diagonal `(n_weights,)`."""
        np.einsum("ii->i", self._total)[:] += values

    def diagonal(self) -> Floats:
        """Copy the diagonal, (n_weights,)."""
        return np.diagonal(self._total).copy()

    def factor(self, scale: float) -> Factor:
        """Factorise the identity plus `scale` times the sum.

        Where rounding has made it indefinite, a growing multiple of the identity is added: what
        comes out serves as a preconditioner all the same.
        """
        (potrf,) = get_lapack_funcs(("potrf",), (self._total,))
        ridge = 0.0
        while True:
            matrix = self._total * self._total.dtype.type(scale)
            diagonal = np.einsum("ii->i", matrix)
            diagonal += 1
            mean = float(diagonal.mean(dtype=np.float64))
            if not np.isfinite(mean):  # beyond the type's range
                return Factor()
            diagonal += ridge
            lower, failed = potrf(matrix, lower=1, clean=0, overwrite_a=1)
            if not failed:
                return Factor(lower=lower)
            ridge = max(10 * ridge, float(np.finfo(matrix.dtype).eps) * mean)


@dataclass(frozen=True, slots=True)
class ActiveRows:
    """The rows that a class looks at, and what those of them cost that are active."""

    matrix: Floats  # (n_rows, n_weights)
    rows: Indices  # (n_rows,) what they are called, ascending
    costs: Doubles  # (n_rows,) at C = 1; 0 for rows that are not active
    scale: float  # the C


class Curvature:
    """A class's Hessian, kept up with the rows that are active, and a factor of it.

    Costs are those at C = 1, so that the sum over the rows serves every C.
    """

    def __init__(self) -> None:
        self.rows: Indices = np.zeros(0, np.intp)  # counted in, ascending
        self.factor: Factor | None = None
        self.promise = 1.0  # part of the objective that the last step was to take away
        self._costs: Doubles = np.zeros(0)  # of the rows
        self._scale = 0.0
        self._loss: LossHessian | None = None

    def keep_factor_only(self) -> None:
        """Let go of the sum: half the memory, and the next factor is made from nothing."""
        self._loss = None

    def forget(self) -> None:
        """Let go of all but how far the end is."""
        self.rows, self._costs = self.rows[:0], self._costs[:0]
        self.factor = self._loss = None

    def factor_for(self, active: ActiveRows, *, check: Callable[[], None]) -> Factor:
        """The factor for the rows with a cost: the one at hand, changed a little, or a new one.

        `check` is called now and then; it may raise.
        """
        if self.factor is not None and active.scale == self._scale:
            difference = self._difference(active)
            places = np.flatnonzero(difference)
            if not len(places):
                return self.factor
            if len(places) <= self._most_changed(int(np.count_nonzero(active.costs))):
                changed = self.factor.changed(
                    active.matrix.take(places, axis=0), active.scale * difference[places]
                )
                if changed is not None:
                    return changed
        return self.renew(active, check=check)

    def _most_changed(self, active: int) -> int:
        """Changed rows up to which a change costs less than what a new factor costs besides."""
        d = self.factor.lower.shape[0] if self.factor and self.factor.lower is not None else 0
        return d // 3 if self._loss is not None else min((d // 3 + active) // 3, d // 2)

    def renew(self, active: ActiveRows, *, check: Callable[[], None]) -> Factor:
        """Make the factor one of the rows with a cost; `check` as in `factor_for`."""
        matrix, costs = active.matrix, active.costs
        difference = self._difference(active)
        counted = np.count_nonzero(_found(self.rows, active.rows)[1])
        anew = self._loss is None or counted < len(self.rows)
        if self._loss is None:
            self._loss = LossHessian(matrix.shape[1], matrix.dtype)
        if anew or np.count_nonzero(difference) >= np.count_nonzero(costs):
            self._loss.clear()
            difference = costs
        places = np.flatnonzero(difference)
        for start in range(0, len(places), ADDED_ROWS):
            check()
            part = places[start : start + ADDED_ROWS]
            self._loss.add(matrix.take(part, axis=0), difference[part])
        kept = np.flatnonzero(costs)
        self.rows, self._costs, self._scale = active.rows[kept], costs[kept], active.scale
        self.factor = self._loss.factor(active.scale)
        return self.factor

    def _difference(self, active: ActiveRows) -> Doubles:
        """How much each row should have of another cost than it has in the sum."""
        rows, costs = active.rows, active.costs
        counted = np.zeros(len(rows))
        places, there = _found(self.rows, rows)
        counted[places[there]] = self._costs[there]
        difference = costs - counted
        # Costs that were multiplied and divided by several C are the same but for rounding.
        difference[np.abs(difference) <= ROUNDING * costs] = 0
        return difference


def _found(some: Indices, rows: Indices) -> tuple[Indices, NDArray[np.bool_]]:
    """Where some rows are among others, both ascending, and which of them are there at all."""
    if not len(rows):
        return np.zeros(len(some), np.intp), np.zeros(len(some), np.bool_)
    places = np.minimum(np.searchsorted(rows, some), len(rows) - 1)
    return places, rows[places] == some
