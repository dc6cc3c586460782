"""Fits one machine on one layer's rows: preparation, choice of C, training, the plain pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.result import CostSearch
from cnnfeat.svm.evaluation import margins
from cnnfeat.svm.kernel import (
    NYSTROEM_COMPONENTS,
    SELECTION_ROWS,
    decide_svc,
    fit_nystroem,
    fit_svc,
    scale_gamma,
    select_kernel,
    subsample,
    warn_of_cost,
)
from cnnfeat.svm.matrix import Doubles, Floats, MappedRows, Moments, RowBlocks, SubsetRows, read_all
from cnnfeat.svm.preparation import Preparation, prepare
from cnnfeat.svm.selection import check_grid, default_grid, select_cost
from cnnfeat.svm.solver import Design, State, Targets, one_against_rest, solve

TOLERANCE = 1e-6
SELECTION_VALUES = 50_000_000  # features times rows that C is chosen on
MAX_STEPS = 500
SCORING_VALUES = 2**22  # features converted to decision values at a time
DECISION_BYTES = 2**30  # of decision values kept, to be ranked and calibrated by

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Machine:
    """A fitted pipeline and how it came about."""

    pipeline: Pipeline  # plain scikit-learn; its classes are 0, 1 ...
    C: float
    gamma: float | None
    selection: CostSearch | None  # None: C was given
    n_support: int | None  # of kernel machines
    steps: int | None  # of Newton, for linear machines
    objective: float | None


def fit_machine(
    rows: RowBlocks,
    codes: NDArray[np.intp],
    *,
    seen: Moments,
    n_classes: int,
    options: SvmOptions,
    progress: Progress = SILENT,
) -> Machine:
    """Fit one machine on training rows.

    Parameters
    ----------
    rows : RowBlocks
        Features as they were extracted.
    codes : ndarray of shape (n_samples,)
        Class of each row, 0 to `n_classes` - 1.
    seen : Moments
        Of the rows.
    n_classes : int
        How many classes there are.
    options : SvmOptions
        What machine, how its C is chosen, and the memory allowed.
    progress : Progress
        Told of the search and the training.
    """
    prepared = prepare(rows, seen, normalize=options.normalize, pca=options.pca, seed=options.seed)
    fit = _fit_kernel if options.kernel in ("rbf", "poly") else _fit_linear
    return fit(
        rows,
        codes,
        prepared=prepared,
        n_classes=n_classes,
        options=options,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a machine says of some rows."""

    predicted: NDArray[np.intp]  # (n_samples,) codes
    margin: NDArray[np.float64]  # (n_samples,)
    values: Doubles | None  # (n_samples, n_classes), or (n_samples,) for two; None: not kept


