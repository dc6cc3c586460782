"""Choosing C by cross-validation on training rows: all folds and classes in one solver."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.result import CostSearch, Trial
from cnnfeat.svm.evaluation import choose, stratified_folds
from cnnfeat.svm.solver import Columns, Design, State, Targets, one_against_rest, solve

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
    options: SvmOptions,
    *,
    n_classes: int,
    grid: Sequence[float],
    memory_bytes: int,
    stop_early: bool = False,
    progress: Progress = SILENT,
) -> tuple[CostSearch, State]:
    """Cross-validate a linear machine along a path of C, by the options' folds and seed.

    All folds are columns of one problem, so a pass over the rows serves all of them, and the
    solution for one C is where the next starts. With `stop_early`, values of C beyond three that
    score lower than the best by more than its standard error are not tried.

    Returns
    -------
    selection : CostSearch
    start : State
        The mean of the folds' solutions for the chosen C, to start the final fit from.
    """
    folds, seed = options.folds, options.seed
    division = stratified_folds(codes, folds, seed=seed)
    targets = Targets(codes, folds=division)
    single = one_against_rest(n_classes, C=1.0)
    columns = Columns(
        positive=np.tile(single.positive, folds),
        C_positive=np.tile(single.C_positive, folds),
        C_negative=np.tile(single.C_negative, folds),
        held_out=np.repeat(np.arange(folds), len(single)),
    )
    state: State | None = None
    trials: list[Trial] = []
    starts: list[NDArray[np.float64]] = []
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
            trials.append(Trial(C, _fold_scores(state, columns, targets, folds)))
            starts.append(state.weights.reshape(-1, folds, len(single)).mean(axis=1))
            task.advance(note=f"C {C:.3g}: {trials[-1].mean:.2%}")
            if stop_early and _past_the_best(trials):
                break
    selection = choose(trials, folds=folds, seed=seed, n_samples=len(codes))
    weights = starts[trials.index(selection.chosen)]
    return selection, State(weights=weights, decision=design.product(weights))


def _past_the_best(trials: Sequence[Trial]) -> bool:
    best = max(trials, key=lambda trial: trial.mean)
    return len(trials) > LOSING and all(
        trial.mean < best.mean - best.error for trial in trials[-LOSING:]
    )


def _fold_scores(state: State, columns: Columns, targets: Targets, folds: int) -> tuple[float, ...]:
    scores = []
    for fold in range(folds):
        rows = np.flatnonzero(targets.folds == fold)
        values = state.decision[columns.held_out == fold][:, rows]
        if len(values) == 1:
            predicted = (values[0] > 0).astype(np.intp)
        else:
            predicted = columns.positive[columns.held_out == fold][values.argmax(axis=0)]
        scores.append(float(np.mean(predicted == targets.codes[rows])))
    return tuple(scores)
