"""The choice of C against scikit-learn's own cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import LinearSVC

from cnnfeat.errors import DataError, UsageError
from cnnfeat.svm.matrix import ArrayRows
from cnnfeat.svm.selection import check_grid, default_grid, select_cost
from cnnfeat.svm.solver import Design
from cnnfeat.svm.trials import apart, in_turn

GRID = (1e-4, 1e-3, 1e-2)


def test_scores_equal_grid_search(pixels):
    X, y = pixels[0].reshape(-1, 64)[:800].astype(float) / 4, pixels[1][:800]
    plan = in_turn(y, 4, seed=3, rows="rows")
    tried = select_cost(Design(ArrayRows(X)), y, plan, n_classes=10, grid=GRID, memory_bytes=2**30)
    theirs = GridSearchCV(
        LinearSVC(dual=False, tol=1e-6, max_iter=10_000), {"C": GRID}, cv=PredefinedSplit(plan.fold)
    ).fit(X, y)
    ours = [trial.mean for trial in tried.selection.trials]
    np.testing.assert_allclose(ours, theirs.cv_results_["mean_test_score"], atol=0.004)
    assert tried.weights.shape == (65, 10)
    right = [np.mean((tried.predicted == y)[plan.fold == k]) for k in range(4)]
    assert tried.selection.chosen.scores == tuple(right)


def test_rows_apart_are_predicted_by_a_machine_of_all_others(pixels):
    X, y = pixels[0].reshape(-1, 64)[:800].astype(float) / 4, pixels[1][:800]
    plan = apart(np.arange(800) % 4 == 0, y, seed=0, rows="rows")
    tried = select_cost(Design(ArrayRows(X)), y, plan, n_classes=10, grid=GRID, memory_bytes=2**30)
    kept = plan.fold != 0
    for trial in tried.selection.trials:
        machine = LinearSVC(C=trial.C, dual=False, tol=1e-6, max_iter=10_000)
        theirs = machine.fit(X[kept], y[kept]).predict(X[~kept])
        assert trial.mean == pytest.approx(np.mean(theirs == y[~kept]), abs=0.011)  # two rows
    assert tried.rows.tolist() == list(range(0, 800, 4))
    assert np.mean(tried.predicted == y[::4]) == tried.selection.chosen.mean


def test_two_classes_have_one_column(pixels):
    y = (pixels[1][:200] > 4).astype(int)
    X = pixels[0].reshape(-1, 64)[:200] / 4
    plan = in_turn(y, 3, seed=0, rows="rows")
    tried = select_cost(Design(ArrayRows(X)), y, plan, n_classes=2, grid=GRID, memory_bytes=2**30)
    assert tried.selection.best.mean > 0.8
    assert tried.weights.shape == (65, 1)


def test_losing_values_end_the_search_when_asked(pixels):
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    grid = tuple(10.0**k for k in range(-6, 1))
    plan = in_turn(y, 5, seed=0, rows="rows")
    options = {"n_classes": 10, "grid": grid, "memory_bytes": 2**30}
    whole = select_cost(Design(ArrayRows(X)), y, plan, **options).selection
    short = select_cost(Design(ArrayRows(X)), y, plan, stop_early=True, **options).selection
    assert short.chosen == whole.chosen
    assert len(whole.trials) == 7
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
