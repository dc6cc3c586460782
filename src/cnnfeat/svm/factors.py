"""Preconditioners: Cholesky factors of Hessians, or their diagonals, and when to make them anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Floats = NDArray[np.floating]

# What the two kinds of work cost on a common core, for a choice that needs no precision.
PRODUCT_FLOPS = 1e11  # a second, in matrix products
NARROW_FLOPS = 5e10  # a second, in products with few columns
BYTES = 1.2e10  # a second, read from memory
CALL_S = 2e-4  # of overhead


@dataclass(frozen=True, slots=True)
class Factor:
    """Either a lower Cholesky factor or a diagonal."""

    lower: Floats | None = None  # (n, n), Fortran order
    diagonal: Floats | None = None  # (n,)

    def solve(self, right: Floats) -> Floats:
        """Solve for `right` of shape (n, m)."""
        if self.lower is None:
            return right / self.diagonal[:, None] if self.diagonal is not None else right
        potrs = lapack.dpotrs if self.lower.dtype == np.float64 else lapack.spotrs
        solved, _ = potrs(self.lower, right.astype(self.lower.dtype, copy=False), lower=1)
        return solved  # type: ignore[no-any-return]


def factorize(matrix: Floats) -> Factor:
    """Factorise a positive definite matrix, which is overwritten.

    Where rounding has made it indefinite, a growing multiple of the identity is added: what comes
    out serves as a preconditioner all the same.
    """
    potrf = lapack.dpotrf if matrix.dtype == np.float64 else lapack.spotrf
    mean = float(np.trace(matrix, dtype=np.float64)) / len(matrix)
    ridge = 0.0
    while True:
        lower, failed = potrf(matrix.T, lower=1, clean=0)
        if not failed:
            return Factor(lower=lower)
        added = max(10 * ridge, float(np.finfo(matrix.dtype).eps) * mean)
        matrix.flat[:: len(matrix) + 1] += added - ridge
        ridge = added


def iteration_time(rows: int, *, features: int, columns: int) -> float:
    """Estimate the seconds of one iteration over gathered float32 rows."""
    entries = rows * features
    return CALL_S + max(4 * entries * columns / NARROW_FLOPS, 4 * entries / BYTES)


def worth_factoring(
    iterations: int, *, rows: int, features: int, shared_rows: int, columns: int, classes: int
) -> bool:
    """Tell whether a class's new factor costs less than the iterations it is likely to save.

    Parameters
    ----------
    iterations : int
        Of conjugate gradients, that the old factor needed.
    rows : int
        Active rows of the class.
    features : int
        Weights of a column.
    shared_rows : int
        Rows that one iteration goes over, for `columns` columns of `classes` classes at once.
    columns, classes : int
        How many share an iteration.
    """
    iteration_s = iteration_time(shared_rows, features=features, columns=columns)
    factoring_s = CALL_S + (rows * features**2 + features**3 / 3) / PRODUCT_FLOPS
    solving_s = 8 * features**2 / BYTES  # with the factor, read twice
    return iterations > 1 and iterations * (iteration_s / classes + solving_s) > factoring_s
