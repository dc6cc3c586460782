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

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import BYTES, Factor, factorize, iteration_time, worth_factoring
from cnnfeat.svm.linesearch import line_minimum
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.rows import Floats, Indices
from cnnfeat.svm.system import Active, System

Doubles = NDArray[np.float64]

CONTINUATION = 3.0  # C grows by this from stage to stage
STAGE_TOLERANCE = 0.1
STAGE_STEPS = 3
DENSE_LIMIT = 4096  # features up to which Hessians are formed
THREADS_PAY = 5e8  # rows x weights x columns from which more than one thread gains
USUAL_ITERATIONS = 8  # of conjugate gradients
REACH = 2.0  # step lengths looked at first


@dataclass(slots=True)
class State:
    """Where a solution stands; a start for the next C."""

    weights: Doubles  # (n_weights, m)
    decision: Floats  # (m, n_samples)
    factors: dict[int, Factor] = field(default_factory=dict)  # by class
    steps: int = 0
    converged: bool = True
    objective: Doubles = field(default_factory=lambda: np.zeros(0))  # (m,)


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
        The rows.
    targets : Targets
        Their classes.
    columns : Columns
        The problems.
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
    state.steps = 0
    small = design.n_samples * design.n_weights * len(columns) < THREADS_PAY
    with threadpool_limits(1 if small else None, user_api="blas"):
        for stage in stages:
            last = stage == 1.0
            newton.run(
                state,
                columns.scaled(stage),
                tol=tol if last else max(tol, STAGE_TOLERANCE),
                max_iter=max_iter if last else min(max_iter, STAGE_STEPS),
            )
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

    def _activity(self, state: State, columns: Columns, live: Indices) -> dict[int, Active]:
        """Find the active rows of each live column, and its objective."""
        found = {}
        dtype = self._design.dtype
        for j in live:
            slack = columns.slack(j, self._targets, state.decision[j])
            rows = np.flatnonzero(slack > 0)
            costs = columns.costs(j, self._targets, rows)
            if not costs.all():
                rows, costs = rows[costs > 0], costs[costs > 0]
            rest = slack[rows].astype(np.float64)
            loss = float(np.einsum("i,i,i->", costs, rest, rest))
            norm = float(np.einsum("i,i->", state.weights[:, j], state.weights[:, j]))
            state.objective[j] = 0.5 * norm + loss
            pull = costs * rest * columns.signs(j, self._targets, rows)
            found[int(j)] = Active(rows, pull.astype(dtype), costs.astype(dtype))
        return found

    def _direction(
        self, state: State, columns: Columns, live: Indices, active: dict[int, Active]
    ) -> tuple[Doubles, Doubles]:
        """Solve for the Newton directions `(n_weights, n_live)` and decrements `(n_live,)`."""
        union = _union([active[int(j)].rows for j in live], self._design.n_samples)
        row_bytes = self._design.n_weights * self._design.dtype.itemsize
        # Three times: the rows taken before, those taken now, and a group of them.
        room_bytes = (self._memory_bytes - self._factor_bytes(columns.positive)) // 3
        fits = self._design.held or len(union) * row_bytes <= room_bytes
        if not fits and self._can_stream(live):
            self._design.release()
            return self._streamed(state, columns, live, active)
        gathered = self._design.take(union)
        direction = np.zeros((self._design.n_weights, len(live)))
        decrement = np.zeros(len(live))
        groups = _groups(columns, live, active, union, features=self._design.n_weights)
        for group, rows in groups:
            part = gathered if len(rows) == len(union) else gathered[np.searchsorted(union, rows)]
            system = System(part, rows, [active[int(j)] for j in live[group]])
            gradient = state.weights[:, live[group]] - system.pull()
            factors = self._factors(state, columns, live[group], system)
            solved, iterations = system.solve(-gradient, factors)
            for j, needed in zip(live[group], iterations, strict=True):
                self._stale[int(columns.positive[j])] = int(needed)
            direction[:, group] = solved
            decrement[group] = -np.einsum("ij,ij->j", gradient, solved)
        return direction, decrement

    def _factors(
        self, state: State, columns: Columns, live: Indices, system: System
    ) -> list[Factor]:
        """Pick each column's preconditioner, and make anew those that have gone stale."""
        classes = columns.positive[live]
        present = np.unique(classes)
        for k in present:
            member = int(np.flatnonzero(classes == k)[0])
            rows = len(system.active[member].rows)
            if int(k) not in state.factors and self._design.n_weights > DENSE_LIMIT:
                state.factors[int(k)] = system.diagonal(member)
            elif int(k) not in state.factors:
                factor = factorize(system.hessian(member))
                # While most rows are active in all classes, one serves them all.
                alike = 2 * rows >= self._design.n_samples
                for other in np.unique(columns.positive) if alike else [k]:
                    state.factors.setdefault(int(other), factor)
            elif self._design.n_weights <= DENSE_LIMIT and worth_factoring(
                self._stale.get(int(k), 0),
                rows=rows,
                features=self._design.n_weights,
                shared_rows=system.n_rows,
                columns=len(live),
                classes=len(present),
            ):
                state.factors[int(k)] = factorize(system.hessian(member))
        return [state.factors[int(k)] for k in classes]

    def _can_stream(self, live: Indices) -> bool:
        """Whether there is room for a Hessian and a factor of each column."""
        d, itemsize = self._design.n_weights, self._design.dtype.itemsize
        return d <= DENSE_LIMIT and 2 * len(live) * d * d * itemsize <= self._memory_bytes

    def _factor_bytes(self, classes: Indices) -> int:
        """What the factors of all classes take."""
        d, itemsize = self._design.n_weights, self._design.dtype.itemsize
        return len(np.unique(classes)) * (d * d if d <= DENSE_LIMIT else d) * itemsize

    def _streamed(
        self, state: State, columns: Columns, live: Indices, active: dict[int, Active]
    ) -> tuple[Doubles, Doubles]:
        """The same in one pass over the rows, with every column's Hessian in memory."""
        d = self._design.n_weights
        everywhere = all(len(active[int(j)].rows) == self._design.n_samples for j in live)
        same = everywhere and all(
            np.array_equal(active[int(j)].costs, active[int(live[0])].costs) for j in live
        )
        state.factors.clear()  # all are made anew here, and there is room for one set
        count = 1 if same else len(live)
        hessians = [np.zeros((d, d), self._design.dtype) for _ in range(count)]
        gradient = state.weights[:, live].copy()
        for start, block in self._design.blocks():
            for position, j in enumerate(live):
                here = active[int(j)].between(start, start + len(block))
                if not len(here.rows):
                    continue
                rows = block[here.rows - start]
                gradient[:, position] -= 2 * (rows.T @ here.pull)
                if position < len(hessians):
                    rows *= np.sqrt(2 * here.costs)[:, None]
                    hessians[position] += rows.T @ rows
        factors = []
        while hessians:
            hessian = hessians.pop(0)
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
            length = self._length(
                columns,
                int(j),
                decision=state.decision[j],
                along=along[position],
                w=state.weights[:, j],
                step=direction[:, position],
            )
            state.weights[:, j] += length * direction[:, position]
            state.decision[j] += length * along[position]
            moved[position] = length > 0
        return moved

    def _length(
        self,
        columns: Columns,
        j: int,
        *,
        decision: Floats,
        along: Floats,
        w: Doubles,
        step: Doubles,
    ) -> float:
        """Find the best step length of one column among the rows that can matter up to it."""
        slack = columns.slack(j, self._targets, decision)
        slope = columns.signed(j, self._targets, along)
        reach = REACH
        while True:
            rows = np.flatnonzero((slack > 0) | (slack > reach * slope))
            length = line_minimum(
                slack=slack[rows].astype(np.float64),
                slope=slope[rows].astype(np.float64),
                costs=columns.costs(j, self._targets, rows),
                linear=float(np.einsum("i,i->", w, step)),
                quadratic=float(np.einsum("i,i->", step, step)),
            )
            if length <= reach:
                return length
            reach *= 8


