"""Probabilities: what decision values came to mean on rows that the machine was not fitted to.

What scikit-learn's `CalibratedClassifierCV` learns is two numbers a class. They are kept as plain
numbers beside the machine, which stays one that loads with nothing to trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from cnnfeat.documents import Count, take_up
from cnnfeat.errors import DataError
from cnnfeat.records import Json
from cnnfeat.svm.evaluation import margins
from cnnfeat.svm.matrix import Doubles, Floats


@dataclass(frozen=True, slots=True)
class Calibration:
    """A sigmoid for each class: the probability of a value v is 1 / (1 + exp(slope v + offset)).

    J. Platt, "Probabilistic outputs for support vector machines and comparisons to regularized
    likelihood methods", Advances in Large Margin Classifiers (1999) 61-74.
    """

    slopes: Doubles  # (n_classes,), or (1,) for two classes
    offsets: Doubles
    n_samples: int  # rows it was learned from

    def probabilities(self, values: Floats) -> Doubles:
        """Turn decision values into probabilities.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Of the machine that this was learned for.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Each row sums to 1.
        """
        columns = values.reshape(len(values), -1).astype(np.float64)
        found: Doubles = expit(-(self.slopes * columns + self.offsets))
        if found.shape[1] == 1:
            return np.hstack([1 - found, found])
        total = found.sum(axis=1, keepdims=True)
        alike = np.full_like(found, 1 / found.shape[1])
        shares: Doubles = np.divide(found, total, out=alike, where=total > 0)
        return shares

    def to_json(self) -> dict[str, Json]:
        """Make the record that a machine's file and `svm.json` keep."""
        return {
            "method": "sigmoid",
            "slopes": self.slopes.tolist(),
            "offsets": self.offsets.tolist(),
            "n_samples": self.n_samples,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object], *, n_classes: int) -> Calibration:
        """Take up such a record.

        Raises
        ------
        ValueError
            If it is none of this version.
        """
        facts = take_up(_Record, record, at="calibration")
        slopes, offsets = np.array(facts["slopes"]), np.array(facts["offsets"])
        expected = (n_classes if n_classes > 2 else 1,)
        if slopes.shape != expected or offsets.shape != expected:
            raise ValueError(f"a calibration of {slopes.shape} and {offsets.shape}, not {expected}")
        return cls(slopes, offsets, facts["n_samples"])


class _Record(TypedDict):
    method: Literal["sigmoid"]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    n_samples: Count


def fit_calibration(
    values: Floats, codes: NDArray[np.intp], *, classes: Sequence[str]
) -> Calibration:
    """Learn what decision values mean, from rows that the machine was not fitted to.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        The machine's decision values.
    codes : ndarray of shape (n_samples,)
        Class of each row: a place in `classes`.
    classes : sequence of str
        Their names.

    Raises
    ------
    DataError
        If a class has no such row.
    """
    missing = np.setdiff1d(np.arange(len(classes)), codes)
    if len(missing):
        raise DataError(
            f"probabilities are learned from rows that the machine was not fitted to, and "
            f"{len(missing)} of {len(classes)} classes have none: "
            + ", ".join(repr(classes[k]) for k in missing[:10])
        )
    columns = values.reshape(len(values), -1).astype(np.float64)
    everything = np.arange(len(codes))
    learned = CalibratedClassifierCV(
        FrozenEstimator(_Decided(len(classes))), cv=[(everything, everything)]
    ).fit(columns, codes)
    sigmoids = learned.calibrated_classifiers_[0].calibrators
    return Calibration(
        slopes=np.array([float(one.a_) for one in sigmoids]),
        offsets=np.array([float(one.b_) for one in sigmoids]),
        n_samples=len(codes),
    )


class _Decided(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A machine that has decided: its features are its decision values."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    @property
    def classes_(self) -> NDArray[np.intp]:
        return np.arange(self.n_classes)

    def fit(self, X: Doubles, y: NDArray[np.intp]) -> _Decided:  # noqa: ARG002 - as all have it
        """Nothing is left to learn."""
        return self

    def decision_function(self, X: Doubles) -> Doubles:
        """Give the values back."""
        return X[:, 0] if self.n_classes == 2 else X

    def predict(self, X: Doubles) -> NDArray[np.intp]:
        """Say which class each row is of."""
        return margins(self.decision_function(X))[0]

    def __sklearn_is_fitted__(self) -> bool:
        return True
