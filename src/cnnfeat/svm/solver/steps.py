"""Newton steps: the first one, those of a class on the rows that can matter, and those in passes.

The first starts from weights that are zero, where all rows are active in all classes. A class then
takes steps on the rows that are active or nearly so. Where these don't fit in memory, a step reads
all rows block by block. How far to go along a direction is found exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.matrix import Doubles, Floats, Indices
from cnnfeat.svm.solver.design import Design, Problem
from cnnfeat.svm.solver.factors import DENSE_LIMIT, ActiveRows, Curvature, Factor, LossHessian
from cnnfeat.svm.solver.system import (
    conjugate_gradients,
    diagonal_factor,
    loss_image,
    transposed_product,
)

PRODUCT_FLOPS = 5e10  # a second on a common core, in matrix products: for choices, so roughly
NARROW_FLOPS = 2.5e10  # the same in products with few columns
SAMPLED = 8  # rows a weight, for a Hessian that is near enough that of all rows
SAMPLED_TOLERANCE = 0.1  # of conjugate gradients with it
ITERATIONS = 4  # that they take, about
FAR = 0.15  # part of the objective that a step takes away, above which rough directions will do
FAR_TOLERANCE = 0.3  # of conjugate gradients there
SURE = 0.1  # near the end
EXACT = 1e-2  # where the last step must bring much
SAFE = 0.25  # of the promise wanted at the end, where a direction is rougher than that
DIAGONAL_TOLERANCE = 1e-3  # near the end, with a preconditioner that says less
SEARCHES = 50  # of the line's minimum
EXACT_LENGTH, ROUGH_LENGTH = 1e-6, 1e-2  # within which part of it a length is right
REACH = 2.0  # step lengths looked at first


def first_step(problem: Problem) -> tuple[Factor, Doubles]:
    """Solve for the first direction of all columns, from weights that are zero.

    All rows are active, and one Hessian serves all columns: the mean one where their costs differ.
    Where rows are many and in memory, it is that of a sample of them, and conjugate gradients over
    all rows make up for the difference.

    Returns
    -------
    factor : Factor
        Of that Hessian; of its diagonal where features are very many.
    direction : ndarray of shape (n_weights, m)
    """
    pays = _sampling_pays(problem.design, len(problem.columns))
    return _sampled_step(problem) if pays else _exact_step(problem)


def _sampling_pays(design: Design, n_columns: int) -> bool:
    n, d = design.n_samples, design.n_weights
    if not design.held or d > DENSE_LIMIT:
        return False
    products = 4 * n * d * n_columns * ITERATIONS
    return SAMPLED * d**3 / PRODUCT_FLOPS + products / NARROW_FLOPS < n * d**2 / PRODUCT_FLOPS


def _sampled_step(problem: Problem) -> tuple[Factor, Doubles]:
    design = problem.design
    n, d, dtype = design.n_samples, design.n_weights, design.dtype
    curvature, pull = _derivatives(problem, np.arange(n))
    mean = curvature.mean(axis=0, dtype=np.float64)
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
        image, right, factor=factor, tolerance=SAMPLED_TOLERANCE, check=problem.check
    )
    return factor, direction


def _exact_step(problem: Problem) -> tuple[Factor, Doubles]:
    design = problem.design
    d, dense = design.n_weights, design.n_weights <= DENSE_LIMIT
    loss, diagonal = LossHessian(d if dense else 1, design.dtype), np.ones(d)
    right = np.zeros((d, len(problem.columns)))
    for start, block in design.blocks():
        problem.check()
        curvature, pull = _derivatives(problem, np.arange(start, start + len(block)))
        mean = curvature.mean(axis=0, dtype=np.float64)
        right += block.T @ pull.T
        if dense:
            loss.add(block, mean)
        else:
            diagonal += np.einsum("ij,ij,i->j", block, block, mean)
    factor = loss.factor(1.0) if dense else Factor(diagonal=diagonal.astype(design.dtype))
    return factor, factor.solve(np.asfortranarray(right)).astype(np.float64)


def _derivatives(problem: Problem, rows: Indices) -> tuple[Floats, Floats]:
    """Second derivatives of the losses, and minus the first, both of shape (m, n_rows)."""
    curvature = np.empty((len(problem.columns), len(rows)), problem.design.dtype)
    pull = np.empty_like(curvature)
    for j in range(len(curvature)):
        curvature[j] = 2 * problem.costs(j, rows)
        pull[j] = curvature[j] * problem.signs(j, rows)
    return curvature, pull


@dataclass(frozen=True, slots=True)
class Subproblem:
    """Rows that can matter, and the columns of one class: itself, or one for each fold left out."""

    matrix: Floats  # (n_rows, n_weights)
    rows: Indices  # (n_rows,) what the rows are called, ascending
    signs: Floats  # (n_rows,) +1 or -1
    costs: Doubles  # (n_rows, m) at C = 1; 0 in the fold left out
    scale: float  # the C
    curvature: Curvature  # the class's own; renewed when that pays
    common: Factor | None  # a factor to begin with
    check: Callable[[], None]  # called now and then; it may raise


@dataclass(slots=True)
class Descent:
    """Where the steps led."""

    weights: Doubles  # (n_weights, m)
    converged: NDArray[np.bool_]  # (m,)
    steps: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How exactly directions are solved for, to end within `tol`."""

    tol: float
    exact: float  # the least tolerance of conjugate gradients
    sure: float  # from which on they promise at least `SAFE` of what there is

    def tolerance(self, promise: float) -> float:
        """The one for the next step, after one that promised so large a part of the objective.

        The nearer the end, the more exact, else many last steps gain little; but no more exact
        than it takes to end with this step.
        """
        needed = np.sqrt(SAFE * self.tol / max(promise, SAFE * self.tol))
        least = np.clip(needed, self.exact, self.sure)
        return float(np.clip(np.sqrt(promise), least, FAR_TOLERANCE))


