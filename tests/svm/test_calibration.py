"""Probabilities against scikit-learn's CalibratedClassifierCV."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from cnnfeat.errors import DataError
from cnnfeat.svm.calibration import Calibration, fit_calibration
from cnnfeat.svm.machine import decision_values

NAMES = tuple("0123456789")


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("machine", [LinearSVC(C=0.01, dual=False), SVC(C=2.0)])
def test_probabilities_are_scikit_learns(pixels, machine, n_classes):
    X, y = pixels[0].reshape(-1, 64), pixels[1]
    X, y = X[y < n_classes], y[y < n_classes]
    third = len(X) // 3
    pipeline: Pipeline = make_pipeline(StandardScaler(), machine).fit(X[:third], y[:third])
    held = slice(third, 2 * third)
    theirs = CalibratedClassifierCV(FrozenEstimator(pipeline), cv=2).fit(X[held], y[held])
    ours = fit_calibration(decision_values(pipeline, X[held]), y[held], classes=NAMES[:n_classes])
    found = ours.probabilities(decision_values(pipeline, X[2 * third :]))
    np.testing.assert_allclose(found, theirs.predict_proba(X[2 * third :]), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    read = Calibration.from_json(json.loads(json.dumps(ours.to_json())), n_classes=n_classes)
    np.testing.assert_array_equal(read.slopes, ours.slopes)
    np.testing.assert_array_equal(read.offsets, ours.offsets)
    assert read.n_samples == third


def test_one_row_of_a_class_is_enough_and_none_is_named():
    values = np.random.default_rng(0).standard_normal((20, 3))
    codes = np.array([0] * 10 + [1] * 9 + [2])
    assert fit_calibration(values, codes, classes=("a", "b", "c")).n_samples == 20
    with pytest.raises(DataError, match="1 of 3 classes have none: 'c'"):
        fit_calibration(values[:19], codes[:19], classes=("a", "b", "c"))


def test_where_all_sigmoids_are_zero_all_classes_are_alike():
    calibration = Calibration(np.full(4, -1e6), np.zeros(4), 9)
    np.testing.assert_allclose(calibration.probabilities(np.full((1, 4), -1.0)), 0.25)


@pytest.mark.parametrize(
    "record",
    [
        {"method": "isotonic", "slopes": [1.0], "offsets": [0.0], "n_samples": 3},
        {"method": "sigmoid", "slopes": [1.0], "offsets": [0.0, 1.0], "n_samples": 3},
        {"method": "sigmoid", "slopes": ["x"], "offsets": [0.0], "n_samples": 3},
        {"method": "sigmoid"},
    ],
)
def test_another_record_is_refused(record):
    with pytest.raises((KeyError, ValueError)):
        Calibration.from_json(record, n_classes=2)
