"""The solver against liblinear, SciPy and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from cnnfeat.errors import DataError, UsageError
from cnnfeat.svm import LinearSVM
from cnnfeat.svm.matrix import ArrayRows
from cnnfeat.svm.solver import Columns, Design, Targets, solve
from cnnfeat.svm.solver.factors import Curvature
from cnnfeat.svm.solver.steps import streamed_step

EXPECTED_FAILURES: dict[str, str] = {}  # check: reason; none is needed


CHECKS = parametrize_with_checks(
    [LinearSVM(), LinearSVM(C=0.1, class_weight="balanced", warm_start=True)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)


# Before scikit-learn 1.9 they come one by one, which pytest doesn't take.
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def objective(
    X: np.ndarray,
    signs: np.ndarray,
    w: np.ndarray,
    b: float,
    *,
    costs: np.ndarray | float,
    intercept: bool = True,
) -> float:
    """The primal, written out: liblinear penalises the intercept as one more weight."""
    X, w = X.astype(np.float64), w.astype(np.float64)
    loss = np.maximum(0, 1 - signs * (X @ w + b)) ** 2
    return 0.5 * (w @ w + (b * b if intercept else 0)) + float(np.sum(costs * loss))


def minimum(
    X: np.ndarray, signs: np.ndarray, *, costs: np.ndarray | float, intercept: bool = True
) -> tuple[float, np.ndarray]:
    """The minimum by SciPy's L-BFGS in float64, run to the limit of its precision."""
    Z = X.astype(np.float64)
    if intercept:
        Z = np.hstack([Z, np.ones((len(Z), 1))])

    def value(w):
        rest = np.maximum(0, 1 - signs * (Z @ w))
        return 0.5 * w @ w + np.sum(costs * rest**2), w - 2 * Z.T @ (costs * signs * rest)

    w = np.zeros(Z.shape[1])
    with threadpool_limits(1, user_api="blas"):  # several would wait for each other, mostly
        for _ in range(3):
            w = minimize(
                value, w, jac=True, method="L-BFGS-B",
                options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10},
            ).x  # fmt: skip
    return float(value(w)[0]), w


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module", params=[1e-4, 1e-2, 1.0])
def minima(request, digits) -> tuple[float, list[float]]:
    """A value of C, and the least objective of each class."""
    X, y = digits
    C = request.param
    return C, [minimum(X, np.where(y == k, 1.0, -1.0), costs=C)[0] for k in range(10)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_objective_is_the_minimum_scipy_finds(digits, minima, dtype):
    X, y = digits
    C, least = minima
    model = LinearSVM(C=C, tol=1e-9).fit(X.astype(dtype), y)
    for k, expected in enumerate(least):
        signs = np.where(y == k, 1.0, -1.0)
        found = objective(X, signs, model.coef_[k], model.intercept_[k], costs=C)
        assert found == pytest.approx(expected, rel=1e-6)
        assert model.objective_[k] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("C", [1e-3, 0.1, 1.0])
def test_objective_and_predictions_equal_liblinear(digits, C):
    X, y = digits
    theirs = LinearSVC(C=C, dual=False, tol=1e-8, max_iter=100_000).fit(X, y)
    ours = LinearSVM(C=C, tol=1e-9).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3 * np.abs(theirs.coef_).max())
    assert np.mean(ours.predict(X) == theirs.predict(X)) > 0.999
    for k in range(10):
        signs = np.where(y == k, 1.0, -1.0)
        reached = objective(X, signs, theirs.coef_[k], theirs.intercept_[k], costs=C)
        assert ours.objective_[k] <= reached * (1 + 1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_two_classes_and_class_weights_equal_liblinear(fit_intercept):
    X, y = make_classification(300, 12, weights=[0.8], flip_y=0.1, random_state=3)
    y = np.array(["no", "yes"])[y]
    weights = {"no": 0.5, "yes": 3.0}
    theirs = LinearSVC(
        C=0.1, dual=False, tol=1e-9, max_iter=10_000,
        class_weight=weights, fit_intercept=fit_intercept,
    ).fit(X, y)  # fmt: skip
    ours = LinearSVM(C=0.1, tol=1e-12, class_weight=weights, fit_intercept=fit_intercept).fit(X, y)
    assert ours.coef_.shape == (1, 12)
    assert ours.intercept_.shape == (1,)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, np.ravel(theirs.intercept_), atol=1e-5)
    assert list(ours.predict(X[:50])) == list(theirs.predict(X[:50]))
    assert ours.decision_function(X).shape == (300,)


