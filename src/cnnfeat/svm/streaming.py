"""A Newton step in passes over the rows, where the active ones don't fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import DENSE_LIMIT, Factor, LossHessian
from cnnfeat.svm.matrix import Floats, Indices
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.system import conjugate_gradients

Doubles = NDArray[np.float64]


TOLERANCE = 1e-3  # of conjugate gradients


def streamed_step(
    design: Design,
    targets: Targets,
    columns: Columns,
    live: Indices,
    *,
    weights: Doubles,
    decision: Floats,
    check: Callable[[], None],
) -> tuple[Doubles, Doubles]:
    """Solve for the Newton directions of some columns, reading the rows block by block.

    Every column's Hessian is summed in one pass. Where features are too many for that, conjugate
    gradients read the rows once an iteration.

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
    check : callable
        Called for each block; it may raise.

    Returns
    -------
    direction : ndarray of shape (n_weights, n_live)
    promise : ndarray of shape (n_live,)
        The Newton decrements, as parts of the objectives; infinite where they are not known.
    """
    dense = design.n_weights <= DENSE_LIMIT
    hessians = [LossHessian(design.n_weights if dense else 0, design.dtype) for _ in live]
    diagonal = np.ones(design.n_weights)
    gradient = weights[:, live].copy()
    objective = 0.5 * np.einsum("ij,ij->j", gradient, gradient)
    read = partial(_active, design, targets, columns, decision=decision, check=check)
    for place, rows, rest, costs, taken in read(live):
        objective[place] += float(np.einsum("i,i,i->", costs, rest, rest))
        signs = columns.signs(int(live[place]), targets, rows)
        gradient[:, place] -= taken.T @ (2 * costs * rest * signs).astype(taken.dtype)
        if dense:
            hessians[place].add(taken, 2 * costs)
        else:
            diagonal += np.einsum("ij,ij,i->j", taken, taken, 2 * costs / len(live))
    met = np.ones(len(live), np.bool_)
    if dense:
        direction = np.empty_like(gradient)
        for place in range(len(live)):
            right = np.asfortranarray(-gradient[:, place : place + 1])
            direction[:, place] = hessians.pop(0).factor(1.0).solve(right)[:, 0]
    else:

        def image(p: Floats, among: Indices) -> Doubles:
            total = np.zeros(p.shape)
            for place, _, _, costs, taken in read(live[among]):
                inner = (2 * costs * (taken @ p[:, place])).astype(taken.dtype)
                total[:, place] += taken.T @ inner
            return total

        factor = Factor(diagonal=diagonal.astype(design.dtype))
        direction, met = conjugate_gradients(
            image, -gradient.astype(design.dtype), factor=factor, tolerance=TOLERANCE, check=check
        )
    decrement = -np.einsum("ij,ij->j", gradient, direction)
    decrement[~met] = np.inf
    return direction, decrement / np.maximum(objective, np.finfo(np.float64).tiny)


def _active(
    design: Design,
    targets: Targets,
    columns: Columns,
    live: Indices,
    *,
    decision: Floats,
    check: Callable[[], None],
) -> Iterator[tuple[int, Indices, Floats, Doubles, Floats]]:
    """Read all rows once.

    Yields, for each block and column with active rows in it: the column's place among the live
    ones; those rows; what they lack; their costs; and their features, (n_active, n_weights).
    """
    for start, block in design.blocks():
        check()
        rows = np.arange(start, start + len(block))
        for place, j in enumerate(live):
            rest = 1 - columns.signs(j, targets, rows) * decision[j, rows]
            costs = np.where(rest > 0, columns.costs(j, targets, rows), 0)
            active = np.flatnonzero(costs)
            if len(active):
                yield place, rows[active], rest[active], costs[active], block[active]
