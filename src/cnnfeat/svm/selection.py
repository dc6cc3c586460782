"""Trying values of C on rows left out: all folds and classes in one solver."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, UsageError
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.result import Trial
from cnnfeat.svm.matrix import Doubles
from cnnfeat.svm.solver import Columns, Design, State, Targets, one_against_rest, solve
from cnnfeat.svm.trials import TrialPlan, Tried, near

_LOG = logging.getLogger("cnnfeat")
GRID_SIZE = 9
GRID_REACH = (-1.0, 3.0)  # powers of ten around 1 / the rows' mean squared length
SELECTION_TOLERANCE = 1e-3  # of the objective: scores don't change below it
MAX_STEPS = 100


def default_grid(mean_square: float) -> tuple[float, ...]:
    """Make nine half-decade values of C around 1 / `mean_square`, the rows' mean squared length."""
    if not mean_square > 0:
        raise DataError("all features are zero in the training rows")
    centre = round(-2 * np.log10(mean_square)) / 2
    powers = np.linspace(centre + GRID_REACH[0], centre + GRID_REACH[1], GRID_SIZE)
    return tuple(float(f"{10.0**power:.3g}") for power in powers)


def check_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """Sort a grid of C.

    Raises
    ------
    UsageError
        If it has fewer than two values, or one that is not above 0.
    """
    values = tuple(sorted({float(C) for C in grid}))
    if len(values) < 2:
        raise UsageError(
            f"a grid needs at least 2 different values, not {len(values)}",
            hint="a single value is given with --C",
        )
    if not all(0 < C < np.inf for C in values):
        raise UsageError(f"each value of the grid must be more than 0, not {min(values):g}")
    return values


def select_cost(
    design: Design,
    codes: NDArray[np.intp],
    plan: TrialPlan,
    *,
    n_classes: int,
    class_weight: Doubles | None = None,
    grid: Sequence[float],
    memory_bytes: int,
    outwards: bool = False,
    progress: Progress = SILENT,
) -> Tried:
    """Try a linear machine at values of C.

    All folds are columns of one problem, so a pass over the rows serves all of them, and the
    solution for one C is where the next starts. The first starts from the solution of all rows:
    that tells a fold nothing of the rows it leaves out, as each is solved to the same tolerance of
    its own minimum wherever it started.

    Parameters
    ----------
    design : Design
        The rows.
    codes : ndarray of shape (n_samples,)
        Class of each row.
    plan : TrialPlan
        Which machine leaves which of the rows out.
    n_classes : int
        How many classes there are.
    class_weight : ndarray of shape (n_classes,), optional
        A factor of C for each class.
    grid : sequence of float
        Values of C, ascending.
    memory_bytes : int
        For the solver.
    outwards : bool
        Whether to begin in the middle, and to go on each way only until a score is more than one
        standard error below the best; and not at all when one is perfect. Else all are tried.
    progress : Progress
        Told of each value, and how far it is.

    Returns
    -------
    Tried
        Its weights are the mean of the folds' solutions for the chosen C.
    """
    single = one_against_rest(n_classes, C=1.0, class_weight=class_weight)
    targets = Targets(codes, folds=plan.fold)
    path = _Path(design, targets, single, plan=plan, memory_bytes=memory_bytes)
    tried: dict[int, Trial] = {}
    with progress.task("choosing C", total=len(grid), unit="values") as task:
        k: int | None = len(grid) // 2 if outwards else 0
        while k is not None:
            tried[k] = path.go_to(grid[k], task)
            task.advance(0, note=f"C {grid[k]:.3g}: {tried[k].mean:.2%}")
            k = _next_outwards(tried, len(grid)) if outwards else _next_upwards(tried, len(grid))
    trials = [tried[k] for k in sorted(tried)]
    selection = plan.choose(trials, searched=_said(trials, grid) if outwards else "")
    said, weights = path.found[selection.chosen.C]
    return Tried(selection, plan.scored, said, weights)


def _next_upwards(tried: Mapping[int, Trial], n_values: int) -> int | None:
    return len(tried) if len(tried) < n_values else None


def _next_outwards(tried: Mapping[int, Trial], n_values: int) -> int | None:
    """The neighbour of the values tried that may be better, or as good; larger ones first."""
    best = max((tried[k] for k in sorted(tried)), key=lambda trial: trial.mean)
    low, high = min(tried), max(tried)
    if best.mean == 1:  # none can beat it
        return None
    if high + 1 < n_values and near(tried[high], best):
        return high + 1
    return low - 1 if low and near(tried[low], best) else None


