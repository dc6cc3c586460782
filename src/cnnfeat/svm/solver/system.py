"""Newton equations over a set of rows, and conjugate gradients that solve them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.matrix import Doubles, Floats, Indices
from cnnfeat.svm.solver.factors import Factor

CG_LIMIT = 200  # iterations
PASSED_BYTES = 4 * 2**20  # read from memory once, and from the cache for the second product
Image = Callable[[Floats, Indices], Doubles]


def conjugate_gradients(
    image: Image,
    right: Floats,
    *,
    factor: Factor,
    tolerance: float,
    check: Callable[[], None],
) -> tuple[Doubles, NDArray[np.bool_]]:
    """Solve ``(I + B_k) x_k = b_k`` for some columns at once.

    Parameters
    ----------
    image : callable
        Given vectors `(n_weights, n_live)` and which columns they are of, it returns the products
        with B, as `loss_image` does.
    right : ndarray of shape (n_weights, m)
        The right-hand sides b, in the type to compute in.
    factor : Factor
        The preconditioner of all columns.
    tolerance : float
        What part of the residual, in the preconditioner's norm, may remain.
    check : callable
        Called before each iteration; it may raise.

    Returns
    -------
    solution : ndarray of shape (n_weights, m)
    met : ndarray of shape (m,)
        Which columns came within the tolerance.
    """
    residual = np.array(right, order="F")
    solution = np.zeros(right.shape)
    z = factor.solve(residual)
    rho = _dots(residual, z)
    if factor.change is not None and not (rho[residual.any(axis=0)] > 0).all():
        factor = replace(factor, change=None)  # rounding made it indefinite
        z = factor.solve(residual)
        rho = _dots(residual, z)
    p = z.copy()
    first = rho.copy()
    live = np.flatnonzero(rho > 0)
    for _ in range(CG_LIMIT):
        if not len(live):
            break
        check()
        now = np.ascontiguousarray(p[:, live])
        pushed = now + image(now, live).astype(now.dtype)
        length = rho[live] / _dots(now, pushed)
        solution[:, live] += now * length
        residual[:, live] -= pushed * length.astype(now.dtype)
        z = factor.solve(np.asfortranarray(residual[:, live]))
        new = _dots(residual[:, live], z)
        p[:, live] = z + now * (new / rho[live]).astype(now.dtype)
        rho[live] = new
        live = live[new > tolerance**2 * first[live]]
    return solution, rho <= tolerance**2 * first


def loss_image(matrix: Floats, curvature: Floats) -> Image:
    """The product with ``A^T D_k A``.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_weights)
        A.
    curvature : ndarray of shape (n_rows, m)
        The diagonals D, in the matrix's type.
    """

    def image(p: Floats, live: Indices) -> Doubles:
        costs = curvature if len(live) == curvature.shape[1] else curvature[:, live]
        total = np.zeros(p.shape)
        for part, chunk in chunks(matrix):
            inner = chunk @ p
            inner *= costs[part]
            total += chunk.T @ inner
        return total

    return image


def transposed_product(matrix: Floats, right: Floats) -> Doubles:
    """Multiply the transposed matrix by `right` of shape (n_rows, m), summing in float64."""
    total = np.zeros((matrix.shape[1], right.shape[1]))
    for part, chunk in chunks(matrix):
        total += chunk.T @ right[part]
    return total


def diagonal_factor(matrix: Floats, curvature: Floats) -> Factor:
    """The diagonal of ``I + A^T D A`` as a preconditioner, with D of shape (n_rows,)."""
    total = np.ones(matrix.shape[1])
    for part, chunk in chunks(matrix):
        total += (chunk * chunk).T @ curvature[part]
    return Factor(diagonal=total.astype(matrix.dtype))


def chunks(matrix: Floats) -> Iterator[tuple[slice, Floats]]:
    """Cut a matrix into runs of rows that stay in the processor's cache."""
    step = max(64, PASSED_BYTES // (matrix.shape[1] * matrix.dtype.itemsize))
    for start in range(0, len(matrix), step):
        part = slice(start, start + step)
        yield part, matrix[part]


def _dots(a: Floats, b: Floats) -> Doubles:
    """Inner products of the columns, summed in float64."""
    products: Doubles = np.einsum("ij,ij->j", a, b, dtype=np.float64)
    return products
