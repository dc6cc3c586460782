"""Scaling and components by blocks against scikit-learn on the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from cnnfeat.errors import DataError, UsageError
from cnnfeat.svm import preparation
from cnnfeat.svm.matrix import ArrayRows, moments
from cnnfeat.svm.preparation import prepare


@pytest.fixture
def X(rng) -> np.ndarray:
    X = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 40)) + 5
    X[:, 7] = 3.25
    return X.astype(np.float32)


@pytest.mark.parametrize(
    ("normalize", "step"),
    [("standard", StandardScaler()), ("l2", Normalizer()), ("none", None)],
)
def test_preparation_equals_scikit_learn(X, normalize, step):
    rows = ArrayRows(X, rows_per_block=64)
    found = prepare(rows, moments(rows), normalize=normalize)
    expected = X if step is None else step.fit_transform(X)
    np.testing.assert_allclose(found.apply(X), expected, rtol=1e-4, atol=1e-4)
    if found.steps():
        np.testing.assert_allclose(
            Pipeline(found.steps()).transform(X), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("limit", [2048, 8])
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
def test_components_equal_scikit_learn(X, monkeypatch, limit, normalize):
    """Both ways: the covariance's own, and subspace iteration for wide features."""
    monkeypatch.setattr(preparation, "COVARIANCE_LIMIT", limit)
    rows = ArrayRows(X, rows_per_block=64)
    found = prepare(rows, moments(rows), normalize=normalize, pca=5)
    before = {"standard": StandardScaler(), "l2": Normalizer(), "none": None}[normalize]
    Z = X.astype(float) if before is None else before.fit_transform(X.astype(float))
    expected = PCA(5, svd_solver="full").fit(Z)
    assert found.components is not None
    likeness = np.abs(np.sum(found.components.vectors * expected.components_, axis=1))
    np.testing.assert_allclose(likeness, 1, atol=1e-3)
    pipeline = Pipeline(found.steps())
    np.testing.assert_allclose(
        pipeline[-1].explained_variance_ratio_, expected.explained_variance_ratio_, rtol=1e-3
    )
    np.testing.assert_allclose(pipeline.transform(X), found.apply(X), atol=1e-3)


def test_constant_features_stay_finite(X):
    rows = ArrayRows(X)
    found = prepare(rows, moments(rows), normalize="standard")
    np.testing.assert_allclose(found.apply(X)[:, 7], 0, atol=1e-5)


def test_nothing_but_constants_is_refused():
    rows = ArrayRows(np.full((9, 4), 0.1, np.float32))
    with pytest.raises(DataError, match="all 4 features are constant"):
        prepare(rows, moments(rows), normalize="standard")


def test_more_components_than_rows_are_refused(X):
    rows = ArrayRows(X[:10])
    with pytest.raises(UsageError, match=r"at most 10 for 10 rows of 40 features, not 11"):
        prepare(rows, moments(rows), normalize="none", pca=11)