def _said(trials: Sequence[Trial], grid: Sequence[float]) -> str:
    """Say which values were tried, and why not the others."""
    words = (
        f"{len(trials)} of {len(grid)} values from {grid[0]:g} to {grid[-1]:g}: from "
        f"{grid[len(grid) // 2]:g} each way until one scores more than one standard error below "
        "the best"
    )
    if any(trial.mean == 1 for trial in trials):
        words += "; ended by one of 100 %, which none can beat"
    return words


class _Path:
    """The machines of all folds, moved from one C to the next."""

    def __init__(
        self,
        design: Design,
        targets: Targets,
        single: Columns,
        *,
        plan: TrialPlan,
        memory_bytes: int,
    ) -> None:
        self._design, self._targets, self._single = design, targets, single
        self._plan, self._memory_bytes = plan, memory_bytes
        folds = plan.n_folds
        self._columns = Columns(
            positive=np.tile(single.positive, folds),
            C_positive=np.tile(single.C_positive, folds),
            C_negative=np.tile(single.C_negative, folds),
            held_out=np.repeat(np.arange(folds), len(single)),
        )
        self._state: State | None = None
        self._at = 0.0
        self._first: tuple[float, Doubles] | None = None  # the first C, and where it ended
        self.found: dict[float, tuple[NDArray[np.intp], Doubles]] = {}  # by C

    def go_to(self, C: float, task: Task) -> Trial:
        """Solve for a value, starting from the nearest at hand, and score it."""
        within = _Within(task, f"C {C:.3g}")
        self._start(C, within)
        state = self._state = self._solve(self._columns, C, self._state, within)
        within.finish()
        if not state.converged:
            _LOG.warning("C = %.3g: not converged within %d steps", C, MAX_STEPS)
        self._at = C
        self._first = self._first or (C, state.weights.copy())
        predicted = _left_out(state, self._columns, self._plan)
        weights = state.weights.reshape(-1, self._plan.n_folds, len(self._single)).mean(axis=1)
        self.found[C] = predicted[self._plan.scored], weights
        return self._plan.trial(self._targets.codes, predicted, C=C)

    def _start(self, C: float, within: _Within) -> None:
        """Put the state where the next value is nearest."""
        folds = self._plan.n_folds
        if self._first is None and folds > 1:
            whole = self._solve(self._single, C, None, within)
            weights, decision = np.tile(whole.weights, folds), np.tile(whole.decision, (folds, 1))
            self._state = replace(whole, weights=weights, decision=decision)
        elif self._first is not None and _apart(C, self._first[0]) < _apart(C, self._at):
            weights = self._first[1]
            self._state = State(weights, self._design.product(weights))

    def _solve(self, columns: Columns, C: float, start: State | None, within: _Within) -> State:
        return solve(
            self._design,
            self._targets,
            columns.scaled(C),
            tol=SELECTION_TOLERANCE,
            max_iter=MAX_STEPS,
            memory_bytes=self._memory_bytes,
            start=start,
            report=within,
        )


def _apart(one: float, other: float) -> float:
    return float(abs(np.log(one / other)))


class _Within:
    """How far one value is: rounds grow shorter, and each counts half of what was left."""

    def __init__(self, task: Task, name: str) -> None:
        self._task, self._name, self._told = task, name, 0.0

    def __call__(self, rounds: int, done: int, total: int) -> None:
        """Tell it."""
        share = max(self._told, 1 - 0.5 ** (rounds + done / total))
        note = f"{self._name}: round {rounds + 1}, {done:,} of {total:,} machines"
        self._task.advance(share - self._told, note=note)
        self._told = share

    def finish(self) -> None:
        """Tell that it is done."""
        self._task.advance(1 - self._told)


def _left_out(state: State, columns: Columns, plan: TrialPlan) -> NDArray[np.intp]:
    """Predict each row by the machine that left it out; rows that none did stay 0."""
    predicted = np.zeros(len(plan.fold), np.intp)
    for fold in range(plan.n_folds):
        rows = np.flatnonzero(plan.fold == fold)
        own = columns.held_out == fold
        values = state.decision[own][:, rows]
        if len(values) == 1:
            predicted[rows] = values[0] > 0
        else:
            predicted[rows] = columns.positive[own][values.argmax(axis=0)]
    return predicted
