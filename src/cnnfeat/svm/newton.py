"""The primal L2-SVM by a modified finite Newton method.

For each column (a two-class problem: one class against the rest, perhaps with a fold left out) it
minimises ::

    1/2 |w|^2 + sum_i c_i max(0, 1 - y_i w.x_i)^2

which is liblinear's ``L2R_L2LOSS_SVC``. The objective is piecewise quadratic, and a Newton step
over the active rows (those with ``y_i w.x_i < 1``) with an exact line search ends at the minimum
in finitely many steps:

    S. S. Keerthi and D. DeCoste, "A modified finite Newton method for fast solution of large
    scale linear SVMs", Journal of Machine Learning Research 6 (2005) 341-361.

What is added here: full passes are one matrix product for all columns; the rows that are active in
any column are gathered once a step; conjugate gradients are preconditioned with a Cholesky factor
of the class's own Hessian at an earlier step, made anew when it has gone stale and pays; the
first one, with all rows active, is the same for all columns. A large C is reached over smaller
ones, where few steps go wrong. Where active rows don't fit in the memory allowed, Hessians are
summed block by block and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.factors import Factor, factorize, worth_factoring
from cnnfeat.svm.rows import CHUNK_BYTES, Design, Floats, Indices

Doubles = NDArray[np.float64]

CONTINUATION = 3.0  # C grows by this from stage to stage
STAGE_TOLERANCE = 0.1
STAGE_STEPS = 3
CG_TOLERANCE = 0.1  # of the residual, in the preconditioner's norm
CG_LIMIT = 60
DENSE_LIMIT = 4096  # features up to which Hessians are formed
LINE_STEPS = 50


@dataclass(frozen=True, slots=True)
class Targets:
    """What the rows are, for all columns."""

    codes: NDArray[np.intp]  # (n_samples,) class of each row
    weights: Doubles | None = None  # (n_samples,), a factor of each row's cost
    folds: NDArray[np.intp] | None = None  # (n_samples,) fold of each row


@dataclass(frozen=True, slots=True)
class Columns:
    """The two-class problems, m of them."""

    positive: NDArray[np.intp]  # (m,) the class that is +1
    C_positive: Doubles  # (m,) the cost of its rows
    C_negative: Doubles  # (m,) the cost of all others
    held_out: NDArray[np.intp]  # (m,) the fold left out; -1: none

    def __len__(self) -> int:
        return len(self.positive)

    def scaled(self, factor: float) -> Columns:
        """The same problems with all costs times `factor`."""
        return replace(
            self, C_positive=self.C_positive * factor, C_negative=self.C_negative * factor
        )

    def signs(self, j: int, targets: Targets, dtype: np.dtype[np.floating]) -> Floats:
        """Labels of column `j`, +1 and -1, shape (n_samples,)."""
        return np.where(targets.codes == self.positive[j], 1, -1).astype(dtype)

    def costs(self, j: int, targets: Targets, dtype: np.dtype[np.floating]) -> Floats:
        """The cost of each row in column `j`, shape (n_samples,)."""
        costs = np.where(
            targets.codes == self.positive[j], self.C_positive[j], self.C_negative[j]
        ).astype(dtype)
        if targets.weights is not None:
            costs *= targets.weights.astype(dtype)
        if self.held_out[j] >= 0 and targets.folds is not None:
            costs[targets.folds == self.held_out[j]] = 0
        return costs


@dataclass(slots=True)
class State:
    """Where a solution stands; a start for the next C."""

    weights: Doubles  # (n_weights, m)
    decision: Floats  # (m, n_samples)
    factors: dict[int, Factor] = field(default_factory=dict)  # by class
    steps: int = 0
    converged: bool = True
    objective: Doubles = field(default_factory=lambda: np.zeros(0))  # (m,)


@dataclass(frozen=True, slots=True)
class _Active:
    """The active rows of one column."""

    rows: Indices
    pull: Floats  # cost * sign * (1 - margin) of each: minus half its gradient
    costs: Floats


def solve(
    design: Design,
    targets: Targets,
    columns: Columns,
    *,
    tol: float,
    max_iter: int,
    memory_bytes: int,
    start: State | None = None,
) -> State:
    """Minimise all columns.

    Parameters
    ----------
    design : Design
    targets : Targets
    columns : Columns
    tol : float
        A column is done when the Newton decrement promises less than this part of its objective.
    max_iter : int
        Newton steps allowed, for each C on the way as well.
    memory_bytes : int
        For the rows gathered and the Hessians.
    start : State, optional
        The solution for a near C; without it, C is approached from below.

    Returns
    -------
    State
    """
    state = start or State(
        weights=np.zeros((design.n_weights, len(columns))),
        decision=np.zeros((len(columns), design.n_samples), design.dtype),
    )
    stages = [1.0] if start else _stages(design, columns)
    newton = _Newton(design, targets, memory_bytes=memory_bytes)
    steps = state.steps
    for stage in stages:
        last = stage == 1.0
        newton.run(
            state,
            columns.scaled(stage),
            tol=tol if last else max(tol, STAGE_TOLERANCE),
            max_iter=max_iter if last else min(max_iter, STAGE_STEPS),
        )
    state.steps -= steps
    return state


def _stages(design: Design, columns: Columns) -> list[float]:
    """Factors of C on the way to it; the last one is 1."""
    largest = max(columns.C_positive.max(), columns.C_negative.max())
    easy = 2 / max(design.square_norm(), np.finfo(np.float64).tiny)
    count = max(0, int(np.ceil(np.log(largest / easy) / np.log(CONTINUATION))))
    return [CONTINUATION**-k for k in range(min(count, 20), -1, -1)]


class _Newton:
    def __init__(self, design: Design, targets: Targets, *, memory_bytes: int) -> None:
        self._design, self._targets = design, targets
        self._memory_bytes = memory_bytes
        self._stale: dict[int, int] = {}  # by class: CG iterations its factor needed last

    def run(self, state: State, columns: Columns, *, tol: float, max_iter: int) -> None:
        """Take Newton steps until all columns are done, changing `state`."""
        live = np.arange(len(columns))
        state.objective = np.full(len(columns), np.nan)
        state.converged = True
        for _ in range(max_iter):
            active = self._activity(state, columns, live)
            direction, decrement = self._direction(state, columns, live, active)
            moved = self._search(state, columns, live, direction)
            state.steps += 1
            promise = decrement / np.maximum(state.objective[live], np.finfo(float).tiny)
            live = live[moved & (promise > tol)]
            if not len(live):
                break
        else:
            state.converged = False
        self._activity(state, columns, np.arange(len(columns)))

    def _activity(self, state: State, columns: Columns, live: Indices) -> dict[int, _Active]:
        """Find the active rows of each live column, and its objective."""
        found = {}
        for j in live:
            signs = columns.signs(j, self._targets, self._design.dtype)
            costs = columns.costs(j, self._targets, self._design.dtype)
            slack = 1 - signs * state.decision[j]
            rows = np.flatnonzero((slack > 0) & (costs > 0))
            slack, costs = slack[rows], costs[rows]
            pull = costs * slack
            loss = float(np.dot(pull.astype(np.float64), slack))
            state.objective[j] = 0.5 * float(state.weights[:, j] @ state.weights[:, j]) + loss
            found[int(j)] = _Active(rows, pull * signs[rows], costs)
        return found

    def _direction(
        self, state: State, columns: Columns, live: Indices, active: dict[int, _Active]
    ) -> tuple[Doubles, Doubles]:
        """Solve for the Newton directions `(n_weights, n_live)` and decrements `(n_live,)`."""
        union = _union([active[int(j)].rows for j in live], self._design.n_samples)
        row_bytes = self._design.n_weights * self._design.dtype.itemsize
        if len(union) * row_bytes > self._memory_bytes and self._can_stream(columns, live):
            return self._streamed(state, columns, live, active)
        gathered = self._design.take(union)
        direction = np.zeros((self._design.n_weights, len(live)))
        decrement = np.zeros(len(live))
        for group in _groups(columns, live, active, len(union)):
            rows = _union([active[int(j)].rows for j in live[group]], self._design.n_samples)
            part = gathered if len(rows) == len(union) else gathered[np.searchsorted(union, rows)]
            system = _System(part, rows, [active[int(j)] for j in live[group]])
            gradient = state.weights[:, live[group]] - system.pull()
            factors = self._factors(state, columns, live[group], system)
            solved, iterations = system.solve(-gradient, factors)
            for j, needed in zip(live[group], iterations, strict=True):
                self._stale[int(columns.positive[j])] = int(needed)
            direction[:, group] = solved
            decrement[group] = -np.einsum("ij,ij->j", gradient, solved)
        return direction, decrement

    def _factors(
        self, state: State, columns: Columns, live: Indices, system: _System
    ) -> list[Factor]:
        """Pick each column's preconditioner, and make anew those that have gone stale."""
        classes = columns.positive[live]
        shared: Factor | None = None
        for k in np.unique(classes):
            member = int(np.flatnonzero(classes == k)[0])
            rows = len(system.active[member].rows)
            known = state.factors.get(int(k))
            if shared is not None and known is None:
                state.factors[int(k)] = shared
            elif self._design.n_weights > DENSE_LIMIT:
                state.factors[int(k)] = system.diagonal(member)
            elif known is None or worth_factoring(
                self._stale.get(int(k), 0), rows=rows, features=self._design.n_weights
            ):
                state.factors[int(k)] = factorize(system.hessian(member))
                if known is None and rows == self._design.n_samples:
                    shared = state.factors[int(k)]
        return [state.factors[int(k)] for k in classes]

    def _can_stream(self, columns: Columns, live: Indices) -> bool:
        d, itemsize = self._design.n_weights, self._design.dtype.itemsize
        fits = len(live) * d * d * itemsize <= self._memory_bytes
        return d <= DENSE_LIMIT and fits

    def _streamed(
        self, state: State, columns: Columns, live: Indices, active: dict[int, _Active]
    ) -> tuple[Doubles, Doubles]:
        """The same in one pass over the rows, with every column's Hessian in memory."""
        d = self._design.n_weights
        everywhere = all(len(active[int(j)].rows) == self._design.n_samples for j in live)
        same = everywhere and all(
            np.array_equal(active[int(j)].costs, active[int(live[0])].costs) for j in live
        )
        hessians = np.zeros((1 if same else len(live), d, d), self._design.dtype)
        gradient = state.weights[:, live].copy()
        for start, block in self._design.blocks():
            for position, j in enumerate(live):
                here = _between(active[int(j)], start, start + len(block))
                if not len(here.rows):
                    continue
                rows = block[here.rows - start]
                gradient[:, position] -= 2 * (rows.T @ here.pull)
                if position < len(hessians):
                    rows *= np.sqrt(2 * here.costs)[:, None]
                    hessians[position] += rows.T @ rows
        factors = []
        for hessian in hessians:
            hessian.flat[:: d + 1] += 1
            factors.append(factorize(hessian))
        solved = np.empty_like(gradient)
        for position, j in enumerate(live):
            factor = factors[position if len(factors) > 1 else 0]
            state.factors[int(columns.positive[j])] = factor
            solved[:, position] = factor.solve(-gradient[:, position : position + 1])[:, 0]
        return solved, -np.einsum("ij,ij->j", gradient, solved)

    def _search(
        self, state: State, columns: Columns, live: Indices, direction: Doubles
    ) -> NDArray[np.bool_]:
        """Move each live column to the minimum along its direction; tell which ones moved."""
        along = self._design.product(direction)
        moved = np.zeros(len(live), np.bool_)
        for position, j in enumerate(live):
            signs = columns.signs(j, self._targets, self._design.dtype)
            costs = columns.costs(j, self._targets, self._design.dtype)
            w, step = state.weights[:, j], direction[:, position]
            length = line_minimum(
                slack=1 - signs * state.decision[j],
                slope=signs * along[position],
                costs=costs,
                linear=float(w @ step),
                quadratic=float(step @ step),
            )
            state.weights[:, j] += length * step
            state.decision[j] += length * along[position]
            moved[position] = length > 0
        return moved


