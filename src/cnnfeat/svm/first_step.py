"""The first Newton step, from weights that are zero: all rows are active, in all classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import DENSE_LIMIT, Factor, LossHessian
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.rows import Floats

Doubles = NDArray[np.float64]


def first_step(design: Design, targets: Targets, columns: Columns) -> tuple[Factor, Doubles]:
    """Solve for the first direction of all columns in one pass over the rows, with one Hessian.

    Parameters
    ----------
    design : Design
        The rows.
    targets : Targets
        Their classes.
    columns : Columns
        The problems. Where their costs differ, the Hessian is the mean one.

    Returns
    -------
    factor : Factor
        Of that Hessian; of its diagonal where features are very many.
    direction : ndarray of shape (n_weights, m)
    """
    d, dense = design.n_weights, design.n_weights <= DENSE_LIMIT
    loss, diagonal = LossHessian(d if dense else 1, design.dtype), np.ones(d)
    right = np.zeros((d, len(columns)))
    for start, block in design.blocks():
        curvature, pull = _derivatives(targets, columns, start, block)
        right += block.T @ pull
        if dense:
            loss.add(block, curvature)
        else:
            diagonal += np.einsum("ij,ij,i->j", block, block, curvature)
    factor = loss.factor(1.0) if dense else Factor(diagonal=diagonal.astype(design.dtype))
    return factor, factor.solve(np.asfortranarray(right)).astype(np.float64)


def _derivatives(
    targets: Targets, columns: Columns, start: int, block: Floats
) -> tuple[Doubles, Floats]:
    """Second derivatives of the losses, their mean, (n_rows,), and minus the first, (n_rows, m)."""
    rows = np.arange(start, start + len(block))
    curvature = np.zeros(len(rows))
    pull = np.empty((len(rows), len(columns)), block.dtype)
    for j in range(len(columns)):
        costs = 2 * columns.costs(j, targets, rows)
        curvature += costs
        pull[:, j] = costs * columns.signs(j, targets, rows)
    return curvature / len(columns), pull
