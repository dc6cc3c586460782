"""The primal L2-SVM by a modified finite Newton method.

For each column (a two-class problem: one class against the rest, perhaps with a fold left out) it
minimises ::

    1/2 |w|^2 + sum_i c_i max(0, 1 - y_i w.x_i)^2

which is liblinear's ``L2R_L2LOSS_SVC``. The objective is piecewise quadratic, and a Newton step
over the active rows (those with ``y_i w.x_i < 1``) with an exact line search ends at the minimum
in finitely many steps:

    S. S. Keerthi and D. DeCoste, "A modified finite Newton method for fast solution of large
    scale linear SVMs", Journal of Machine Learning Research 6 (2005) 341-361.

What is added here: full passes are one matrix product for all columns, and between two of them
each class takes its steps on the rows that are active or nearly so, the classes side by side. The
way there is a descent of the whole objective, and the least it can be is known: that of the rows
looked at. The first step, with all rows active, is shared: one Hessian serves all classes. Later
each class has its own, and its Cholesky factor, changed by the rows that became active or ceased to
be, preconditions conjugate gradients: one iteration as a rule. Where the rows looked at don't fit
in the memory allowed, Hessians are summed block by block; where features are too many for that,
conjugate gradients read the rows once an iteration.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from cnnfeat.svm.budget import n_at_once, n_side_by_side
from cnnfeat.svm.design import Design
from cnnfeat.svm.factors import Curvature, Factor
from cnnfeat.svm.first_step import first_step
from cnnfeat.svm.groups import Group, pick_groups, union_of
from cnnfeat.svm.linesearch import step_length
from cnnfeat.svm.matrix import Floats, Indices
from cnnfeat.svm.problems import Columns, Targets
from cnnfeat.svm.streaming import streamed_step
from cnnfeat.svm.subproblem import Descent, Subproblem, descend

Doubles = NDArray[np.float64]

CONTINUATION = 10.0  # C grows by this from stage to stage
STAGE_TOLERANCE = 0.1
STAGE_STEPS = 4
NEAR = 0.1  # rows whose margin is less than 1 + NEAR are looked at between two full passes
STEPS_BETWEEN = 3  # full passes, once
SETTLED = 0.1  # of the objective, or less, is lost on the other rows
THREADS_PAY = 5e8  # rows x weights x columns from which more than one thread gains


@dataclass(slots=True)
class State:
    """Where a solution stands; a start for the next C."""

    weights: Doubles  # (n_weights, m)
    decision: Floats  # (m, n_samples)
    curvatures: dict[int, Curvature] = field(default_factory=dict)  # by class
    common: Factor | None = None
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
        A column is done when its Newton step, and the rows left aside, promise less than this part
        of its objective.
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
    newton.n_threads = 1 if small else _n_threads()
    with threadpool_limits(1 if small else None, user_api="blas"):
        if start is None:
            newton.begin(state, columns.scaled(stages[0]))
        for stage in stages:
            last = stage == 1.0
            newton.run(
                state,
                columns.scaled(stage),
                tol=tol if last else max(tol, STAGE_TOLERANCE),
                max_iter=max_iter if last else min(max_iter, STAGE_STEPS),
            )
    return state


def _n_threads() -> int:
    """As many as matrix products may use: affinity and OMP_NUM_THREADS are heeded."""
    found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return max(found, default=os.cpu_count() or 1)


def _stages(design: Design, columns: Columns) -> list[float]:
    """Factors of C on the way to it; the last one is 1."""
    largest = max(columns.C_positive.max(), columns.C_negative.max())
    easy = 2 / max(design.typical_square_norm(), np.finfo(np.float64).tiny)
    count = max(0, int(np.floor(np.log(largest / easy) / np.log(CONTINUATION))))
    return [CONTINUATION**-k for k in range(min(count, 20), -1, -1)]


class _Newton:
    def __init__(self, design: Design, targets: Targets, *, memory_bytes: int) -> None:
        self._design, self._targets = design, targets
        self._memory_bytes = memory_bytes
        self._stopped = threading.Event()
        self.n_threads = 1

    def begin(self, state: State, columns: Columns) -> None:
        """Take the first step, from weights that are zero, with one Hessian for all columns."""
        state.objective = np.full(len(columns), np.nan)
        state.common, direction = first_step(
            self._design, self._targets, columns, check=self._check
        )
        self._search(state, columns, np.arange(len(columns)), direction)
        state.steps += 1

    def run(self, state: State, columns: Columns, *, tol: float, max_iter: int) -> None:
        """Take Newton steps until all columns are done, changing `state`."""
        live = np.arange(len(columns))
        state.objective = np.full(len(columns), np.nan)
        steps, between = 0, 1
        while len(live) and steps < max_iter:
            most = min(between, max_iter - steps)
            groups, threads, keep = self._look(state, columns, live, max_steps=most)
            if threads:
                direction, done, taken = self._improved(
                    state, columns, live, groups,
                    tol=tol, max_steps=most, threads=threads, keep=keep,
                )  # fmt: skip
                moved, aside = self._search(state, columns, live, direction, groups)
            else:
                moved, done = self._streamed(state, columns, live, tol=tol)
                taken, aside = 1, np.zeros(len(live))
            steps += taken
            # While rows left aside matter, it is early for more than one step without them.
            between = STEPS_BETWEEN if aside.max() < SETTLED else 1
            live = live[moved & ~(done & (aside <= tol))]
        state.steps += steps
        state.converged = not len(live)

    def _look(
        self, state: State, columns: Columns, live: Indices, *, max_steps: int
    ) -> tuple[list[Group], int, bool]:
        """Pick the rows to look at: the groups, how many at once, whether Hessians are kept."""
        for keep in (True, False):
            for near in (NEAR, 0.0):
                groups = pick_groups(
                    columns, self._targets, live,
                    decision=state.decision, curvatures=state.curvatures, near=near,
                )  # fmt: skip
                fitting = n_side_by_side(
                    self._design, groups, state.curvatures,
                    keep=keep, common=state.common is not None,
                    max_steps=max_steps, memory_bytes=self._memory_bytes,
                )  # fmt: skip
                if fitting:
                    return groups, min(fitting, self.n_threads), keep
            for curvature in state.curvatures.values():
                curvature.forget()
        return [], 0, False

    def _streamed(
        self, state: State, columns: Columns, live: Indices, *, tol: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Take a step of every column in passes over the rows; which moved, and which are done."""
        self._design.release()
        moved, done = np.zeros(len(live), np.bool_), np.zeros(len(live), np.bool_)
        step = n_at_once(self._design, len(live), memory_bytes=self._memory_bytes)
        for start in range(0, len(live), step):
            part = slice(start, start + step)
            direction, promise = streamed_step(
                self._design, self._targets, columns, live[part],
                weights=state.weights, decision=state.decision, check=self._check,
            )  # fmt: skip
            done[part] = promise <= tol
            moved[part], _ = self._search(state, columns, live[part], direction)
        return moved, done

    def _improved(
        self,
        state: State,
        columns: Columns,
        live: Indices,
        groups: list[Group],
        *,
        tol: float,
        max_steps: int,
        threads: int,
        keep: bool,
    ) -> tuple[Doubles, NDArray[np.bool_], int]:
        """Let each class take steps on its rows.

        Returns
        -------
        direction : ndarray of shape (n_weights, n_live)
        done : ndarray of shape (n_live,)
            Whether the minimum over the rows looked at was reached.
        steps : int
        """
        union = union_of(groups, self._design.n_samples)
        gathered = None if self._design.held else self._design.take(union)

        def work(group: Group) -> Descent:
            if gathered is None:
                matrix = self._design.take(group.rows)
            else:
                matrix = gathered.take(np.searchsorted(union, group.rows), axis=0)
            curvature = state.curvatures.setdefault(group.positive, Curvature())
            descent = descend(
                self._subproblem(columns, group, matrix),
                state.weights[:, group.columns],
                state.decision[np.ix_(group.columns, group.rows)],
                curvature=curvature,
                common=state.common,
                tol=tol,
                max_steps=max_steps,
                check=self._check,
            )
            if not keep:
                curvature.forget()
            elif gathered is not None:  # memory is short
                curvature.keep_factor_only()
            return descent

        direction = np.zeros((self._design.n_weights, len(live)))
        done = np.zeros(len(live), np.bool_)
        steps = 0
        for group, descent in zip(groups, self._side_by_side(work, groups, threads), strict=True):
            direction[:, group.places] = descent.weights - state.weights[:, group.columns]
            done[group.places] = descent.converged
            steps = max(steps, descent.steps)
        return direction, done, steps

    def _subproblem(self, columns: Columns, group: Group, matrix: Floats) -> Subproblem:
        first = int(group.columns[0])
        scale = float(max(columns.C_positive[first], columns.C_negative[first]))
        costs = [columns.costs(int(j), self._targets, group.rows) for j in group.columns]
        return Subproblem(
            matrix=matrix,
            rows=group.rows,
            signs=columns.signs(first, self._targets, group.rows).astype(matrix.dtype),
            costs=np.array(costs).T / scale,
            scale=scale,
        )

    def _side_by_side(
        self, work: Callable[[Group], Descent], groups: list[Group], threads: int
    ) -> list[Descent]:
        """Work on the classes, `threads` at a time, each with matrix products on one thread.

        That is faster even for one at a time: see `blas.MANY_ROWS`.
        """
        if self.n_threads == 1:
            return [work(group) for group in groups]
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            try:
                return list(pool.map(work, groups))
            except BaseException:  # Ctrl-C among them: the other threads shall end soon
                self._stopped.set()
                raise

    def _check(self) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def _search(
        self,
        state: State,
        columns: Columns,
        live: Indices,
        direction: Doubles,
        groups: Sequence[Group] = (),
    ) -> tuple[NDArray[np.bool_], Doubles]:
        """Move each live column to the minimum along its direction.

        Returns
        -------
        moved : ndarray of shape (n_live,)
        aside : ndarray of shape (n_live,)
            The loss, at the whole step, of the rows that `groups` left aside, as a part of the
            objective: what the minimum over the rows looked at can be too low by.
        """
        along = self._design.product(direction)
        moved, aside = np.zeros(len(live), np.bool_), np.zeros(len(live))
        looked_at = {int(j): group.rows for group in groups for j in group.columns}
        everything = np.arange(self._design.n_samples)
        for place, j in enumerate(live):
            slack = columns.slack(j, self._targets, state.decision[j])
            slope = columns.signed(j, self._targets, along[place])
            costs = columns.costs(j, self._targets, everything)
            step = direction[:, place]
            length = step_length(
                slack=slack, slope=slope, costs=costs, w=state.weights[:, j], step=step
            )
            state.weights[:, j] += length * step
            state.decision[j] += along.dtype.type(length) * along[place]
            moved[place] = length > 0
            loss = costs * np.maximum(slack - along.dtype.type(length) * slope, 0) ** 2
            norm = float(np.einsum("i,i->", state.weights[:, j], state.weights[:, j]))
            state.objective[j] = 0.5 * norm + float(loss.sum())
            if int(j) in looked_at:
                rest = costs * np.maximum(slack - slope, 0) ** 2
                rest[looked_at[int(j)]] = 0
                tiny = np.finfo(np.float64).tiny
                aside[place] = rest.sum() / max(state.objective[j], tiny)
        return moved, aside