class _System:
    """The Newton equations of some columns over the gathered rows active in any of them."""

    def __init__(self, gathered: Floats, rows: Indices, active: list[_Active]) -> None:
        self.active = active
        self._gathered = gathered
        shape = (len(rows), len(active))
        self._pull = np.zeros(shape, gathered.dtype)
        self._costs = np.zeros(shape, gathered.dtype)
        self._places = []
        for k, column in enumerate(active):
            place = np.searchsorted(rows, column.rows)
            self._pull[place, k] = 2 * column.pull
            self._costs[place, k] = 2 * column.costs
            self._places.append(place)

    def pull(self) -> Doubles:
        """Minus the gradient of the loss, (n_weights, n_columns)."""
        total = np.zeros((self._gathered.shape[1], len(self.active)))
        for part, chunk in self._chunks():
            total += chunk.T @ self._pull[part]
        return total

    def hessian(self, k: int) -> Floats:
        """The Hessian of column `k`, (n_weights, n_weights)."""
        d = self._gathered.shape[1]
        total = np.zeros((d, d), self._gathered.dtype)
        place, weight = self._places[k], np.sqrt(2 * self.active[k].costs)
        step = max(2048, d)
        for start in range(0, len(place), step):
            rows = self._gathered[place[start : start + step]]
            rows *= weight[start : start + step, None]
            total += rows.T @ rows
        total.flat[:: d + 1] += 1
        return total

    def diagonal(self, k: int) -> Factor:
        """The Hessian's diagonal, as a preconditioner."""
        total = np.ones(self._gathered.shape[1])
        for part, chunk in self._chunks():
            total += (chunk * chunk).T @ self._costs[part, k]
        return Factor(diagonal=total.astype(self._gathered.dtype))

    def solve(self, right: Doubles, factors: list[Factor]) -> tuple[Doubles, NDArray[np.intp]]:
        """Solve by preconditioned conjugate gradients, all columns at once.

        Returns
        -------
        solution : ndarray of shape (n_weights, n_columns)
        iterations : ndarray of shape (n_columns,)
        """
        dtype = self._gathered.dtype
        residual = np.asfortranarray(right, dtype)
        solution = np.zeros_like(residual)
        z = _apply(factors, residual)
        p = z.copy()
        rho = _dots(residual, z)
        first = rho.copy()
        iterations = np.zeros(len(factors), np.intp)
        live = np.flatnonzero(rho > 0)
        for _ in range(CG_LIMIT):
            if not len(live):
                break
            now = np.ascontiguousarray(p[:, live])
            product = now + self._product(now, self._costs[:, live])
            curvature = _dots(now, product)
            length = (rho[live] / curvature).astype(dtype)
            solution[:, live] += now * length
            residual[:, live] -= product * length
            z = _apply([factors[k] for k in live], np.asfortranarray(residual[:, live]))
            new = _dots(residual[:, live], z)
            p[:, live] = z + now * (new / rho[live]).astype(dtype)
            rho[live] = new
            iterations[live] += 1
            live = live[new > CG_TOLERANCE**2 * first[live]]
        return solution.astype(np.float64), iterations

    def _product(self, p: Floats, costs: Floats) -> Floats:
        total = np.zeros(p.shape, np.float64)
        for part, chunk in self._chunks():
            inner = chunk @ p
            inner *= costs[part]
            total += chunk.T @ inner
        return total.astype(p.dtype)

    def _chunks(self) -> Iterator[tuple[slice, Floats]]:
        row_bytes = self._gathered.shape[1] * self._gathered.itemsize
        step = max(64, CHUNK_BYTES // row_bytes)
        for start in range(0, len(self._gathered), step):
            part = slice(start, start + step)
            yield part, self._gathered[part]


def line_minimum(
    *, slack: Floats, slope: Floats, costs: Floats, linear: float, quadratic: float
) -> float:
    """Find the t > 0 that minimises an objective along a direction.

    The objective is ``linear * t + quadratic / 2 * t^2 + sum_i costs_i max(0, slack_i -
    t * slope_i)^2``. Newton's method on its derivative, which is piecewise linear and grows,
    kept inside a bracket: it ends on the piece that holds the zero.

    Parameters
    ----------
    slack, slope, costs : ndarray of shape (n_samples,)
    linear, quadratic : float

    Returns
    -------
    float
        0 where the direction does not descend.
    """
    may_count = ((slack > 0) | (slope < 0)) & (costs > 0)
    u, v, c = (a[may_count].astype(np.float64) for a in (slack, slope, costs))

    def derivatives(t: float) -> tuple[float, float]:
        rest = u - t * v
        on = rest > 0
        cv = 2 * c[on] * v[on]
        return linear + quadratic * t - float(cv @ rest[on]), quadratic + float(cv @ v[on])

    first, second = derivatives(0.0)
    if not first < 0 or not second > 0:
        return 0.0
    low, high, t = 0.0, np.inf, 1.0
    for _ in range(LINE_STEPS):
        first, second = derivatives(t)
        if first < 0:
            low = t
        else:
            high = t
        new = t - first / second
        if not low < new < high:
            new = (low + high) / 2 if np.isfinite(high) else 2 * t
        if abs(new - t) <= 1e-6 * t:
            return new
        t = new
    return t


def _union(rows: list[Indices], n_samples: int) -> Indices:
    """All rows that are in any list, ascending."""
    if len(rows) == 1:
        return rows[0]
    marked = np.zeros(n_samples, np.bool_)
    for some in rows:
        marked[some] = True
    return np.flatnonzero(marked)


def _groups(
    columns: Columns, live: Indices, active: dict[int, _Active], n_union: int
) -> list[Indices]:
    """Positions in `live` to be solved together.

    All of them where their active rows overlap enough for one product to be cheaper, else those
    of one class, whose folds share nearly all rows.
    """
    total = sum(len(active[int(j)].rows) for j in live)
    if total >= 2 * n_union and len(live) <= 64:
        return [np.arange(len(live))]
    classes = columns.positive[live]
    return [np.flatnonzero(classes == k) for k in np.unique(classes)]


def _between(column: _Active, start: int, stop: int) -> _Active:
    """The active rows from `start` to `stop`."""
    part = slice(*np.searchsorted(column.rows, (start, stop)))
    return _Active(column.rows[part], column.pull[part], column.costs[part])


def _dots(a: Floats, b: Floats) -> Doubles:
    """Inner products of the columns, summed in float64."""
    return np.einsum("ij,ij->j", a, b, dtype=np.float64)


def _apply(factors: list[Factor], right: Floats) -> Floats:
    """Apply each column's preconditioner; those that share one are solved at once."""
    if all(factor is factors[0] for factor in factors):
        return factors[0].solve(right)
    solved = np.empty_like(right)
    for k, factor in enumerate(factors):
        solved[:, k] = factor.solve(right[:, k : k + 1])[:, 0]
    return solved