def _union(rows: list[Indices], n_samples: int) -> Indices:
    """All rows that are in any list, ascending."""
    if len(rows) == 1:
        return rows[0]
    marked = np.zeros(n_samples, np.bool_)
    for some in rows:
        marked[some] = True
    return np.flatnonzero(marked)


def _groups(
    columns: Columns, live: Indices, active: dict[int, Active], union: Indices, *, features: int
) -> list[tuple[Indices, Indices]]:
    """Positions in `live` to be solved together, with the rows active in any of them.

    All of them, or those of one class, whose folds share nearly all rows: whichever needs less
    time for an iteration, and for gathering rows again for each class.
    """
    classes = columns.positive[live]
    together = [(np.arange(len(live)), union)]
    if len(np.unique(classes)) == 1:
        return together
    apart = []
    seconds = 0.0
    for k in np.unique(classes):
        places = np.flatnonzero(classes == k)
        rows = _union(
            [active[int(j)].rows for j in live[places]], 1 + int(union[-1]) if len(union) else 0
        )
        apart.append((places, rows))
        iteration_s = iteration_time(len(rows), features=features, columns=len(places))
        seconds += iteration_s + 8 * len(rows) * features / BYTES / USUAL_ITERATIONS
    whole_s = iteration_time(len(union), features=features, columns=len(live))
    return together if whole_s <= seconds else apart
