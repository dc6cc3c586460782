"""One layer's machine: preparation, choice of C, training, the plain pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.result import CostSearch
from cnnfeat.svm.classweight import class_factors, weight_by_code
from cnnfeat.svm.evaluation import margins
from cnnfeat.svm.kernel import (
    EXACT_KERNELS,
    NYSTROEM_COMPONENTS,
    NYSTROEM_ROWS,
    decide_svc,
    fit_nystroem,
    fit_svc,
    scale_gamma,
    select_kernel,
    warn_of_cost,
)
from cnnfeat.svm.matrix import Doubles, Floats, MappedRows, Moments, RowBlocks, SubsetRows, read_all
from cnnfeat.svm.preparation import Preparation, prepare
from cnnfeat.svm.selection import check_grid, default_grid, select_cost
from cnnfeat.svm.solver import Design, State, Targets, one_against_rest, solve
from cnnfeat.svm.trials import TrialPlan, Tried, subsample

TOLERANCE = 1e-6
SELECTION_VALUES = 50_000_000  # features times rows that C is chosen on
APART_VALUES = 200_000_000  # where one machine is fitted for each C, rather than one a fold
MAX_STEPS = 500
SCORING_VALUES = 2**22  # features converted to decision values at a time
DECISION_BYTES = 2**30  # of decision values kept, to be ranked and calibrated by

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer's training rows, made ready, and what was found out by trying."""

    rows: RowBlocks  # as they were extracted
    codes: NDArray[np.intp]  # (n_samples,) class of each row: a place among the classes
    factors: Doubles  # (n_classes,) of C, by class
    prepared: Preparation
    mapping: Nystroem | None  # of kernel nystroem
    options: SvmOptions
    tried: Tried | None  # None: C was given, and nothing to compare

    @property
    def cost(self) -> float:
        """The cost of errors, given or chosen."""
        if self.options.C != "auto":
            return self.options.C
        if self.tried is None:
            raise ValueError("C is to be chosen, and nothing was tried")
        return self.tried.selection.chosen.C

    @property
    def selection(self) -> CostSearch | None:
        """How C was chosen; None where it was given."""
        return None if self.tried is None or self.options.C != "auto" else self.tried.selection


@dataclass(frozen=True, slots=True)
class FittedMachine:
    """A fitted pipeline and how it came about."""

    pipeline: Pipeline  # plain scikit-learn; its classes are 0, 1 ...
    C: float
    gamma: float | None
    n_support: int | None  # of kernel machines
    steps: int | None  # of Newton, for linear machines
    objective: float | None


def make_candidate(
    rows: RowBlocks,
    codes: NDArray[np.intp],
    *,
    seen: Moments,
    plan: TrialPlan | None,
    classes: Sequence[str],
    options: SvmOptions,
    progress: Progress = SILENT,
) -> Candidate:
    """Prepare training rows and try settings on them.

    Parameters
    ----------
    rows : RowBlocks
        Features as they were extracted.
    codes : ndarray of shape (n_samples,)
        Class of each row: a place in `classes`.
    seen : Moments
        Of the rows.
    plan : TrialPlan, optional
        Which rows C is chosen on. None: it is given.
    classes : sequence of str
        Their names.
    options : SvmOptions
        What machine, which C are tried, and the memory allowed.
    progress : Progress
        Told of the search.
    """
    factors = class_factors(options.class_weight, codes, classes=classes)
    prepared = prepare(rows, seen, normalize=options.normalize, pca=options.pca, seed=options.seed)
    mapping = None
    if options.kernel == "nystroem":
        some = prepared.apply(rows.take(subsample(codes, NYSTROEM_ROWS, seed=options.seed)))
        mapping = fit_nystroem(
            some, gamma=options.gamma, n_components=NYSTROEM_COMPONENTS, seed=options.seed
        )
    candidate = Candidate(rows, codes, factors, prepared, mapping, options, None)
    if plan is None:
        return candidate
    if options.kernel in EXACT_KERNELS:
        if options.grid is not None:
            check_grid(options.grid)
        X = read_all(prepared.rows(rows))
        tried = select_kernel(X, codes, plan, options, class_weight=factors, progress=progress)
    else:
        tried = _try_costs(candidate, plan, progress)
    return replace(candidate, tried=tried)


