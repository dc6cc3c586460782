"""A Newton step in one pass over the rows, where the active ones don't fit in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import LossHessian
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.rows import Floats, Indices

Doubles = NDArray[np.float64]


def streamed_step(
    design: Design,
    targets: Targets,
    columns: Columns,
    live: Indices,
    *,
    weights: Doubles,
    decision: Floats,
) -> tuple[Doubles, Doubles]:
    """Sum every live column's Hessian block by block, and solve for its Newton direction.

    Parameters
    ----------
    design : Design
        The rows.
    targets : Targets
        Their classes.
    columns : Columns
        The problems.
    live : ndarray of shape (n_live,)
        Which of the columns.
    weights : ndarray of shape (n_weights, m)
        Where the columns stand.
    decision : ndarray of shape (m, n_samples)
        The rows' decision values there.

    Returns
    -------
    direction : ndarray of shape (n_weights, n_live)
    promise : ndarray of shape (n_live,)
        The Newton decrements, as parts of the objectives.
    """
    hessians = [LossHessian(design.n_weights, design.dtype) for _ in live]
    gradient = weights[:, live].copy()
    objective = 0.5 * np.einsum("ij,ij->j", gradient, gradient)
    for start, block in design.blocks():
        rows = np.arange(start, start + len(block))
        for place, j in enumerate(live):
            signs = columns.signs(j, targets, rows)
            rest = 1 - signs * decision[j, rows]
            costs = np.where(rest > 0, columns.costs(j, targets, rows), 0)
            active = np.flatnonzero(costs)
            if not len(active):
                continue
            taken, rest, costs = block[active], rest[active], costs[active]
            objective[place] += float(np.einsum("i,i,i->", costs, rest, rest))
            pull = (2 * costs * rest * signs[active]).astype(taken.dtype)
            gradient[:, place] -= taken.T @ pull
            hessians[place].add(taken, 2 * costs)
    direction = np.empty_like(gradient)
    for place in range(len(live)):
        factor = hessians.pop(0).factor(1.0)
        direction[:, place] = factor.solve(np.asfortranarray(-gradient[:, place : place + 1]))[:, 0]
    decrement = -np.einsum("ij,ij->j", gradient, direction)
    return direction, decrement / np.maximum(objective, np.finfo(np.float64).tiny)
