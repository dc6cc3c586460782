"""Factors of Hessians, and BLAS by pointer, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfeat.svm.solver import blas, factors
from cnnfeat.svm.solver.factors import ActiveRows, Curvature, LossHessian


@pytest.fixture(params=["by pointer", "without pointers"])
def routines(request, monkeypatch):
    if request.param == "without pointers":
        monkeypatch.setattr(blas, "_routine", lambda _name, _dtype: None)
    else:
        assert blas._routine("trsv", "float32") is not None
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [0, 7, 600])
def test_products_are_added(dtype, n_rows):
    rows = np.random.default_rng(0).standard_normal((n_rows, 5))
    total = np.asfortranarray(np.full((5, 5), 2.0, dtype))
    factors.add_products(rows.astype(dtype), -1.5, total)
    np.testing.assert_allclose(total, 2 - 1.5 * rows.T @ rows, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("routines")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_columns", [1, 3, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_triangles_are_solved(dtype, n_columns, transposed):
    random = np.random.default_rng(1)
    full = random.standard_normal((6, 6)) + 6 * np.eye(6)
    right = random.standard_normal((6, n_columns))
    columns = np.asfortranarray(right.astype(dtype))
    factors.solve_triangle(np.asfortranarray(full.astype(dtype)), columns, transposed=transposed)
    lower = np.tril(full)
    expected = np.linalg.solve(lower.T if transposed else lower, right)
    np.testing.assert_allclose(columns, expected, rtol=1e-4, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused():
    lower, columns = np.eye(3, order="F"), np.zeros((3, 2), order="F")
    with pytest.raises(ValueError, match="types, shapes or orders"):
        factors.solve_triangle(lower.astype(np.float32), columns, transposed=False)
    with pytest.raises(ValueError, match="types, shapes or orders"):
        factors.solve_triangle(lower, np.zeros((3, 2)), transposed=False)
    with pytest.raises(ValueError, match="types, shapes or orders"):
        factors.add_products(np.zeros((4, 2)), 1.0, lower)
    with pytest.raises(TypeError, match="takes 8 arguments, not 1"):
        blas._routine("trsv", "float64")(b"L")


def test_a_changed_factor_solves_for_rows_added_and_taken_away():
    random = np.random.default_rng(2)
    rows = random.standard_normal((90, 30))
    costs = np.linspace(0.5, 2, 90)
    loss = LossHessian(30, np.dtype(np.float64))
    loss.add(rows[:60], costs[:60])
    changed = loss.factor(3.0).changed(rows[50:], 3 * np.r_[-costs[50:60], costs[60:]])
    kept = np.r_[0:50, 60:90]
    hessian = np.eye(30) + 3 * (rows[kept].T * costs[kept]) @ rows[kept]
    right = random.standard_normal((30, 4))
    np.testing.assert_allclose(changed.solve(right), np.linalg.solve(hessian, right), rtol=1e-8)


def test_a_change_that_takes_away_more_than_there_is_is_refused():
    rows = np.random.default_rng(3).standard_normal((40, 10))
    loss = LossHessian(10, np.dtype(np.float64))
    loss.add(rows, np.ones(40))
    factor = loss.factor(1.0)
    assert factor.changed(rows[:5], np.full(5, -1.0)) is not None
    assert factor.changed(rows, np.full(40, -2.0)) is None


@pytest.mark.parametrize("keep_sum", [True, False])
def test_curvature_follows_the_active_rows(keep_sum, monkeypatch):
    random = np.random.default_rng(4)
    X = random.standard_normal((200, 24))
    curvature, made = Curvature(), []
    renew = Curvature.renew
    monkeypatch.setattr(
        Curvature, "renew", lambda self, *a, **k: (made.append(1), renew(self, *a, **k))[1]
    )
    active = np.zeros(200, np.bool_)
    active[:80] = True
    looked_at = np.arange(150)
    # Steps that change few rows, many, none, all, and then the C.
    steps = ((0, 0.5), (5, 0.5), (60, 0.5), (0, 0.5), (150, 0.5), (2, 5.0))
    for flips, scale in steps:
        active[random.choice(150, flips, replace=False)] ^= True
        costs = np.where(active[:150], np.nextafter(1.0, 2) if flips == 60 else 1.0, 0.0)
        factor = curvature.factor_for(
            ActiveRows(X[:150].copy(), looked_at, costs, scale), check=lambda: None
        )
        hessian = np.eye(24) + scale * X[active].T @ X[active]
        np.testing.assert_allclose(
            factor.solve(np.eye(24)), np.linalg.inv(hessian), atol=1e-10, rtol=1e-7
        )
        if not keep_sum:
            curvature.keep_factor_only()
    assert len(made) == 4  # not for 5 rows, and not for none


def test_costs_that_differ_by_rounding_are_the_same():
    rows, costs = np.random.default_rng(5).standard_normal((50, 6)), np.full(50, 1 / 3)
    curvature = Curvature()
    first = curvature.factor_for(ActiveRows(rows, np.arange(50), costs, 1.0), check=lambda: None)
    other = ActiveRows(rows, np.arange(50), np.nextafter(costs, 1), 1.0)
    assert curvature.factor_for(other, check=lambda: None) is first


def test_what_overflows_leaves_the_identity():
    loss = LossHessian(2, np.dtype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        loss.add(np.full((3, 2), 1e30, np.float32), np.ones(3))
        factor = loss.factor(1.0)
    np.testing.assert_array_equal(factor.solve(np.ones((2, 1), np.float32)), np.ones((2, 1)))


def test_a_sum_that_rounding_made_indefinite_is_factorised_with_a_ridge():
    loss = LossHessian(3, np.dtype(np.float32))
    loss.add_diagonal(np.array([1e6, 1e6, -1.2]))  # 1 - 1.2 in the corner
    found = loss.factor(1.0).solve(np.array([[1e6], [0], [0]], np.float32))
    np.testing.assert_allclose(found[:2, 0], [1, 0], atol=1e-3)
