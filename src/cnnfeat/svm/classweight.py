"""Factors of C, one a class: what `class_weight` means for the rows at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import UsageError, near_names
from cnnfeat.svm.matrix import Doubles


def class_factors(
    class_weight: Literal["balanced"] | Sequence[tuple[str, float]] | Mapping[str, float],
    codes: NDArray[np.intp],
    *,
    classes: Sequence[str],
) -> Doubles:
    """Say how much an error costs in each class, as a factor of C.

    Parameters
    ----------
    class_weight : "balanced", or pairs of a class's name and its factor
        Balanced: n_samples / (n_classes * rows of the class), as in scikit-learn. Classes that are
        not named have 1.
    codes : ndarray of shape (n_samples,)
        Class of each row: a place in `classes`.
    classes : sequence of str
        Their names.

    Returns
    -------
    ndarray of shape (n_classes,)

    Raises
    ------
    UsageError
        If a class is named that is none; with near names.
    """
    if class_weight == "balanced":
        counts = np.bincount(codes, minlength=len(classes))
        balanced: Doubles = len(codes) / (len(classes) * np.maximum(counts, 1))
        return balanced
    factors = np.ones(len(classes))
    named = dict(class_weight)
    check_named(named, classes)
    for name, factor in named.items():
        factors[classes.index(name)] = factor
    return factors


def check_named(names: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse names that are no classes.

    Raises
    ------
    UsageError
        With the first such name; near names are in the hint.
    """
    for name in names:
        if name not in classes:
            listed = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise UsageError(
                f"class weight for {name!r}, which is no class of these rows: {listed}",
                hint=near_names(name, classes),
            )


def weight_by_code(factors: Doubles) -> dict[int, float] | None:
    """The same as scikit-learn's machines take it; None where all are 1."""
    return None if np.all(factors == 1) else dict(enumerate(factors.tolist()))
