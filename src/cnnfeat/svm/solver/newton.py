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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from cnnfeat.svm.matrix import Doubles, Floats, Indices
from cnnfeat.svm.solver.design import Columns, Design, Problem, Targets
from cnnfeat.svm.solver.factors import DENSE_LIMIT, Curvature, Factor
from cnnfeat.svm.solver.steps import (
    EXACT_LENGTH,
    ROUGH_LENGTH,
    Descent,
    Length,
    Subproblem,
    descend,
    first_step,
    starts_far,
    step_length,
    streamed_step,
)

CONTINUATION = 10.0  # C grows by this from stage to stage
STAGE_TOLERANCE = 0.1
STAGE_STEPS = 4
NEAR = 0.1  # rows whose margin is less than 1 + NEAR are looked at between two full passes
STEPS_BETWEEN = 3  # full passes, once
SETTLED = 0.1  # of the objective, or less, is lost on the other rows
THREADS_PAY = 2e8  # rows x weights x columns from which more than one thread gains
USABLE = 0.75  # of the memory allowed: the rest is lost between arrays that come and go
WORKING_SQUARES = 2  # a Hessian, and the copy that is factorised


Report = Callable[[int, int, int], None]


def _unheard(rounds: int, done: int, total: int) -> None:
    """Tell nobody."""


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
    report: Report = _unheard,
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
        The solution for a near C, or of other rows; without it, C is approached from below. Where
        it ends does not depend on it, but for `tol`.
    report : callable
        Told after each class, how far the work is: rounds done, classes done in this one, and
        their number.

    Returns
    -------
    State
    """
    state = start or State(
        weights=np.zeros((design.n_weights, len(columns))),
        decision=np.zeros((len(columns), design.n_samples), design.dtype),
    )
    stages = [1.0] if start else _stages(design, columns)
    state.steps = 0
    for curvature in state.curvatures.values():
        curvature.promise = 1.0  # what was left of other costs says nothing
    small = design.n_samples * design.n_weights * len(columns) < THREADS_PAY
    all_threads = _n_threads()
    newton = _Newton(
        state,
        memory_bytes=memory_bytes,
        n_threads=1 if small else all_threads,
        all_threads=all_threads,
        report=report,
    )
    problems = [
        Problem(design, targets, columns.scaled(stage), check=newton.check) for stage in stages
    ]
    with _blas().limit(limits=1 if small else all_threads):
        if start is None:
            newton.begin(problems[0])
        for problem in problems[:-1]:
            newton.run(problem, tol=max(tol, STAGE_TOLERANCE), max_iter=min(max_iter, STAGE_STEPS))
        newton.run(problems[-1], tol=tol, max_iter=max_iter)
    return state


@cache
def _blas() -> ThreadpoolController:
    """The libraries of matrix products; to look for them takes milliseconds."""
    return ThreadpoolController().select(user_api="blas")


def _n_threads() -> int:
    """As many as matrix products may use: affinity and OMP_NUM_THREADS are heeded."""
    found = [one["num_threads"] for one in _blas().info()]
    return max(found, default=os.cpu_count() or 1)


def _stages(design: Design, columns: Columns) -> list[float]:
    """Factors of C on the way to it; the last one is 1."""
    largest = max(columns.C_positive.max(), columns.C_negative.max())
    easy = 2 / max(design.typical_square_norm(), np.finfo(np.float64).tiny)
    count = max(0, int(np.floor(np.log(largest / easy) / np.log(CONTINUATION))))
    return [CONTINUATION**-k for k in range(min(count, 20), -1, -1)]


@dataclass(frozen=True, slots=True)
class Group:
    """The live columns of one class, and the rows looked at."""

    positive: int  # the class
    places: Indices  # of its columns among the live ones
    columns: Indices
    rows: Indices  # ascending


@dataclass(frozen=True, slots=True)
class Round:
    """What is done between two full passes."""

    groups: list[Group]
    threads: int  # groups worked on at once
    keep: bool  # whether Hessians and factors stay for the next round
    max_steps: int  # that each class takes


class _Newton:
    def __init__(
        self,
        state: State,
        *,
        memory_bytes: int,
        n_threads: int,
        all_threads: int,
        report: Report,
    ) -> None:
        self._state, self._memory_bytes = state, memory_bytes
        self._n_threads, self._all_threads = n_threads, all_threads
        self._report, self._rounds = report, 0
        self._stopped = threading.Event()

    def check(self) -> None:
        """End the work of this thread when another one was interrupted."""
        if self._stopped.is_set():
            raise CancelledError

    def begin(self, problem: Problem) -> None:
        """Take the first step, from weights that are zero, with one Hessian for all columns."""
        state, n_columns = self._state, len(problem.columns)
        state.objective = np.full(n_columns, np.nan)
        state.common, direction = first_step(problem)
        self._search(problem, np.arange(n_columns), direction, within=ROUGH_LENGTH)
        state.steps += 1

    def run(self, problem: Problem, *, tol: float, max_iter: int) -> None:
        """Take Newton steps until all columns are done, changing the state."""
        state = self._state
        live = np.arange(len(problem.columns))
        state.objective = np.full(len(live), np.nan)
        steps, between = 0, 1
        while len(live) and steps < max_iter:
            planned = self._plan(problem, live, max_steps=min(between, max_iter - steps))
            if planned is not None:
                direction, done, taken = self._improved(problem, live, planned, tol=tol)
                moved, aside = self._search(problem, live, direction, planned.groups)
            else:
                moved, done = self._streamed(problem, live, tol=tol)
                taken, aside = 1, np.zeros(len(live))
            steps += taken
            self._rounds += 1
            # While rows left aside matter, it is early for more than one step without them.
            between = STEPS_BETWEEN if aside.max() < SETTLED else 1
            live = live[moved & ~(done & (aside <= tol))]
        state.steps += steps
        state.converged = not len(live)

    def _plan(self, problem: Problem, live: Indices, *, max_steps: int) -> Round | None:
        """Pick the rows to look at: the more the better; None where no choice fits in memory."""
        for keep in (True, False):
            for near in (NEAR, 0.0):
                groups = _pick_groups(problem, live, self._state, near=near)
                fitting = self._side_by_side_in_memory(
                    problem.design, groups, keep=keep, max_steps=max_steps
                )
                if fitting:
                    return Round(groups, min(fitting, self._n_threads), keep, max_steps)
            for curvature in self._state.curvatures.values():
                curvature.forget()
        return None

    def _side_by_side_in_memory(
        self, design: Design, groups: list[Group], *, keep: bool, max_steps: int
    ) -> int:
        """Return how many classes can be worked on at once; perhaps 0.

        Rows taken in the round before are let go of where both do not fit.
        """
        curvatures = self._state.curvatures
        square = _square_bytes(design)
        row_bytes = design.n_weights * design.dtype.itemsize
        owners = {k for k, curvature in curvatures.items() if curvature.factor}
        owners |= {
            group.positive
            for group in groups
            if max_steps > 1
            or self._state.common is None
            or not starts_far(curvatures.get(group.positive))
        }
        kept = (2 if design.held else 1) * len(owners) if keep else 0  # or the factor alone
        room = int(USABLE * self._memory_bytes) - square * (1 + kept)
        # The rows looked at, the active ones among them, and a Hessian about to be factorised.
        most = max(len(group.rows) for group in groups)
        each = max(1, 2 * most * row_bytes + WORKING_SQUARES * square)
        if not design.held:
            room -= len(_union_of(groups, design.n_samples)) * row_bytes
            if room - design.taken_bytes >= each:
                room -= design.taken_bytes
            else:
                design.release()
        return max(0, min(len(groups), room // each))

    def _columns_in_a_pass(self, design: Design, n_columns: int) -> int:
        """Return of how many columns the Hessians can be summed in one pass over the rows."""
        square = _square_bytes(design)
        if not square:
            return n_columns
        room = int(USABLE * self._memory_bytes) // square
        return min(n_columns, max(1, room - 1 - WORKING_SQUARES))  # one: the common factor

    def _streamed(
        self, problem: Problem, live: Indices, *, tol: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Take a step of every column in passes over the rows; which moved, and which are done."""
        state = self._state
        problem.design.release()
        moved, done = np.zeros(len(live), np.bool_), np.zeros(len(live), np.bool_)
        step = self._columns_in_a_pass(problem.design, len(live))
        for start in range(0, len(live), step):
            part = slice(start, start + step)
            direction, promise = streamed_step(
                problem, live[part], weights=state.weights, decision=state.decision
            )
            done[part] = promise <= tol
            moved[part], _ = self._search(problem, live[part], direction)
            self._report(self._rounds, min(start + step, len(live)), len(live))
        return moved, done

    def _improved(
        self, problem: Problem, live: Indices, planned: Round, *, tol: float
    ) -> tuple[Doubles, NDArray[np.bool_], int]:
        """Let each class take steps on its rows.

        Returns
        -------
        direction : ndarray of shape (n_weights, n_live)
        done : ndarray of shape (n_live,)
            Whether the minimum over the rows looked at was reached.
        steps : int
        """
        state, design = self._state, problem.design
        union = _union_of(planned.groups, design.n_samples)
        gathered = None if design.held else design.take(union)

        def work(group: Group) -> Descent:
            if gathered is None:
                matrix = design.take(group.rows)
            else:
                matrix = gathered.take(np.searchsorted(union, group.rows), axis=0)
            subproblem = self._subproblem(problem, group, matrix)
            descent = descend(
                subproblem,
                state.weights[:, group.columns],
                state.decision[np.ix_(group.columns, group.rows)],
                tol=tol,
                max_steps=planned.max_steps,
            )
            if not planned.keep:
                subproblem.curvature.forget()
            elif gathered is not None:  # memory is short
                subproblem.curvature.keep_factor_only()
            return descent

        direction = np.zeros((design.n_weights, len(live)))
        done = np.zeros(len(live), np.bool_)
        steps = 0
        for group, descent in zip(planned.groups, self._descents(work, planned), strict=True):
            direction[:, group.places] = descent.weights - state.weights[:, group.columns]
            done[group.places] = descent.converged
            steps = max(steps, descent.steps)
        return direction, done, steps

    def _subproblem(self, problem: Problem, group: Group, matrix: Floats) -> Subproblem:
        columns, first = problem.columns, int(group.columns[0])
        scale = float(max(columns.C_positive[first], columns.C_negative[first]))
        costs = [problem.costs(int(j), group.rows) for j in group.columns]
        return Subproblem(
            matrix=matrix,
            rows=group.rows,
            signs=problem.signs(first, group.rows).astype(matrix.dtype),
            costs=np.array(costs).T / scale,
            scale=scale,
            curvature=self._state.curvatures.setdefault(group.positive, Curvature()),
            common=self._state.common,
            check=self.check,
        )

    def _descents(self, work: Callable[[Group], Descent], planned: Round) -> list[Descent]:
        """Work on the classes side by side, each with matrix products on one thread.

        Where so many rows are looked at that memory allows one class at a time, its products have
        all threads.
        """
        if planned.threads == 1:
            return self._reported(map(work, planned.groups), planned)
        with _blas().limit(limits=1), ThreadPoolExecutor(planned.threads) as pool:
            try:
                return self._reported(pool.map(work, planned.groups), planned)
            except BaseException:  # Ctrl-C among them: the other threads shall end soon
                self._stopped.set()
                raise

    def _reported(self, descents: Iterable[Descent], planned: Round) -> list[Descent]:
        found = []
        for descent in descents:
            found.append(descent)
            self._report(self._rounds, len(found), len(planned.groups))
        return found

    def _search(
        self,
        problem: Problem,
        live: Indices,
        direction: Doubles,
        groups: Sequence[Group] = (),
        *,
        within: float = EXACT_LENGTH,
    ) -> tuple[NDArray[np.bool_], Doubles]:
        """Move each live column to the minimum along its direction, or near it.

        Returns
        -------
        moved : ndarray of shape (n_live,)
        aside : ndarray of shape (n_live,)
            The loss, at the whole step, of the rows that `groups` left aside, as a part of the
            objective: what the minimum over the rows looked at can be too low by.
        """
        with _blas().limit(limits=self._all_threads):  # all rows: it pays for few weights, too
            along = problem.design.product(direction)
        looked_at = {int(j): group.rows for group in groups for j in group.columns}
        moved, aside = np.zeros(len(live), np.bool_), np.zeros(len(live))
        for place, j in enumerate(live.tolist()):
            found = self._move(problem, j, direction[:, place], along[place], within=within)
            moved[place] = found.length > 0
            if j in looked_at:
                others = np.ones(problem.design.n_samples, np.bool_)
                others[looked_at[j]] = False
                lost = float(found.losses(1.0)[others[found.rows]].sum())
                aside[place] = lost / max(self._state.objective[j], np.finfo(np.float64).tiny)
        return moved, aside

    def _move(
        self, problem: Problem, j: int, step: Doubles, along: Floats, *, within: float
    ) -> Length:
        """Move one column along its step, whose rows' values are `along`."""
        state = self._state
        found = step_length(
            slack=problem.slack(j, state.decision[j]),
            slope=problem.signed(j, along),
            costs=partial(problem.costs, j),
            w=state.weights[:, j],
            step=step,
            within=within,
        )
        state.weights[:, j] += found.length * step
        state.decision[j] += along.dtype.type(found.length) * along
        norm = float(np.einsum("i,i->", state.weights[:, j], state.weights[:, j]))
        state.objective[j] = 0.5 * norm + float(found.losses(found.length).sum())
        return found


