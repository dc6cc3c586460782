"""How good a machine is: counts, intervals, and which of two is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from cnnfeat.result import ClassScore, MacroScores, McNemar

Codes = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Scores:
    """What predictions are worth. Fractions, 0 to 1."""

    n_samples: int
    accuracy: float
    interval: tuple[float, float]  # Wilson, 95 %
    balanced_accuracy: float  # mean recall of the classes that occur
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]  # (n_classes, n_classes), true classes down
    macro: MacroScores


def score(
    labels: Codes,
    predicted: Codes,
    *,
    classes: Sequence[str],
    roc_auc: float | None = None,
) -> Scores:
    """Compare class codes, both of shape (n_samples,); the area is handed on."""
    n = len(classes)
    confusion = np.zeros((n, n), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    right = np.diag(confusion)
    support, taken = confusion.sum(axis=1), confusion.sum(axis=0)
    recall = right / np.maximum(support, 1)
    precision = right / np.maximum(taken, 1)
    f1 = 2 * right / np.maximum(support + taken, 1)
    occurring = np.array([precision, recall, f1])[:, support + taken > 0]
    means = occurring.mean(axis=1) if occurring.size else np.zeros(3)
    return Scores(
        n_samples=len(labels),
        accuracy=float(right.sum() / max(1, len(labels))),
        interval=wilson_interval(int(right.sum()), len(labels)),
        balanced_accuracy=float(recall[support > 0].mean()) if support.any() else 0.0,
        per_class=tuple(
            ClassScore(name, float(p), float(r), float(f), int(s))
            for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        ),
        confusion=confusion,
        macro=MacroScores(
            precision=float(means[0]),
            recall=float(means[1]),
            f1=float(means[2]),
            roc_auc=roc_auc,
        ),
    )


def mean_roc_auc(labels: Codes, values: NDArray[np.floating]) -> float | None:
    """Average over the classes the area under the curve of one against the rest.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        True class codes.
    values : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        Decision values, by which the rows are ranked.

    Returns
    -------
    float or None
        Of the classes that some rows are of and others are not; None where there is none.
    """
    columns = {1: values} if values.ndim == 1 else dict(enumerate(values.T))
    areas = [
        float(roc_auc_score(labels == k, column))
        for k, column in columns.items()
        if 0 < np.count_nonzero(labels == k) < len(labels)
    ]
    return float(np.mean(areas)) if areas else None


def wilson_interval(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the score interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    if trials == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def interval_in_turn(accuracy: float, n_samples: int, *, folds: int) -> tuple[float, float]:
    """Return the interval of a cross-validated share, which is wider: folds share training rows.

    The variance is 1 + folds / (folds - 1) times that of as many independent rows; C. Nadeau and
    Y. Bengio, "Inference for the generalization error", Machine Learning 52 (2003) 239-281.
    """
    independent = max(1, round(n_samples / (1 + folds / (folds - 1))))
    return wilson_interval(round(accuracy * independent), independent)


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemar:
    """Test exactly (binomial, two-sided) whether two machines err equally often.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947) 153-157.
    """
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    differing = only_first + only_second
    p_value = 1.0 if not differing else float(stats.binomtest(only_first, differing).pvalue)
    return McNemar(only_first, only_second, p_value)


def margins(values: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Turn decision values into predicted codes and margins.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        One column a class; for two classes, above 0 means the second.

    Returns
    -------
    predicted : ndarray of shape (n_samples,)
    margin : ndarray of shape (n_samples,)
        How far the highest value lies above the second; for two classes, the distance from 0.
    """
    if values.ndim == 1:
        return (values > 0).astype(np.intp), np.abs(values).astype(np.float64)
    predicted = values.argmax(axis=1)
    top = np.partition(values, -2, axis=1)[:, -2:]
    return predicted, np.abs(top[:, 1] - top[:, 0]).astype(np.float64)
