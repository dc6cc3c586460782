"""The choice of C against scikit-learn's own cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import LinearSVC

from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import SvmOptions
from cnnfeat.svm.evaluation import stratified_folds
from cnnfeat.svm.matrix import ArrayRows
from cnnfeat.svm.selection import check_grid, default_grid, select_cost
from cnnfeat.svm.solver import Design

GRID = (1e-4, 1e-3, 1e-2)


def test_scores_equal_grid_search(pixels):
    X, y = pixels[0].reshape(-1, 64)[:800].astype(float) / 4, pixels[1][:800]
    selection, start = select_cost(
        Design(ArrayRows(X)), y, SvmOptions(folds=4, seed=3), n_classes=10, grid=GRID,
        memory_bytes=2**30,
    )  # fmt: skip
    folds = stratified_folds(y, 4, seed=3)
    theirs = GridSearchCV(
        LinearSVC(dual=False, tol=1e-6, max_iter=10_000), {"C": GRID}, cv=PredefinedSplit(folds)
    ).fit(X, y)
    ours = [trial.mean for trial in selection.trials]
    np.testing.assert_allclose(ours, theirs.cv_results_["mean_test_score"], atol=0.004)
    assert start.weights.shape == (65, 10)


def test_two_classes_have_one_column(pixels):
    y = (pixels[1][:200] > 4).astype(int)
    X = pixels[0].reshape(-1, 64)[:200] / 4
    selection, start = select_cost(
        Design(ArrayRows(X)), y, SvmOptions(folds=3), n_classes=2, grid=GRID, memory_bytes=2**30
    )
    assert selection.best.mean > 0.8
    assert start.weights.shape == (65, 1)


def test_losing_values_end_the_search_when_asked(pixels):
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    grid = tuple(10.0**k for k in range(-6, 4))
    options = {"options": SvmOptions(), "n_classes": 10, "grid": grid, "memory_bytes": 2**30}
    whole, _ = select_cost(Design(ArrayRows(X)), y, **options)
    short, _ = select_cost(Design(ArrayRows(X)), y, stop_early=True, **options)
    assert short.chosen == whole.chosen
    assert len(whole.trials) == 10
    assert short.trials == whole.trials[: len(short.trials)]


def test_default_grid_follows_the_rows_length():
    grid = default_grid(100.0)
    assert len(grid) == 9
    assert grid[0] == pytest.approx(1e-3)
    assert grid[-1] == pytest.approx(10)
    assert default_grid(10_000.0)[0] == pytest.approx(1e-5)
    with pytest.raises(DataError, match="all features are zero"):
        default_grid(0.0)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1.0], "at least 2 different values, not 1"),
        ([2.0, 2.0], "at least 2 different values, not 1"),
        ([0.0, 1.0], "more than 0, not 0"),
        ([-1.0, 1.0], "more than 0, not -1"),
    ],
)
def test_bad_grids_are_refused(grid, words):
    with pytest.raises(UsageError, match=words):
        check_grid(grid)
