"""Newton steps of one class on some of the rows: those that can matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.factors import DENSE_LIMIT, Curvature, Factor
from cnnfeat.svm.linesearch import step_length
from cnnfeat.svm.matrix import Floats, Indices
from cnnfeat.svm.system import (
    conjugate_gradients,
    diagonal_factor,
    loss_image,
    transposed_product,
)

Doubles = NDArray[np.float64]

FAR = 0.15  # part of the objective that a step takes away, above which rough directions will do
TOLERANCES = (1e-2, 0.3)  # of conjugate gradients: near the end, and far from it
DIAGONAL_TOLERANCE = 1e-3  # near the end, with a preconditioner that says less


@dataclass(frozen=True, slots=True)
class Subproblem:
    """Some rows, and the columns of one class: itself, or one for each fold left out."""

    matrix: Floats  # (n_rows, n_weights)
    rows: Indices  # (n_rows,) what the rows are called, ascending
    signs: Floats  # (n_rows,) +1 or -1
    costs: Doubles  # (n_rows, m) at C = 1; 0 in the fold left out
    scale: float  # the C


@dataclass(slots=True)
class Descent:
    """Where the steps led."""

    weights: Doubles  # (n_weights, m)
    converged: NDArray[np.bool_]  # (m,)
    steps: int


def descend(
    problem: Subproblem,
    weights: Doubles,
    decision: Floats,
    *,
    curvature: Curvature,
    common: Factor | None,
    tol: float,
    max_steps: int,
    check: Callable[[], None],
) -> Descent:
    """Take Newton steps until all columns are done, or `max_steps`.

    Parameters
    ----------
    problem : Subproblem
        The rows and the columns.
    weights : ndarray of shape (n_weights, m)
        Where to start.
    decision : ndarray of shape (m, n_rows)
        The rows' decision values there.
    curvature : Curvature
        The class's own; renewed when that pays.
    common : Factor or None
        A factor to begin with.
    tol : float
        A column is done when a step promises less than this part of its objective.
    max_steps : int
        Steps allowed.
    check : callable
        Called before each step; it may raise.
    """
    weights, decision = weights.copy(), decision.copy()
    costs = problem.scale * problem.costs
    rest, _ = _losses(problem, costs, weights, decision)
    room = np.empty_like(problem.matrix)  # taken once: fresh memory is slow
    converged = np.zeros(weights.shape[1], np.bool_)
    steps = 0
    while steps < max_steps and not converged.all():
        check()
        live = np.flatnonzero(~converged)
        # The nearer the end, the more exact: else many last steps gain little.
        exact = TOLERANCES[0] if len(weights) <= DENSE_LIMIT else DIAGONAL_TOLERANCE
        tolerance = float(np.clip(np.sqrt(curvature.promise), exact, TOLERANCES[1]))
        direction, along, decrement, met = _newton(
            problem, costs[:, live], weights[:, live], rest[live],
            curvature=curvature, common=common, tolerance=tolerance, room=room, check=check,
        )  # fmt: skip
        for place, j in enumerate(live):
            length = step_length(
                slack=1 - problem.signs * decision[j],
                slope=problem.signs * along[:, place],
                costs=costs[:, j],
                w=weights[:, j],
                step=direction[:, place],
            )
            weights[:, j] += length * direction[:, place]
            decision[j] += decision.dtype.type(length) * along[:, place]
            converged[j] = length == 0
        rest, objective = _losses(problem, costs, weights, decision)
        tiny = np.finfo(np.float64).tiny
        promise = decrement / np.maximum(objective[live], tiny)
        enough = promise <= tol
        curvature.promise = float(promise.max())
        if tolerance <= exact:
            converged[live] |= enough & met
        elif enough.all():  # a rough direction promises too little: look once more
            curvature.promise = 0.0
        steps += 1
    return Descent(weights, converged, steps)


def starts_far(curvature: Curvature | None) -> bool:
    """Whether a class has no factor of its own, and is still too far from the end for one."""
    return curvature is None or (curvature.factor is None and curvature.promise > FAR)


def _losses(
    problem: Subproblem, costs: Doubles, weights: Doubles, decision: Floats
) -> tuple[Floats, Doubles]:
    """What each row lacks in each column, (m, n_rows), and the objectives (m,)."""
    rest = np.maximum(1 - problem.signs * decision, 0)
    loss = np.einsum("ij,ji,ji->j", costs, rest, rest, dtype=np.float64)
    return rest, 0.5 * np.einsum("ij,ij->j", weights, weights) + loss


def _newton(
    problem: Subproblem,
    costs: Doubles,
    weights: Doubles,
    rest: Floats,
    *,
    curvature: Curvature,
    common: Factor | None,
    tolerance: float,
    room: Floats,
    check: Callable[[], None],
) -> tuple[Doubles, Floats, Doubles, NDArray[np.bool_]]:
    """Solve for directions; the rows' values along them, the decrements, and which are exact."""
    matrix = problem.matrix
    costs = np.where(rest.T > 0, 2 * costs, 0)
    active = np.flatnonzero(costs.any(axis=1))
    # The active rows alone stay in the cache while conjugate gradients go over them.
    compact = matrix.take(active, axis=0, out=room[: len(active)], mode="clip")
    costs = costs[active].astype(matrix.dtype)
    gradient = weights - transposed_product(
        compact, costs * (rest[:, active] * problem.signs[active]).T
    )
    factor = _preconditioner(problem, rest, curvature, common, check)
    direction, met = conjugate_gradients(
        loss_image(compact, costs),
        -gradient.astype(matrix.dtype),
        factor=factor,
        tolerance=tolerance,
        check=check,
    )
    along = matrix @ direction.astype(matrix.dtype)
    return direction, along, -np.einsum("ij,ij->j", gradient, direction), met


def _preconditioner(
    problem: Subproblem,
    rest: Floats,
    curvature: Curvature,
    common: Factor | None,
    check: Callable[[], None],
) -> Factor:
    """The common factor far from the end; then the class's own, on which others are built."""
    # Of all folds: each column's own Hessian lacks a fold of it.
    active = 2 * problem.costs.max(axis=1) * (rest > 0).any(axis=0)
    if problem.matrix.shape[1] > DENSE_LIMIT:
        return diagonal_factor(problem.matrix, problem.scale * active)
    if common is not None and starts_far(curvature):
        return common
    return curvature.factor_for(problem.matrix, problem.rows, active, problem.scale, check=check)
