"""`LinearSVM`: the scikit-learn face of the Newton solver."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from cnnfeat.errors import DataError, UsageError
from cnnfeat.pixels import unusable
from cnnfeat.svm.matrix import ArrayRows, Floats, RowBlocks, SubsetRows
from cnnfeat.svm.solver import Design, State, Targets, one_against_rest, solve

ClassWeight: TypeAlias = Literal["balanced"] | Mapping[object, float] | None

MEMORY_BYTES = 2 * 2**30


class LinearSVM(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear support vector machine: squared hinge, L2 penalty, one class against the rest.

    It minimises what ``LinearSVC(loss="squared_hinge", dual=False)`` minimises, the intercept
    penalised as one more weight, by the modified finite Newton method of Keerthi and DeCoste
    (JMLR 6, 2005). Float32 data are worked on in float32, sums are float64; float64 data in
    float64.

    Parameters
    ----------
    C : float
        The cost of errors, above 0.
    class_weight : mapping or "balanced", optional
        Factors of `C`, by class; as in liblinear, each applies to the class's own rows in its own
        column (and to both classes of a two-class problem).
    fit_intercept : bool
        Whether there is an intercept.
    tol : float
        A column is done when the Newton step promises less than this part of its objective.
    max_iter : int
        Newton steps allowed.
    warm_start : bool
        Whether `fit` starts from the last solution; use it along a path of growing `C`.
    memory_bytes : int
        How much may be used for active rows and Hessians.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,) or (1,)
    objective_ : ndarray of shape (n_classes,) or (1,)
        The minimum of each column.
    n_iter_ : int
        Newton steps taken.
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> float(LinearSVM(C=1e-4).fit(X[:1000], y[:1000]).score(X[1000:], y[1000:])) > 0.9
    True
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        class_weight: ClassWeight = None,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 500,
        warm_start: bool = False,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.memory_bytes = memory_bytes

    def fit(
        self, X: ArrayLike | RowBlocks, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LinearSVM:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or RowBlocks
            Rows in memory, or read by blocks.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), optional
            A factor of each row's cost.

        Returns
        -------
        LinearSVM
            Itself.

        Raises
        ------
        UsageError
            If a parameter is out of range.
        DataError
            If there are fewer than two classes, or features are immense.
        """
        self._check_parameters()
        rows, labels, weights = self._check_data(X, y, sample_weight)
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            found = f"one class: {classes[0]!r}" if len(classes) else "no class with a weight"
            raise DataError(f"a classifier needs at least 2 classes; the data hold {found}")
        factors = compute_class_weight(
            self.class_weight, classes=classes, y=labels, sample_weight=weights
        )
        columns = one_against_rest(len(classes), C=self.C, class_weight=factors)
        design = Design(rows, intercept=self.fit_intercept).hold(room_bytes=self.memory_bytes // 2)
        state = solve(
            design,
            Targets(codes, weights),
            columns,
            tol=self.tol,
            max_iter=self.max_iter,
            memory_bytes=self.memory_bytes - design.held_bytes,
            start=self._start(design, classes),
        )
        if not state.converged:
            warnings.warn(
                f"not converged within {self.max_iter} steps: raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.classes_ = classes
        self.n_features_in_ = rows.n_features
        self._learn(state, rows.n_features)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the distances to the planes, (n_samples, n_classes), or (n_samples,) for two."""
        check_is_fitted(self)
        checked = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        X = cast("Floats", checked)
        values: Floats = X @ self.coef_.T.astype(X.dtype) + self.intercept_.astype(X.dtype)
        return values[:, 0] if values.shape[1] == 1 else values

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the class of each row, (n_samples,)."""
        values = self.decision_function(X)
        places = values.argmax(axis=1) if values.ndim == 2 else (values > 0).astype(np.intp)
        return self.classes_[places]  # type: ignore[no-any-return]

    def _check_parameters(self) -> None:
        if not self.C > 0 or not np.isfinite(self.C):
            raise UsageError(f"C must be more than 0 and finite, not {self.C!r}")
        if not self.tol > 0:
            raise UsageError(f"tol must be more than 0, not {self.tol!r}")
        if self.max_iter < 1:
            raise UsageError(f"max_iter must be at least 1, not {self.max_iter!r}")

    def _check_data(
        self, X: ArrayLike | RowBlocks, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[RowBlocks, NDArray[np.generic], NDArray[np.float64] | None]:
        rows: RowBlocks
        if hasattr(X, "blocks"):
            rows = cast("RowBlocks", X)
            labels = np.asarray(y)
            if labels.shape != (rows.n_samples,):
                raise DataError(f"{rows.n_samples} rows, but labels of shape {labels.shape}")
        else:
            matrix, labels = validate_data(
                self, X, y, dtype=(np.float64, np.float32), y_numeric=False, order="C"
            )
            for row, reason in unusable(matrix).items():
                raise DataError(f"row {row}: {reason}", hint="scale them, as StandardScaler does")
            rows = ArrayRows(matrix)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, labels, dtype=np.float64, ensure_non_negative=True
            )
            if not weights.all():  # a row without weight is no row, and may be a class's only one
                kept = weights > 0
                rows, labels, weights = SubsetRows(rows, kept), labels[kept], weights[kept]
        return rows, labels, weights

    def _start(self, design: Design, classes: NDArray[np.generic]) -> State | None:
        if not self.warm_start or not hasattr(self, "coef_"):
            return None
        same = np.array_equal(self.classes_, classes)
        if not same or self.coef_.shape[1] + design.intercept != design.n_weights:
            return None
        weights = np.vstack([self.coef_.T, self.intercept_[None, : len(self.coef_)]])
        weights = weights[: design.n_weights].astype(np.float64)
        return State(weights=weights, decision=design.product(weights))

    def _learn(self, state: State, n_features: int) -> None:
        self.coef_ = np.ascontiguousarray(state.weights[:n_features].T)
        self.intercept_ = (
            state.weights[n_features].copy()
            if self.fit_intercept
            else np.zeros(state.weights.shape[1])
        )
        self.objective_ = state.objective
        self.n_iter_ = state.steps
