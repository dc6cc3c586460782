"""The choice of C against scikit-learn's own cross-validation."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import LinearSVC

from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import SvmOptions
from cnnfeat.svm.kernel import select_kernel
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


@pytest.mark.parametrize("folds", [5, 1])
def test_outwards_the_same_value_is_chosen_with_fewer_tried(pixels, folds):
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    grid = tuple(10.0**k for k in range(-8, 1))
    plan = in_turn(y, 5, seed=0, rows="rows")
    if folds == 1:
        plan = apart(np.arange(300) % 3 == 0, y, seed=0, rows="rows")
    options = {"n_classes": 10, "grid": grid, "memory_bytes": 2**30}
    whole = select_cost(Design(ArrayRows(X)), y, plan, **options).selection
    short = select_cost(Design(ArrayRows(X)), y, plan, outwards=True, **options).selection
    assert short.chosen.C == whole.chosen.C
    assert len(whole.trials) == 9
    assert whole.searched == ""
    tried = [trial.C for trial in short.trials]
    assert 1e-4 in tried
    assert len(tried) < 9
    first = grid.index(tried[0])
    assert tuple(tried) == grid[first : first + len(tried)]
    # What was left out lies beyond a value that has lost.
    lost = short.best.mean - short.best.error
    for end, edge in ((0, grid[0]), (-1, grid[-1])):
        assert tried[end] == edge or short.trials[end].mean < lost
    assert short.searched == (
        f"{len(tried)} of 9 values from 1e-08 to 1: from 0.0001 each way until one scores more "
        "than one standard error below the best"
    )


def test_a_value_that_none_can_beat_ends_the_search(rng):
    y = np.arange(120) % 4
    X = 10 * np.eye(4)[y] + 0.01 * rng.standard_normal((120, 4))
    plan = in_turn(y, 3, seed=0, rows="rows")
    grid = tuple(10.0**k for k in range(-6, 7))
    tried = select_cost(
        Design(ArrayRows(X)), y, plan, n_classes=4, grid=grid, memory_bytes=2**30, outwards=True
    ).selection
    assert [trial.C for trial in tried.trials] == [1.0]  # the middle one
    assert tried.chosen.mean == 1.0
    assert tried.searched == (
        "1 of 13 values from 1e-06 to 1e+06: from 1 each way until one scores more than one "
        "standard error below the best; ended by one of 100 %, which none can beat"
    )


def test_a_smaller_value_that_none_can_beat_ends_the_search_after_larger_ones_lost():
    """One feature tells most rows and is faint in a few, which noise decides for a large C."""
    random = np.random.default_rng(91)
    y = np.arange(60) % 2
    telling = (2.0 * y - 1) * np.where(np.arange(60) % 15 == 0, 0.3, 2)
    X = np.column_stack([telling, 0.2 * random.standard_normal((60, 60))])
    plan = in_turn(y, 5, seed=0, rows="rows")
    grid = tuple(10.0**k for k in range(-4, 3))
    found = select_cost(
        Design(ArrayRows(X)), y, plan, n_classes=2, grid=grid, memory_bytes=2**30, outwards=True
    ).selection
    assert found.best.mean == 1.0
    assert found.trials[-1].mean < 1
    assert [trial.mean == 1 for trial in found.trials] == [True, False, False, False]
    assert grid[0] < found.trials[0].C
    assert found.searched.endswith("; ended by one of 100 %, which none can beat")


def test_folds_that_start_from_all_rows_end_at_their_own_minimum(rng):
    """Labels are random and features many: a machine of all rows knows every label by heart."""
    y = rng.permutation(np.arange(300) % 2)
    X = rng.standard_normal((300, 400))
    C = 0.1
    knowing = LinearSVC(C=C, dual=False).fit(X, y)
    assert knowing.score(X, y) == 1.0
    plan = in_turn(y, 5, seed=0, rows="rows")
    tried = select_cost(
        Design(ArrayRows(X)), y, plan, n_classes=2, grid=(C, 1.0), memory_bytes=2**30
    )
    found = tried.selection.trials[0]
    theirs = [
        LinearSVC(C=C, dual=False, tol=1e-8, max_iter=10_000)
        .fit(X[plan.fold != k], y[plan.fold != k])
        .score(X[plan.fold == k], y[plan.fold == k])
        for k in range(5)
    ]
    np.testing.assert_allclose(found.scores, theirs, atol=0.035)  # two rows of sixty
    assert 0.4 < found.mean < 0.6


class Recorder:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.amounts, self.notes, self.total = [], [], None

    @contextmanager
    def task(self, label, *, total, unit):
        assert (label, unit) in (("choosing C", "values"), ("choosing C and gamma", "settings"))
        self.total = total
        yield self

    def advance(self, amount=1, *, note=""):
        assert amount >= 0
        self.amounts.append(amount)
        self.notes.append(note)


def test_progress_moves_within_a_setting_of_a_kernel(pixels):
    X, y = pixels[0].reshape(-1, 64)[:200], pixels[1][:200]
    told = Recorder()
    options = SvmOptions(kernel="rbf", C=2.0)
    select_kernel(X, y, in_turn(y, 4, seed=0, rows="rows"), options, progress=told)
    assert told.amounts == [0.25, 0.25, 0.25, 0.25, 0]
    assert told.notes[-1].startswith("C 2, gamma ")


def test_progress_says_within_a_value_how_far_it_is(pixels):
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    told = Recorder()
    plan = in_turn(y, 3, seed=0, rows="rows")
    select_cost(
        Design(ArrayRows(X)), y, plan,
        n_classes=10, grid=GRID, memory_bytes=2**30, progress=told,
    )  # fmt: skip
    assert told.total == 3
    assert sum(told.amounts) == pytest.approx(3)
    assert max(told.amounts) <= 0.5
    assert "C 0.0001: round 1, 1 of 10 machines" in told.notes
    assert "C 0.001: round 1, 10 of 10 machines" in told.notes
    assert next(note for note in told.notes if note.endswith("%")).startswith("C 0.0001: ")


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