def test_class_weight_of_several_classes_equals_liblinear(digits):
    X, y = digits[0][:500], digits[1][:500]
    theirs = LinearSVC(C=0.01, dual=False, tol=1e-9, class_weight={3: 5.0, 4: 0.2}).fit(X, y)
    ours = LinearSVM(C=0.01, tol=1e-12, class_weight={3: 5.0, 4: 0.2}).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)


def test_sample_weight_counts_like_repeated_rows(digits):
    X, y = digits[0][:400], digits[1][:400]
    times = np.random.default_rng(0).integers(0, 4, 400)
    kept = times > 0
    weighted = LinearSVM(C=0.01, tol=1e-12).fit(X, y, sample_weight=times)
    repeated = LinearSVM(C=0.01, tol=1e-12).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-7)
    dropped = LinearSVM(C=0.01, tol=1e-12).fit(X[kept], y[kept], sample_weight=times[kept])
    np.testing.assert_allclose(weighted.coef_, dropped.coef_, atol=1e-7)


def _degenerate() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(5)
    X = random.standard_normal((120, 6))
    y = random.integers(0, 3, 120)
    wide = random.standard_normal((20, 300))
    apart = random.standard_normal((80, 4)) + 50 * np.arange(80)[:, None] // 40 * 50
    rows_of_zeros = X.copy()
    rows_of_zeros[::2] = 0
    return {
        "duplicate columns": (np.hstack([X, X, X[:, :1]]), y),
        "one feature": (X[:, :1], y),
        "more features than rows": (wide, np.arange(20) % 2),
        "separable": (apart, np.arange(80) // 40),
        "rows of zeros": (rows_of_zeros, y),
        "all zeros": (np.zeros((30, 3)), np.arange(30) % 3),
        "equal rows of different classes": (np.ones((30, 3)), np.arange(30) % 3),
        "large offset": (X + 1e4, y),
        "tiny scale": (X * 1e-6, y),
        "huge scale": (X * 1e6, y),
        "a constant column": (np.hstack([X, np.full((120, 1), 7.0)]), y),
        "two rows": (X[:2], np.array([0, 1])),
    }


@pytest.mark.parametrize("name", _degenerate())
def test_degenerate_data_reach_the_minimum(name):
    X, y = _degenerate()[name]
    model = LinearSVM(C=0.5, tol=1e-10).fit(X, y)
    columns = model.classes_ if len(model.classes_) > 2 else model.classes_[1:]
    for k, label in enumerate(columns):
        signs = np.where(y == label, 1.0, -1.0)
        expected, _ = minimum(X, signs, costs=0.5)
        found = objective(X, signs, model.coef_[k], model.intercept_[k], costs=0.5)
        assert found <= expected * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("n_classes", [2, 3, 17, 100])
def test_any_number_of_classes(n_classes):
    random = np.random.default_rng(n_classes)
    centres = random.standard_normal((n_classes, 30))
    y = np.arange(6 * n_classes) % n_classes
    X = centres[y] + 0.3 * random.standard_normal((len(y), 30))
    model = LinearSVM(C=0.1, tol=1e-9).fit(X.astype(np.float32), y)
    assert model.coef_.shape == (1 if n_classes == 2 else n_classes, 30)
    assert model.score(X, y) > 0.8
    signs = np.where(y == 1, 1.0, -1.0)
    expected, _ = minimum(X, signs, costs=0.1)
    assert model.objective_[min(1, len(model.coef_) - 1)] == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(2, 60),
    d=st.integers(1, 20),
    log_C=st.floats(-5, 4),
    log_scale=st.floats(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradient_vanishes_on_random_problems(n, d, log_C, log_scale, seed):
    random = np.random.default_rng(seed)
    rank = random.integers(1, 21)
    X = random.standard_normal((n, min(rank, d))) @ random.standard_normal((min(rank, d), d))
    X *= 10**log_scale
    y = random.integers(0, 2, n)
    y[:2] = 0, 1
    C = 10**log_C
    model = LinearSVM(C=C, tol=1e-12, max_iter=2_000).fit(X, y)
    Z, signs = np.hstack([X, np.ones((n, 1))]), np.where(y == 1, 1.0, -1.0)
    w = np.append(model.coef_[0], model.intercept_[0])
    pull = 2 * C * Z.T @ (signs * np.maximum(0, 1 - signs * (Z @ w)))
    # The gap to the minimum is at most half the squared gradient: the objective is 1-convex.
    gap = 0.5 * np.sum((w - pull) ** 2)
    loose = objective(X, signs, np.zeros(d), 0.0, costs=C)
    assert gap <= 1e-6 * model.objective_[0] or model.objective_[0] <= 1e-9 * loose


@settings(max_examples=25, deadline=None)
@given(step=st.integers(1, 400), seed=st.integers(0, 100))
def test_blocks_of_any_size_give_the_same_answer(step, seed):
    X, y = load_digits(return_X_y=True)
    X, y = X[:300].astype(np.float32) / 4, y[:300]
    whole = LinearSVM(C=0.01, tol=1e-8).fit(X, y)
    parts = LinearSVM(C=0.01, tol=1e-8).fit(ArrayRows(X, rows_per_block=step), y)
    np.testing.assert_allclose(parts.objective_, whole.objective_, rtol=1e-5)


def test_without_room_for_active_rows_the_answer_is_the_same(digits):
    X, y = digits[0].astype(np.float32), digits[1]
    whole = LinearSVM(C=0.01, tol=1e-8).fit(X, y)
    squeezed = LinearSVM(C=0.01, tol=1e-8, memory_bytes=200_000).fit(
        ArrayRows(X, rows_per_block=100), y
    )
    np.testing.assert_allclose(squeezed.objective_, whole.objective_, rtol=1e-4)


@pytest.mark.parametrize("C", [1e-4, 1e-2])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_more_features_than_hessians_are_made_for_fit_in_little_memory(C, mean):
    random = np.random.default_rng(6)
    X = np.maximum(random.standard_normal((400, 4_200)) + mean, 0).astype(np.float32)
    y = np.arange(400) % 3
    X[:, :3] += 3 * np.eye(3)[y]
    theirs = LinearSVC(C=C, dual=True, tol=1e-8, max_iter=100_000).fit(X, y)
    rows = ArrayRows(X, rows_per_block=64)
    ours = LinearSVM(C=C, tol=1e-7, memory_bytes=2**20).fit(rows, y)  # the rows are 6.7 MB
    held = LinearSVM(C=C, tol=1e-7).fit(X, y)
    for k in range(3):
        signs = np.where(y == k, 1.0, -1.0)
        reached = objective(X, signs, theirs.coef_[k], theirs.intercept_[k], costs=C)
        assert ours.objective_[k] == pytest.approx(reached, rel=1e-5)
        assert held.objective_[k] == pytest.approx(reached, rel=1e-5)


@pytest.mark.parametrize(
    ("memory_bytes", "expected"), [(600_000, "forgotten"), (200_000, "streamed in turns")]
)
def test_where_not_all_hessians_fit_the_minima_are_the_same(
    digits, memory_bytes, expected, monkeypatch
):
    X, y = digits[0].astype(np.float32), digits[1]
    seen = set()

    def step(problem, live, **rest):
        if len(live) < 10:
            seen.add("streamed in turns")
        return streamed_step(problem, live, **rest)

    forget = Curvature.forget
    monkeypatch.setattr("cnnfeat.svm.solver.newton.streamed_step", step)
    monkeypatch.setattr(
        Curvature, "forget", lambda self: (self.factor and seen.add("forgotten"), forget(self))
    )
    squeezed = LinearSVM(C=0.01, tol=1e-8, memory_bytes=memory_bytes).fit(
        ArrayRows(X, rows_per_block=100), y
    )
    assert expected in seen
    for k in range(10):
        least, _ = minimum(X, np.where(y == k, 1.0, -1.0), costs=0.01)
        assert squeezed.objective_[k] == pytest.approx(least, rel=1e-5)


def test_columns_have_objectives_though_steps_run_out(digits):
    X, y = digits[0].astype(np.float32), digits[1]
    with pytest.warns(ConvergenceWarning):
        short = LinearSVM(C=1, max_iter=1, memory_bytes=200_000).fit(
            ArrayRows(X, rows_per_block=100), y
        )
    assert np.isfinite(short.objective_).all()


@pytest.mark.parametrize("seed", range(8))
def test_folds_along_a_path_of_C_reach_their_minima(seed):
    random = np.random.default_rng(seed)
    n, d, n_classes, n_folds = int(random.integers(60, 200)), int(random.integers(2, 20)), 3, 3
    X = random.standard_normal((n, d)) * 10 ** random.uniform(-2, 1, d)
    y, folds = np.arange(n) % n_classes, random.integers(0, n_folds, n)
    columns = Columns(
        positive=np.tile(np.arange(n_classes), n_folds),
        C_positive=np.ones(n_classes * n_folds),
        C_negative=np.full(n_classes * n_folds, 0.5),
        held_out=np.repeat(np.arange(n_folds), n_classes),
    )
    state = None
    for C in (1e-3, 0.1, 10.0):
        state = solve(
            Design(ArrayRows(X)), Targets(y, folds=folds), columns.scaled(C),
            tol=1e-6, max_iter=500, memory_bytes=2**24, start=state,
        )  # fmt: skip
        assert state.converged
        for j in range(0, len(columns), 4):
            signs = np.where(y == columns.positive[j], 1.0, -1.0)
            costs = C * np.where(signs > 0, 1.0, 0.5) * (folds != columns.held_out[j])
            expected, _ = minimum(X, signs, costs=costs)
            w = state.weights[:, j]
            assert objective(X, signs, w[:-1], w[-1], costs=costs) <= expected * (1 + 3e-6)


def test_folds_of_fewer_rows_than_weights_end_within_the_tolerance():
    """Each fold's Hessian lacks directions that its class's preconditioner has."""
    random = np.random.default_rng(7)
    n, d, n_folds, tol = 160, 200, 4, 1e-3
    X = random.standard_normal((n, d))
    y, folds = np.arange(n) % 2, random.permutation(np.arange(n) % n_folds)
    columns = Columns(
        positive=np.ones(n_folds, np.intp),
        C_positive=np.ones(n_folds),
        C_negative=np.ones(n_folds),
        held_out=np.arange(n_folds),
    )
    state, signs = None, 2.0 * y - 1
    for C in (1e-4, 1e-3, 0.1):
        state = solve(
            Design(ArrayRows(X)), Targets(y, folds=folds), columns.scaled(C),
            tol=tol, max_iter=100, memory_bytes=2**26, start=state,
        )  # fmt: skip
        assert state.converged
        for j in range(n_folds):
            costs = C * (folds != j)
            expected, _ = minimum(X, signs, costs=costs)
            w = state.weights[:, j]
            assert objective(X, signs, w[:-1], w[-1], costs=costs) <= expected * (1 + tol)


def test_warm_start_reaches_the_same_minimum_in_fewer_steps(digits):
    X, y = digits
    cold = LinearSVM(C=0.3, tol=1e-9).fit(X, y)
    warm = LinearSVM(C=0.1, tol=1e-9, warm_start=True).fit(X, y)
    warm.set_params(C=0.3).fit(X, y)
    np.testing.assert_allclose(warm.objective_, cold.objective_, rtol=1e-7)
    assert warm.n_iter_ < cold.n_iter_


def test_works_in_a_pipeline_and_a_grid_search(digits):
    X, y = digits[0][:600], digits[1][:600]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LinearSVM()), {"linearsvm__C": [1e-3, 1e-2]}, cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.8
    assert clone(search.best_estimator_).get_params()["linearsvm__C"] in (1e-3, 1e-2)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"C": 0}, "C must be more than 0"),
        ({"C": -1.0}, "not -1.0"),
        ({"C": float("nan")}, "C must be more than 0"),
        ({"tol": 0}, "tol must be more than 0"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, words):
    with pytest.raises(UsageError, match=words):
        LinearSVM(**parameters).fit(np.eye(4), [0, 1, 0, 1])


def test_one_class_is_refused():
    with pytest.raises(DataError, match="one class: "):
        LinearSVM().fit(np.eye(4), [7, 7, 7, 7])


def test_labels_must_match_blocks():
    with pytest.raises(DataError, match="4 rows, but labels"):
        LinearSVM().fit(ArrayRows(np.eye(4)), [0, 1])


def test_predicting_before_fitting_is_refused():
    with pytest.raises(NotFittedError):
        LinearSVM().predict(np.eye(4))


def test_too_few_steps_are_said(digits):
    with pytest.warns(ConvergenceWarning, match="not converged within 1 steps"):
        LinearSVM(C=1.0, tol=1e-12, max_iter=1).fit(*digits)