def descend(
    problem: Subproblem, weights: Doubles, decision: Floats, *, tol: float, max_steps: int
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
    tol : float
        A column is done when a step promises less than this part of its objective.
    max_steps : int
        Steps allowed.
    """
    weights, decision = weights.copy(), decision.copy()
    costs, curvature = problem.scale * problem.costs, problem.curvature
    dense = len(weights) <= DENSE_LIMIT
    exact, sure = (EXACT, SURE) if dense else (DIAGONAL_TOLERANCE, DIAGONAL_TOLERANCE)
    effort = Effort(tol, exact=exact, sure=sure)
    rest, _ = _losses(problem, costs, weights, decision)
    room = np.empty_like(problem.matrix)  # taken once: fresh memory is slow
    converged = np.zeros(weights.shape[1], np.bool_)
    steps = 0
    while steps < max_steps and not converged.all():
        problem.check()
        live = np.flatnonzero(~converged)
        tolerance = effort.tolerance(curvature.promise)
        direction, along, decrement, met = _newton(
            problem, costs[:, live], weights[:, live], rest[live],
            factor=_preconditioner(problem, rest), tolerance=tolerance, room=room,
        )  # fmt: skip
        for place, j in enumerate(live):
            length = step_length(
                slack=1 - problem.signs * decision[j],
                slope=problem.signs * along[:, place],
                costs=costs[:, j].take,
                w=weights[:, j],
                step=direction[:, place],
            ).length
            weights[:, j] += length * direction[:, place]
            decision[j] += decision.dtype.type(length) * along[:, place]
            converged[j] = length == 0
        rest, objective = _losses(problem, costs, weights, decision)
        tiny = np.finfo(np.float64).tiny
        promise = decrement / np.maximum(objective[live], tiny)
        curvature.promise = float(promise.max())
        enough = promise <= (tol if tolerance <= effort.exact else SAFE * tol)
        if tolerance <= effort.sure:
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
    factor: Factor,
    tolerance: float,
    room: Floats,
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
    direction, met = conjugate_gradients(
        loss_image(compact, costs),
        -gradient.astype(matrix.dtype),
        factor=factor,
        tolerance=tolerance,
        check=problem.check,
    )
    along = matrix @ direction.astype(matrix.dtype)
    return direction, along, -np.einsum("ij,ij->j", gradient, direction), met


def _preconditioner(problem: Subproblem, rest: Floats) -> Factor:
    """The common factor far from the end; then the class's own, on which others are built."""
    # Of all columns, done or not: each one's own lacks a fold of it, and a few rows more.
    costs = 2 * np.where(rest.T > 0, problem.costs, 0).max(axis=1)
    if problem.matrix.shape[1] > DENSE_LIMIT:
        return diagonal_factor(problem.matrix, problem.scale * costs)
    if problem.common is not None and starts_far(problem.curvature):
        return problem.common
    active = ActiveRows(problem.matrix, problem.rows, costs, problem.scale)
    return problem.curvature.factor_for(active, check=problem.check)


def streamed_step(
    problem: Problem, live: Indices, *, weights: Doubles, decision: Floats
) -> tuple[Doubles, Doubles]:
    """Solve for the Newton directions of some columns, reading the rows block by block.

    Every column's Hessian is summed in one pass. Where features are too many for that, conjugate
    gradients read the rows once an iteration.

    Parameters
    ----------
    problem : Problem
        The rows and all columns.
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
        The Newton decrements, as parts of the objectives; infinite where they are not known.
    """
    design = problem.design
    dense = design.n_weights <= DENSE_LIMIT
    hessians = [LossHessian(design.n_weights if dense else 0, design.dtype) for _ in live]
    diagonal = np.ones(design.n_weights)
    gradient = weights[:, live].copy()
    objective = 0.5 * np.einsum("ij,ij->j", gradient, gradient)
    for place, rows, rest, costs, taken in _active(problem, live, decision):
        objective[place] += float(np.einsum("i,i,i->", costs, rest, rest))
        signs = problem.signs(int(live[place]), rows)
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
            for place, _, _, costs, taken in _active(problem, live[among], decision):
                inner = (2 * costs * (taken @ p[:, place])).astype(taken.dtype)
                total[:, place] += taken.T @ inner
            return total

        factor = Factor(diagonal=diagonal.astype(design.dtype))
        direction, met = conjugate_gradients(
            image, -gradient.astype(design.dtype),
            factor=factor, tolerance=DIAGONAL_TOLERANCE, check=problem.check,
        )  # fmt: skip
    decrement = -np.einsum("ij,ij->j", gradient, direction)
    decrement[~met] = np.inf
    return direction, decrement / np.maximum(objective, np.finfo(np.float64).tiny)


def _active(
    problem: Problem, live: Indices, decision: Floats
) -> Iterator[tuple[int, Indices, Floats, Doubles, Floats]]:
    """Read all rows once.

    Yields, for each block and column with active rows in it: the column's place among the live
    ones; those rows; what they lack; their costs; and their features, (n_active, n_weights).
    """
    for start, block in problem.design.blocks():
        problem.check()
        rows = np.arange(start, start + len(block))
        for place, j in enumerate(live):
            rest = 1 - problem.signs(j, rows) * decision[j, rows]
            costs = np.where(rest > 0, problem.costs(j, rows), 0)
            active = np.flatnonzero(costs)
            if len(active):
                yield place, rows[active], rest[active], costs[active], block[active]


@dataclass(frozen=True, slots=True)
class Length:
    """How far to go along a direction, and the rows that can lack something on the way."""

    length: float  # 0 where the step does not descend
    rows: Indices  # ascending
    slack: Doubles  # what each lacks at the start
    slope: Doubles  # what it gains along the whole step
    costs: Doubles

    def losses(self, t: float) -> Doubles:
        """The rows' losses at a step length up to the larger of `length` and 1."""
        rest = np.maximum(self.slack - t * self.slope, 0)
        losses: Doubles = self.costs * rest**2
        return losses


def step_length(
    *,
    slack: Floats,
    slope: Floats,
    costs: Callable[[Indices], Doubles],
    w: Doubles,
    step: Doubles,
    within: float = EXACT_LENGTH,
) -> Length:
    """Find the best step length of one column, looking only at rows that can matter up to it.

    Parameters
    ----------
    slack : ndarray of shape (n_samples,)
        What each row lacks now.
    slope : ndarray of shape (n_samples,)
        What it gains along the whole step.
    costs : callable
        Gives the costs of some rows.
    w, step : ndarray of shape (n_weights,)
        The weights, and the step.
    within : float
        What part of the length it may be wrong by.
    """
    reach = REACH
    while True:
        rows = np.flatnonzero((slack > 0) | (slack > slope.dtype.type(reach) * slope))
        found = slack[rows].astype(np.float64), slope[rows].astype(np.float64), costs(rows)
        length = line_minimum(
            slack=found[0],
            slope=found[1],
            costs=found[2],
            linear=float(np.einsum("i,i->", w, step)),
            quadratic=float(np.einsum("i,i->", step, step)),
            within=within,
        )
        if length <= reach:
            return Length(length, rows, *found)
        reach *= 8


def line_minimum(
    *,
    slack: Doubles,
    slope: Doubles,
    costs: Doubles,
    linear: float,
    quadratic: float,
    within: float = EXACT_LENGTH,
) -> float:
    """Find the t > 0 that minimises an objective along a direction.

    The objective is ``linear * t + quadratic / 2 * t^2 + sum_i costs_i max(0, slack_i -
    t * slope_i)^2``. Newton's method on its derivative, which is piecewise linear and grows,
    kept inside a bracket: it ends on the piece that holds the zero.

    Parameters
    ----------
    slack : ndarray of shape (n_samples,)
        What each row lacks at t = 0.
    slope : ndarray of shape (n_samples,)
        What it gains with t.
    costs : ndarray of shape (n_samples,)
        Its cost.
    linear : float
        The penalty's slope at t = 0.
    quadratic : float
        The penalty's curvature.
    within : float
        What part of t it may be wrong by.

    Returns
    -------
    float
        0 where the direction does not descend.
    """

    pulls = 2 * costs * slope

    def derivatives(t: float) -> tuple[float, float]:
        rest = slack - t * slope
        pull = pulls * (rest > 0)
        first = linear + quadratic * t - float(np.einsum("i,i->", pull, rest))
        return first, quadratic + float(np.einsum("i,i->", pull, slope))

    first, second = derivatives(0.0)
    if not first < 0 or not second > 0:
        return 0.0
    low, high, t = 0.0, np.inf, 1.0
    for _ in range(SEARCHES):
        first, second = derivatives(t)
        if first < 0:
            low = t
        else:
            high = t
        new = t - first / second
        if not low < new < high:
            new = (low + high) / 2 if np.isfinite(high) else 2 * t
        if abs(new - t) <= within * t:
            return new
        t = new
    return t
