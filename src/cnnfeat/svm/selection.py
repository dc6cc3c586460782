"""Trying values of C on rows left out: all folds and classes in one solver."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, UsageError
from cnnfeat.progress import SILENT, Progress
from cnnfeat.result import Trial
from cnnfeat.svm.matrix import Doubles
from cnnfeat.svm.solver import Columns, Design, State, Targets, one_against_rest, solve
from cnnfeat.svm.trials import TrialPlan, Tried

_LOG = logging.getLogger("cnnfeat")
GRID_SIZE = 9
GRID_REACH = (-1.0, 3.0)  # powers of ten around 1 / the rows' mean squared length
SELECTION_TOLERANCE = 1e-3  # of the objective: scores don't change below it
MAX_STEPS = 100
LOSING = 3  # values in a row


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
    stop_early: bool = False,
    progress: Progress = SILENT,
) -> Tried:
    """Try a linear machine along a path of C.

    All folds are columns of one problem, so a pass over the rows serves all of them, and the
    solution for one C is where the next starts. With `stop_early`, values of C beyond three that
    score lower than the best by more than its standard error are not tried.

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
    stop_early : bool
        Whether values that can but lose are left out.
    progress : Progress
        Told of each value.

    Returns
    -------
    Tried
        Its weights are the mean of the folds' solutions for the chosen C.
    """
    folds = plan.n_folds
    targets = Targets(codes, folds=plan.fold)
    single = one_against_rest(n_classes, C=1.0, class_weight=class_weight)
    columns = Columns(
        positive=np.tile(single.positive, folds),
        C_positive=np.tile(single.C_positive, folds),
        C_negative=np.tile(single.C_negative, folds),
        held_out=np.repeat(np.arange(folds), len(single)),
    )
    state: State | None = None
    trials: list[Trial] = []
    found: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = []
    with progress.task("choosing C", total=len(grid), unit="values") as task:
        for C in grid:
            state = solve(
                design,
                targets,
                columns.scaled(C),
                tol=SELECTION_TOLERANCE,
                max_iter=MAX_STEPS,
                memory_bytes=memory_bytes,
                start=state,
            )
            if not state.converged:
                _LOG.warning("C = %.3g: not converged within %d steps", C, MAX_STEPS)
            predicted = _left_out(state, columns, plan)
            trials.append(plan.trial(codes, predicted, C=C))
            weights = state.weights.reshape(-1, folds, len(single)).mean(axis=1)
            found.append((predicted[plan.scored], weights))
            task.advance(note=f"C {C:.3g}: {trials[-1].mean:.2%}")
            if stop_early and _past_the_best(trials):
                break
    selection = plan.choose(trials)
    said, weights = found[trials.index(selection.chosen)]
    return Tried(selection, plan.scored, said, weights)


def _past_the_best(trials: Sequence[Trial]) -> bool:
    best = max(trials, key=lambda trial: trial.mean)
    return len(trials) > LOSING and all(
        trial.mean < best.mean - best.error for trial in trials[-LOSING:]
    )


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
