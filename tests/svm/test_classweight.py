"""Factors of C by class, against scikit-learn's machines with the same."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils import compute_class_weight

from cnnfeat.errors import UsageError
from cnnfeat.options import SvmOptions
from cnnfeat.svm import kernel
from cnnfeat.svm.classweight import class_factors, weight_by_code
from cnnfeat.svm.machine import decision_values, fit_machine, make_candidate
from cnnfeat.svm.matrix import ArrayRows, moments
from cnnfeat.svm.trials import in_turn

NAMES = ("cat", "dog", "lynx")


def test_balanced_factors_are_scikit_learns():
    codes = np.repeat([0, 1, 2], [60, 30, 7])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=codes)
    np.testing.assert_allclose(class_factors("balanced", codes, classes=NAMES), expected)


@pytest.mark.parametrize("table", [(("lynx", 5.0),), {"lynx": 5.0}])
def test_classes_that_are_not_named_have_one(table):
    found = class_factors(table, np.array([0, 1, 2]), classes=NAMES)
    assert found.tolist() == [1.0, 1.0, 5.0]
    assert weight_by_code(found) == {0: 1.0, 1: 1.0, 2: 5.0}
    assert weight_by_code(np.ones(3)) is None


def test_an_unknown_class_is_named_with_near_ones():
    words = "class weight for 'cats', which is no class of these rows: cat, dog, lynx"
    with pytest.raises(UsageError, match=words) as caught:
        class_factors((("cats", 2.0),), np.array([0, 1, 2]), classes=NAMES)
    assert caught.value.hint == "did you mean 'cat'?"
    assert caught.value.exit_code == 2


@pytest.fixture(params=[2, 3])
def uneven(request, pixels) -> tuple[np.ndarray, np.ndarray]:
    """Digits of two or three classes, one of which is rare."""
    X, y = pixels[0].reshape(-1, 64), pixels[1]
    kept = np.concatenate(
        [np.flatnonzero(y == k)[: 120 // (1 + 5 * k)] for k in range(request.param)]
    )
    return X[kept].astype(np.float64), y[kept]


def fitted(X: np.ndarray, y: np.ndarray, options: SvmOptions):
    rows = ArrayRows(X)
    names = NAMES[: y.max() + 1]
    candidate = make_candidate(
        rows, y, seen=moments(rows), plan=None, classes=names, options=options
    )
    return fit_machine(candidate)


@pytest.mark.parametrize("weight", ["balanced", (("cat", 0.25), ("dog", 3.0))])
def test_a_linear_machine_has_the_objective_and_plane_of_linear_svc(uneven, weight):
    X, y = uneven
    found = fitted(X, y, SvmOptions(C=0.01, class_weight=weight))
    by_code = weight if weight == "balanced" else {0: 0.25, 1: 3.0}
    theirs = LinearSVC(C=0.01, dual=False, tol=1e-9, max_iter=10_000, class_weight=by_code)
    Z = StandardScaler().fit_transform(X)
    theirs.fit(Z, y)
    ours = found.pipeline[-1]
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, np.ravel(theirs.intercept_), atol=1e-5)
    # liblinear: a class's factor is for its own rows in its column; with two classes for both.
    factors = compute_class_weight(by_code, classes=np.unique(y), y=y)
    total = 0.0
    for row, k in enumerate(range(len(factors)) if len(factors) > 2 else [1]):
        signs = np.where(y == k, 1.0, -1.0)
        rest = factors[0] if len(factors) == 2 else 1.0
        costs = 0.01 * np.where(y == k, factors[k], rest)
        w, b = theirs.coef_[row], np.ravel(theirs.intercept_)[row]
        total += 0.5 * (w @ w + b * b) + costs @ np.maximum(0, 1 - signs * (Z @ w + b)) ** 2
    assert found.objective == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", ["rbf", "poly"])
def test_a_kernel_machine_decides_as_svc(uneven, name):
    X, y = uneven
    found = fitted(X, y, SvmOptions(kernel=name, C=2.0, gamma=0.01, class_weight="balanced"))
    coef0 = 1.0 if name == "poly" else 0.0
    theirs = make_pipeline(
        StandardScaler(),
        SVC(kernel=name, C=2.0, gamma=0.01, degree=3, coef0=coef0, class_weight="balanced"),
    ).fit(X, y)
    np.testing.assert_allclose(
        decision_values(found.pipeline, X), theirs.decision_function(X), atol=1e-6
    )


def test_a_nystroem_machine_decides_as_linear_svc_on_its_map(uneven):
    X, y = uneven
    options = SvmOptions(kernel="nystroem", C=1.0, gamma=0.01, class_weight="balanced")
    found = fitted(X, y, options)
    theirs = make_pipeline(
        StandardScaler(),
        Nystroem(gamma=0.01, n_components=len(X), random_state=0),
        LinearSVC(C=1.0, dual=False, tol=1e-9, class_weight="balanced"),
    ).fit(X, y)
    np.testing.assert_allclose(
        decision_values(found.pipeline, X), theirs.decision_function(X), atol=1e-3
    )


def test_the_choice_of_C_weighs_errors_too(pixels):
    X, y = pixels[0].reshape(-1, 64)[:200], (pixels[1][:200] > 0).astype(int)
    plan = in_turn(y, 3, seed=0, rows="training rows")
    options = SvmOptions(kernel="rbf", grid=(0.01, 0.1), gamma=0.001)
    plain = kernel.select_kernel(X, y, plan, options).selection
    factors = np.array([100.0, 1.0])
    weighed = kernel.select_kernel(X, y, plan, options, class_weight=factors).selection
    assert [trial.scores for trial in plain.trials] != [trial.scores for trial in weighed.trials]