def _square_bytes(design: Design) -> int:
    """Return the size of a Hessian; 0 where features are too many for one."""
    d = design.n_weights
    return d * d * design.dtype.itemsize if d <= DENSE_LIMIT else 0


def _pick_groups(problem: Problem, live: Indices, state: State, *, near: float) -> list[Group]:
    """Pick for each class the rows to look at.

    They are those that are active in any of its live columns, or whose margin there is less than
    1 + `near`, and those in the sum of its curvature.
    """
    groups = []
    classes = problem.columns.positive[live]
    for k in np.unique(classes):
        places = np.flatnonzero(classes == k)
        picked = np.zeros(problem.design.n_samples, np.bool_)
        for j in live[places]:
            rows = np.flatnonzero(problem.slack(j, state.decision[j]) > -near)
            picked[rows[problem.costs(j, rows) > 0]] = True
        if int(k) in state.curvatures:
            picked[state.curvatures[int(k)].rows] = True
        groups.append(Group(int(k), places, live[places], np.flatnonzero(picked)))
    return groups


def _union_of(groups: list[Group], n_samples: int) -> Indices:
    """All rows that any group looks at, ascending."""
    if len(groups) == 1:
        return groups[0].rows
    marked = np.zeros(n_samples, np.bool_)
    for group in groups:
        marked[group.rows] = True
    return np.flatnonzero(marked)