def decide(pipeline: Pipeline, rows: RowBlocks) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Predict by blocks: codes and margins, both (n_samples,)."""
    found = decisions(pipeline, rows, most_bytes=0)
    return found.predicted, found.margin


def decisions(
    pipeline: Pipeline, rows: RowBlocks, *, most_bytes: int = DECISION_BYTES
) -> Decisions:
    """Predict by blocks, and keep all decision values where they take no more than `most_bytes`."""
    n = rows.n_samples
    predicted, margin = np.empty(n, np.intp), np.empty(n)
    n_columns = len(pipeline.classes_) if len(pipeline.classes_) > 2 else 1
    values = np.empty((n, n_columns)) if 8 * n * n_columns <= most_bytes else None
    step = max(1, SCORING_VALUES // max(1, rows.n_features))
    for start, block in rows.blocks():
        for first in range(0, len(block), step):
            found = decision_values(pipeline, block[first : first + step])
            here = slice(start + first, start + first + len(found))
            predicted[here], margin[here] = margins(found)
            if values is not None:
                values[here] = found.reshape(len(found), -1)
    if values is not None and n_columns == 1:
        values = values[:, 0]
    return Decisions(predicted, margin, values)


def decision_values(pipeline: Pipeline, block: Floats) -> Floats:
    """Compute those of a few rows: (n_rows, n_classes), or (n_rows,) for two classes."""
    if hasattr(pipeline[-1], "support_vectors_"):
        prepared = pipeline[:-1].transform(block) if len(pipeline) > 1 else block
        return decide_svc(pipeline[-1], prepared)
    return cast("Floats", pipeline.decision_function(block))


def _fit_linear(
    rows: RowBlocks,
    codes: NDArray[np.intp],
    *,
    prepared: Preparation,
    n_classes: int,
    options: SvmOptions,
    progress: Progress,
) -> Machine:
    steps = prepared.steps()
    mapping = None
    if options.kernel == "nystroem":
        some = prepared.apply(rows.take(subsample(codes, SELECTION_ROWS, seed=options.seed)))
        mapping = fit_nystroem(
            some, gamma=options.gamma, n_components=NYSTROEM_COMPONENTS, seed=options.seed
        )
        steps.append(("nystroem", mapping))
    C, selection, weights = options.C, None, None
    if C == "auto":
        selection, weights = _choose_cost(
            rows,
            codes,
            prepared=prepared,
            mapping=mapping,
            n_classes=n_classes,
            options=options,
            progress=progress,
        )
        C = selection.chosen.C
    design = _design(rows, prepared, mapping).hold(room_bytes=options.memory // 2)
    start = None if weights is None else State(weights, design.product(weights))
    with progress.task("training", total=1, unit="machines") as task:
        state = solve(
            design,
            Targets(codes),
            one_against_rest(n_classes, C=C),
            tol=TOLERANCE,
            max_iter=MAX_STEPS,
            memory_bytes=options.memory // (2 if design.held else 1),
            start=start,
        )
        task.advance()
    if not state.converged:
        _LOG.warning("the machine had not converged after %d steps", state.steps)
    linear = plain_linear(state, C=C, n_features=design.n_weights - 1, n_classes=n_classes)
    return Machine(
        pipeline=_pipeline([*steps, ("svm", linear)]),
        C=C,
        gamma=None if mapping is None else float(mapping.gamma),
        selection=selection,
        n_support=None,
        steps=state.steps,
        objective=float(state.objective.sum()),
    )


def _design(rows: RowBlocks, prepared: Preparation, mapping: Nystroem | None) -> Design:
    """The matrix the linear machine works on."""
    if mapping is None:
        return prepared.design(rows)
    width = len(mapping.components_)
    return Design(MappedRows(prepared.rows(rows), mapping.transform, n_features=width))


def _choose_cost(
    rows: RowBlocks,
    codes: NDArray[np.intp],
    *,
    prepared: Preparation,
    mapping: Nystroem | None,
    n_classes: int,
    options: SvmOptions,
    progress: Progress,
) -> tuple[CostSearch, NDArray[np.float64]]:
    """Choose C on the training rows, or on a sample of them where they are large."""
    width = prepared.n_outputs if mapping is None else len(mapping.components_)
    room = min(SELECTION_VALUES, options.memory // (4 * rows.dtype.itemsize))
    chosen = subsample(codes, max(1, room // width), seed=options.seed)
    if len(chosen) < rows.n_samples:
        keep = np.zeros(rows.n_samples, np.bool_)
        keep[chosen] = True
        rows, codes = SubsetRows(rows, keep), codes[chosen]
    design = _design(rows, prepared, mapping).hold(room_bytes=options.memory // 2)
    grid = check_grid(options.grid or default_grid(design.square_norm()))
    selection, start = select_cost(
        design,
        codes,
        options,
        n_classes=n_classes,
        grid=grid,
        memory_bytes=options.memory // (2 if design.held else 1),
        stop_early=options.grid is None,
        progress=progress,
    )
    _say_choice(selection, grid)
    return selection, start.weights


def _say_choice(selection: CostSearch, grid: Sequence[float]) -> None:
    best, chosen = selection.best, selection.chosen
    _LOG.info(
        "C = %g: %.2f%% in %d-fold cross-validation on %s rows; the best is C = %g with "
        "%.2f%% ± %.2f, and the smallest within one standard error is taken",
        chosen.C,
        100 * chosen.mean,
        selection.folds,
        f"{selection.n_samples:,}",
        best.C,
        100 * best.mean,
        100 * best.error,
    )
    if grid[-1] == best.C and len(grid) > 1:
        _LOG.warning("the best C is the grid's largest: a wider --grid may find a better one")


def _fit_kernel(
    rows: RowBlocks,
    codes: NDArray[np.intp],
    *,
    prepared: Preparation,
    n_classes: int,  # noqa: ARG001 - one signature for both
    options: SvmOptions,
    progress: Progress,
) -> Machine:
    kernel = options.kernel
    warn_of_cost(rows.n_samples, prepared.n_outputs, kernel=kernel)
    X = read_all(prepared.rows(rows))
    selection = None
    C = 10.0 if options.C == "auto" else options.C
    gamma = scale_gamma(X) if options.gamma == "auto" else options.gamma
    if options.C == "auto":
        if options.grid is not None:
            check_grid(options.grid)
        selection = select_kernel(X, codes, options, progress=progress)
        C, gamma = selection.chosen.C, cast("float", selection.chosen.gamma)
        _LOG.info(
            "C = %g, gamma = %.3g: %.2f%% in %d-fold cross-validation on %s rows",
            C,
            gamma,
            100 * selection.chosen.mean,
            selection.folds,
            f"{selection.n_samples:,}",
        )
    with progress.task(f"training ({kernel})", total=1, unit="machines") as task:
        machine = fit_svc(X, codes, kernel=kernel, C=C, gamma=gamma)  # type: ignore[arg-type]
        task.advance()
    return Machine(
        pipeline=_pipeline([*prepared.steps(), ("svm", machine)]),
        C=C,
        gamma=gamma,
        selection=selection,
        n_support=int(machine.n_support_.sum()),
        steps=None,
        objective=None,
    )


def plain_linear(state: State, *, C: float, n_features: int, n_classes: int) -> LinearSVC:
    """Put a solution into scikit-learn's own fitted `LinearSVC`."""
    machine = LinearSVC(C=C, dual=False)
    machine.coef_ = np.ascontiguousarray(state.weights[:n_features].T)
    machine.intercept_ = state.weights[n_features].copy()
    machine.classes_ = np.arange(n_classes)
    machine.n_features_in_ = n_features
    machine.n_iter_ = state.steps
    return machine


def _pipeline(steps: list[tuple[str, BaseEstimator]]) -> Pipeline:
    return Pipeline(steps)
