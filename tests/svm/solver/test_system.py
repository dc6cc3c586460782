"""Conjugate gradients against NumPy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cnnfeat.svm.solver.factors import Change, Factor, LossHessian
from cnnfeat.svm.solver.system import conjugate_gradients


def test_conjugate_gradients_do_without_a_change_that_rounding_spoiled():
    random = np.random.default_rng(6)
    loss = LossHessian(8, np.dtype(np.float64))
    rows = random.standard_normal((30, 8))
    loss.add(rows, np.ones(30))
    factor = loss.factor(1.0)
    spoiled = replace(factor, change=Change(np.eye(8), 2 * np.eye(8)))  # I - 2 I in the middle
    right = random.standard_normal((8, 3))
    found, met = conjugate_gradients(
        lambda p, _: rows.T @ (rows @ p), right, factor=spoiled, tolerance=1e-8, check=lambda: None
    )
    assert met.all()
    expected = np.linalg.solve(np.eye(8) + rows.T @ rows, right)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_conjugate_gradients_say_which_columns_fell_short(monkeypatch):
    monkeypatch.setattr("cnnfeat.svm.solver.system.CG_LIMIT", 2)
    diagonal = np.geomspace(1, 1e6, 12)
    right = np.ones((12, 2))
    right[1:, 1] = 0  # one iteration will do
    _, met = conjugate_gradients(
        lambda p, _: p * diagonal[:, None], right,
        factor=Factor(), tolerance=1e-6, check=lambda: None,
    )  # fmt: skip
    assert list(met) == [False, True]
