"""Rows read by blocks, and what one pass tells of them, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfeat.svm.matrix import ArrayRows, SubsetRows, moments


@pytest.fixture
def X(rng) -> np.ndarray:
    X = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 40)) + 5
    X[:, 7] = 3.25
    return X.astype(np.float32)


@pytest.mark.parametrize("step", [1, 7, 100, 1000])
def test_moments_of_any_blocks_equal_numpy(X, step):
    found = moments(ArrayRows(X, rows_per_block=step))
    np.testing.assert_allclose(found.mean, X.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found.variance, X.var(axis=0, dtype=float), rtol=1e-5, atol=1e-9)
    assert (found.n_samples, found.bad_rows, found.first_bad_row) == (300, 0, -1)


def test_moments_survive_a_large_offset(rng):
    X = (1e4 + rng.standard_normal((5000, 3))).astype(np.float32)
    found = moments(ArrayRows(X, rows_per_block=64))
    np.testing.assert_allclose(found.variance, X.astype(float).var(axis=0), rtol=1e-4)


def test_moments_find_the_first_bad_row(X):
    X[[120, 33, 299], [0, 5, 9]] = np.nan, np.inf, -np.inf
    found = moments(ArrayRows(X, rows_per_block=50))
    assert (found.bad_rows, found.first_bad_row, found.n_samples) == (3, 33, 297)


def test_a_subset_is_the_rows_kept(X, rng):
    keep = rng.random(300) < 0.3
    rows = SubsetRows(ArrayRows(X, rows_per_block=17), keep)
    np.testing.assert_array_equal(np.concatenate([b for _, b in rows.blocks()]), X[keep])
    starts = [start for start, _ in rows.blocks()]
    assert starts[0] == 0
    np.testing.assert_array_equal(rows.take(np.array([0, 5])), X[keep][[0, 5]])
