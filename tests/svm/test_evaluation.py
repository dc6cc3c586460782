"""Scores against scikit-learn and published intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)
from sklearn.preprocessing import label_binarize

from cnnfeat.svm.evaluation import (
    interval_in_turn,
    margins,
    mcnemar,
    mean_roc_auc,
    score,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R: prop.test(x, n, correct = FALSE)$conf.int
        (81, 263, 0.2552716, 0.3661950),
        (15, 148, 0.0623903, 0.1605012),
        (0, 20, 0.0, 0.1611252),
        (29, 29, 0.8830302, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes, trials, low, high):
    # R. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=2e-4)


def test_wilson_interval_of_nothing_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_share(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1


def test_scores_equal_scikit_learn(rng):
    labels, predicted = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    found = score(labels, predicted, classes=tuple("abcde"))
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, predicted))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.accuracy == np.mean(labels == predicted)


def test_macro_averages_equal_scikit_learn(rng):
    labels, predicted = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    labels[labels == 3], predicted[predicted == 4] = 2, 1  # one never occurs, one is never said
    values = rng.standard_normal((400, 6))
    found = score(
        labels, predicted, classes=tuple("abcdef"), roc_auc=mean_roc_auc(labels, values)
    ).macro
    expected = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected[:3])
    occurring = np.unique(labels)
    area = roc_auc_score(label_binarize(labels, classes=occurring), values[:, occurring])
    assert found.roc_auc == pytest.approx(area)
    assert score(labels, predicted, classes=tuple("abcdef")).macro.roc_auc is None


def test_the_area_of_two_classes_is_the_binary_one(rng):
    labels, values = rng.integers(0, 2, 300), rng.standard_normal(300).round(1)
    assert mean_roc_auc(labels, values) == pytest.approx(roc_auc_score(labels, values))


def test_there_is_no_area_where_one_class_occurs():
    assert mean_roc_auc(np.zeros(5, int), np.zeros((5, 3))) is None
    assert score(np.zeros(0, int), np.zeros(0, int), classes=("a",)).macro.f1 == 0.0


def test_a_class_never_predicted_scores_zero():
    found = score(np.array([0, 1]), np.array([0, 0]), classes=("a", "b"))
    assert (found.per_class[1].precision, found.per_class[1].f1) == (0.0, 0.0)


def test_mcnemar_equals_the_binomial_by_hand():
    first = np.array([True] * 10 + [False] * 2 + [True] * 50)
    second = np.array([False] * 10 + [True] * 2 + [True] * 50)
    found = mcnemar(first, second)
    assert (found.only_first_right, found.only_second_right) == (10, 2)
    # 2 * (C(12,0) + C(12,1) + C(12,2)) / 2^12
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_mcnemar_of_equal_machines_is_one():
    right = np.array([True, False, True])
    assert mcnemar(right, right).p_value == 1.0


def test_margins_are_best_minus_second():
    predicted, margin = margins(np.array([[1.0, 3.0, -2.0], [0.5, 0.25, 0.0]]))
    assert predicted.tolist() == [1, 0]
    assert margin.tolist() == [2.0, 0.25]


def test_margins_of_two_classes_are_distances():
    predicted, margin = margins(np.array([-1.5, 0.25]))
    assert predicted.tolist() == [0, 1]
    assert margin.tolist() == [1.5, 0.25]


def test_the_interval_of_a_cross_validated_share_is_wider():
    low, high = interval_in_turn(0.7, 10_000, folds=5)
    alone = wilson_interval(7_000, 10_000)
    assert low < 0.7 < high
    # Nadeau and Bengio's correction for 4 training rows a test row: (1/5 + 1/4) / (1/5) = 2.25
    assert (high - low) / (alone[1] - alone[0]) == pytest.approx(np.sqrt(2.25), rel=0.01)
    assert interval_in_turn(1.0, 4, folds=2)[1] == 1.0