def fit_machine(candidate: Candidate, *, progress: Progress = SILENT) -> FittedMachine:
    """Fit the machine to all rows of a candidate, with the C that was given or chosen."""
    fit = _fit_kernel if candidate.options.kernel in EXACT_KERNELS else _fit_linear
    return fit(candidate, progress)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a machine says of some rows."""

    predicted: NDArray[np.intp]  # (n_samples,) codes
    margin: NDArray[np.float64]  # (n_samples,)
    values: Doubles | None  # (n_samples, n_classes), or (n_samples,) for two; None: not kept


def decide(pipeline: Pipeline, rows: RowBlocks, *, most_bytes: float = DECISION_BYTES) -> Decisions:
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


def _fit_linear(candidate: Candidate, progress: Progress) -> FittedMachine:
    options, mapping, tried = candidate.options, candidate.mapping, candidate.tried
    design = _design(candidate.rows, candidate.prepared, mapping)
    design.hold(room_bytes=options.memory // 2)
    weights = None if tried is None else tried.weights
    with progress.task("training", total=1, unit="machines") as task:
        state = solve(
            design,
            Targets(candidate.codes),
            one_against_rest(
                len(candidate.factors), C=candidate.cost, class_weight=candidate.factors
            ),
            tol=TOLERANCE,
            max_iter=MAX_STEPS,
            memory_bytes=options.memory - design.held_bytes,
            start=None if weights is None else State(weights, design.product(weights)),
        )
        task.advance()
    if not state.converged:
        _LOG.warning("the machine had not converged after %d steps", state.steps)
    linear = plain_linear(
        state, C=candidate.cost, n_features=design.n_weights - 1, factors=candidate.factors
    )
    mapped = [] if mapping is None else [("nystroem", mapping)]
    return FittedMachine(
        pipeline=_pipeline([*candidate.prepared.steps(), *mapped, ("svm", linear)]),
        C=candidate.cost,
        gamma=None if mapping is None else float(mapping.gamma),
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


def _try_costs(candidate: Candidate, plan: TrialPlan, progress: Progress) -> Tried:
    """Try values of C on the training rows, or on a sample of them where they are large."""
    options, rows, codes = candidate.options, candidate.rows, candidate.codes
    mapping, prepared = candidate.mapping, candidate.prepared
    width = prepared.n_outputs if mapping is None else len(mapping.components_)
    most = SELECTION_VALUES if plan.n_folds > 1 else APART_VALUES
    room = min(most, options.memory // (4 * rows.dtype.itemsize))
    chosen = plan.sample(codes, max(1, room // width))
    if len(chosen) < rows.n_samples:
        keep = np.zeros(rows.n_samples, np.bool_)
        keep[chosen] = True
        rows, codes, plan = SubsetRows(rows, keep), codes[chosen], plan.of(chosen)
    design = _design(rows, prepared, mapping).hold(room_bytes=options.memory // 2)
    if options.C != "auto":
        grid: tuple[float, ...] = (options.C,)
    else:
        grid = check_grid(options.grid or default_grid(design.square_norm()))
    tried = select_cost(
        design,
        codes,
        plan,
        n_classes=len(candidate.factors),
        class_weight=candidate.factors,
        grid=grid,
        memory_bytes=options.memory - design.held_bytes,
        outwards=options.grid is None and options.C == "auto",
        progress=progress,
    )
    return replace(tried, rows=chosen[tried.rows])


def _fit_kernel(candidate: Candidate, progress: Progress) -> FittedMachine:
    kernel = cast("Literal['rbf', 'poly']", candidate.options.kernel)
    warn_of_cost(candidate.rows.n_samples, candidate.prepared.n_outputs, kernel=kernel)
    X = read_all(candidate.prepared.rows(candidate.rows))
    gamma = candidate.options.gamma
    if candidate.tried is not None:
        gamma = cast("float", candidate.tried.selection.chosen.gamma)
    elif gamma == "auto":
        gamma = scale_gamma(X)
    with progress.task(f"training ({kernel})", total=1, unit="machines") as task:
        machine = fit_svc(
            X,
            candidate.codes,
            kernel=kernel,
            C=candidate.cost,
            gamma=gamma,
            class_weight=candidate.factors,
        )
        task.advance()
    return FittedMachine(
        pipeline=_pipeline([*candidate.prepared.steps(), ("svm", machine)]),
        C=candidate.cost,
        gamma=gamma,
        n_support=int(machine.n_support_.sum()),
        steps=None,
        objective=None,
    )


def plain_linear(state: State, *, C: float, n_features: int, factors: Doubles) -> LinearSVC:
    """Put a solution into scikit-learn's own fitted `LinearSVC`."""
    machine = LinearSVC(C=C, dual=False, class_weight=weight_by_code(factors))
    machine.coef_ = np.ascontiguousarray(state.weights[:n_features].T)
    machine.intercept_ = state.weights[n_features].copy()
    machine.classes_ = np.arange(len(factors))
    machine.n_features_in_ = n_features
    machine.n_iter_ = state.steps
    return machine


def _pipeline(steps: list[tuple[str, BaseEstimator]]) -> Pipeline:
    return Pipeline(steps)
