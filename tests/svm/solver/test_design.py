"""Products with scaled rows that are never scaled."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfeat.svm.matrix import ArrayRows
from cnnfeat.svm.solver import Design


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e5])
def test_products_with_folded_scaling_equal_scaled_copies(rng, offset):
    X = (rng.standard_normal((200, 9)) + offset).astype(np.float32)
    mean, scale = X.mean(axis=0, dtype=float), X.std(axis=0, dtype=float)
    W = rng.standard_normal((10, 4))
    design = Design(ArrayRows(X, rows_per_block=33), mean=mean, scale=scale)
    expected = (X.astype(float) - mean) / scale @ W[:9] + W[9]
    np.testing.assert_allclose(design.product(W).T, expected, atol=2e-3)
    rows = np.array([3, 50, 199])
    np.testing.assert_allclose(design.take(rows) @ W, expected[rows], atol=2e-3)
