"""The first step against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfeat.svm.matrix import ArrayRows
from cnnfeat.svm.solver import steps
from cnnfeat.svm.solver.design import Design, Problem, Targets, one_against_rest


@pytest.mark.parametrize("held_copy", [False, True])
def test_first_step_of_many_rows_is_the_ridge_solution(held_copy):
    random = np.random.default_rng(4)
    n, d, C = 6_000, 160, 0.02
    X = random.standard_normal((n, d)) * np.geomspace(0.1, 3, d) + 0.2
    sampled = np.random.default_rng(0).choice(n, steps.SAMPLED * (d + 1), replace=False)
    X[:, 0] = 0.2
    X[np.setdiff1d(np.arange(n), sampled)[:3], 0] = 40  # a feature that the sample does not see
    y = np.arange(n) % 3
    scaling = {"mean": np.full(d, 0.2), "scale": np.full(d, 0.5)} if held_copy else {}
    design = Design(ArrayRows(X), **scaling).hold(room_bytes=2**30)
    assert design.held
    columns = one_against_rest(3, C=C)
    assert steps._sampling_pays(design, len(columns))
    problem = Problem(design, Targets(y), columns, check=lambda: None)
    factor, direction = steps.first_step(problem)
    Z = np.hstack([(X - 0.2) / 0.5 if held_copy else X, np.ones((n, 1))])
    hessian = np.eye(d + 1) + 2 * C * Z.T @ Z
    for k in range(3):
        right = 2 * C * Z.T @ np.where(y == k, 1.0, -1.0)
        exact = np.linalg.solve(hessian, right)
        error = direction[:, k] - exact
        assert error @ hessian @ error <= 0.02 * (exact @ hessian @ exact)
    # The factor is near enough the Hessian's to precondition with.
    eigenvalues = np.linalg.eigvals(factor.solve(np.asfortranarray(hessian))).real
    assert eigenvalues.max() / eigenvalues.min() < 10
