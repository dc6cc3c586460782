"""Which rows settings are tried on, what a trial is worth, and which setting is taken."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from cnnfeat.errors import DataError
from cnnfeat.result import Trial
from cnnfeat.svm.trials import (
    APART,
    apart,
    check_classes,
    deal,
    in_turn,
    measure_for,
    subsample,
)


def test_folds_are_stratified_and_reproducible(rng):
    codes = rng.integers(0, 4, 203)
    folds = deal(codes, 5, seed=1)
    for k in range(4):
        counts = np.bincount(folds[codes == k], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(folds)) <= 1
    np.testing.assert_array_equal(folds, deal(codes, 5, seed=1))
    assert (folds != deal(codes, 5, seed=2)).any()


def test_groups_stay_in_one_fold_and_classes_are_spread(rng):
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    codes = (groups % 3 == 0).astype(int)
    folds = deal(codes, 4, seed=0, groups=groups)
    for group in range(40):
        assert len(set(folds[groups == group])) == 1
    for k in range(2):
        shares = np.bincount(folds[codes == k], minlength=4) / (codes == k).sum()
        assert shares.min() > 0.15 and shares.max() < 0.35


def test_rows_apart_are_scored_with_a_binomial_error():
    codes = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    plan = apart(np.arange(8) >= 4, codes, seed=0, rows="validation rows")
    assert plan.scored.tolist() == [4, 5, 6, 7]
    assert plan.fold[:4].tolist() == [APART] * 4
    assert plan.on == "4 validation rows"
    trial = plan.trial(codes, np.array([1, 0, 1, 0, 0, 1, 0, 0]), C=0.1)
    assert trial.scores == (0.75,)
    assert trial.error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))


def test_uneven_classes_are_scored_by_their_mean_recall(rng):
    codes = np.array([0] * 60 + [1] * 20 + [2] * 20)
    assert measure_for(codes) == "balanced accuracy"
    assert measure_for(np.array([0] * 14 + [1] * 10)) == "accuracy"
    plan = apart(np.arange(100) % 2 == 0, codes, seed=0, rows="rows")
    predicted = rng.integers(0, 3, 100)
    trial = plan.trial(codes, predicted, C=1.0)
    assert trial.mean == pytest.approx(balanced_accuracy_score(codes[::2], predicted[::2]))
    # The variance of a mean of three shares, of 30, 10 and 10 rows.
    shares = [np.mean(predicted[::2][codes[::2] == k] == k) for k in range(3)]
    variance = sum(p * (1 - p) / n for p, n in zip(shares, (30, 10, 10), strict=True)) / 9
    assert trial.error == pytest.approx(np.sqrt(variance))


def test_one_standard_error_rule():
    plan = in_turn(np.arange(99) % 2, 3, seed=0, rows="training rows")
    selection = plan.choose(
        [
            Trial(0.01, (0.80, 0.80, 0.80)),
            Trial(0.1, (0.88, 0.90, 0.92)),
            Trial(1.0, (0.89, 0.91, 0.93)),
            Trial(10.0, (0.90, 0.91, 0.92)),
        ]
    )
    assert selection.best.C == 1.0  # the first of equals
    assert selection.best.error == pytest.approx(0.02 / np.sqrt(3))
    assert selection.chosen.C == 0.1  # 0.90 >= 0.91 - 0.0115
    assert selection.on == "3-fold cross-validation on 99 training rows"


def _refused(codes: np.ndarray, least: int, **more: object) -> DataError:
    names = ("cat", "dog", "emu")
    totals = more.pop("totals", np.bincount(codes))
    with pytest.raises(DataError) as caught:
        check_classes(codes, least, need="5 folds need 5", names=names, totals=totals, **more)
    return caught.value


def test_small_classes_are_named_with_their_numbers_and_ways_on():
    codes = np.array([0] * 9 + [1] * 2 + [2] * 9)
    error = _refused(codes, 5, folds=True, ways=["a fixed --C"])
    assert str(error) == "5 folds need 5 rows of each class; class 'dog' has 2"
    assert error.hint == (
        "--folds 2 or a fixed --C or --min-per-class 3, which leaves out classes of fewer rows"
    )


def test_ways_that_would_not_help_are_not_offered():
    codes = np.array([0] * 9 + [1])
    error = _refused(codes, 5, folds=True)
    assert error.hint == "add pictures of these classes"  # one fold is none, nor is one class
    error = _refused(np.array([0] * 9 + [1] * 3 + [2] * 9), 5, totals=np.array([11, 4, 11]))
    assert error.hint == "--min-per-class 5, which leaves out classes of fewer rows"


def test_a_class_of_few_groups_is_named():
    codes = np.array([0] * 20 + [1] * 20)
    groups = np.concatenate([np.arange(20), np.repeat([20, 21], 10)])
    error = _refused(codes, 5, groups=groups, folds=True)
    assert str(error) == "5 folds need 5 groups of each class; class 'dog' has 2"
    assert error.hint == "--folds 2"
    check_classes(codes, 2, need="", names=("a", "b"), totals=np.bincount(codes), groups=groups)


def test_a_sample_keeps_rows_apart_before_others(rng):
    codes = rng.integers(0, 3, 1000)
    plan = apart(np.arange(1000) < 300, codes, seed=0, rows="rows")
    rows = plan.sample(codes, 800)
    assert set(range(300)) <= set(rows.tolist())
    assert 790 <= len(rows) <= 810 and (np.diff(rows) > 0).all()
    small = plan.sample(codes, 200)
    assert 95 <= (small < 300).sum() <= 105 and 195 <= len(small) <= 205
    np.testing.assert_array_equal(plan.of(small).scored, np.flatnonzero(small < 300))


def test_a_subsample_keeps_every_class():
    codes = np.array([0] * 1000 + [1] * 3)
    rows = subsample(codes, 100, seed=0)
    assert 95 <= len(rows) <= 105
    assert (codes[rows] == 1).sum() >= 2
    assert (np.diff(rows) > 0).all()
