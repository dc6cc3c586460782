"""The first Newton step, from weights that are zero: all rows are active, in all classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import DENSE_LIMIT, Factor, LossHessian
from cnnfeat.svm.matrix import Floats, Indices
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.system import conjugate_gradients

Doubles = NDArray[np.float64]

PRODUCT_FLOPS = 5e10  # a second on a common core, in matrix products: for choices, so roughly
NARROW_FLOPS = 2.5e10  # the same in products with few columns
SAMPLED = 8  # rows a weight, for a Hessian that is near enough that of all rows
TOLERANCE = 0.1  # of conjugate gradients with it
ITERATIONS = 4  # that they take, about


def first_step(
    design: Design, targets: Targets, columns: Columns, *, check: Callable[[], None]
) -> tuple[Factor, Doubles]:
    """Solve for the first direction of all columns, with one Hessian for them.

    Where rows are many and in memory, the Hessian is that of a sample of them, and conjugate
    gradients over all rows make up for the difference.

    Parameters
    ----------
    design : Design
        The rows.
    targets : Targets
        Their classes.
    columns : Columns
        The problems. Where their costs differ, the Hessian is the mean one.
    check : callable
        Called now and then; it may raise.

    Returns
    -------
    factor : Factor
        Of that Hessian; of its diagonal where features are very many.
    direction : ndarray of shape (n_weights, m)
    """
    if _sampling_pays(design, len(columns)):
        return _sampled_step(design, targets, columns, check)
    return _exact_step(design, targets, columns, check)


def _sampling_pays(design: Design, n_columns: int) -> bool:
    n, d = design.n_samples, design.n_weights
    if not design.held or d > DENSE_LIMIT:
        return False
    products = 4 * n * d * n_columns * ITERATIONS
    return SAMPLED * d**3 / PRODUCT_FLOPS + products / NARROW_FLOPS < n * d**2 / PRODUCT_FLOPS


def _sampled_step(
    design: Design, targets: Targets, columns: Columns, check: Callable[[], None]
) -> tuple[Factor, Doubles]:
    n, d, dtype = design.n_samples, design.n_weights, design.dtype
    rows = np.arange(n)
    curvature, pull = _derivatives(targets, columns, rows, dtype)
    mean = curvature.mean(axis=0)
    sample = np.sort(np.random.default_rng(0).choice(n, SAMPLED * d, replace=False))
    loss = LossHessian(d, dtype)
    loss.add(design.take(sample), mean[sample] * (n / len(sample)))
    # A feature that the sample hardly saw shall not seem free.
    loss.add_diagonal(np.maximum(mean.mean() * design.square_sums() - loss.diagonal(), 0))
    factor = loss.factor(1.0)

    right = design.transposed_product(pull).astype(dtype)
    del pull

    def image(p: Floats, live: Indices) -> Doubles:
        costs = curvature if len(live) == len(curvature) else curvature[live]
        return design.transposed_product(np.multiply(costs, design.product(p.astype(np.float64))))

    direction, _ = conjugate_gradients(
        image, right, factor=factor, tolerance=TOLERANCE, check=check
    )
    return factor, direction


def _exact_step(
    design: Design, targets: Targets, columns: Columns, check: Callable[[], None]
) -> tuple[Factor, Doubles]:
    d, dense = design.n_weights, design.n_weights <= DENSE_LIMIT
    loss, diagonal = LossHessian(d if dense else 1, design.dtype), np.ones(d)
    right = np.zeros((d, len(columns)))
    for start, block in design.blocks():
        check()
        rows = np.arange(start, start + len(block))
        curvature, pull = _derivatives(targets, columns, rows, block.dtype)
        mean = curvature.mean(axis=0, dtype=np.float64)
        right += block.T @ pull.T
        if dense:
            loss.add(block, mean)
        else:
            diagonal += np.einsum("ij,ij,i->j", block, block, mean)
    factor = loss.factor(1.0) if dense else Factor(diagonal=diagonal.astype(design.dtype))
    return factor, factor.solve(np.asfortranarray(right)).astype(np.float64)


def _derivatives(
    targets: Targets, columns: Columns, rows: Indices, dtype: np.dtype[np.floating]
) -> tuple[Floats, Floats]:
    """Second derivatives of the losses, and minus the first, both of shape (m, n_rows)."""
    curvature = np.empty((len(columns), len(rows)), dtype)
    pull = np.empty_like(curvature)
    for j in range(len(columns)):
        curvature[j] = 2 * columns.costs(j, targets, rows)
        pull[j] = curvature[j] * columns.signs(j, targets, rows)
    return curvature, pull
