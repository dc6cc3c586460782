"""The exact minimum of an L2-SVM objective along a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

STEPS = 50


def line_minimum(
    *, slack: Doubles, slope: Doubles, costs: Doubles, linear: float, quadratic: float
) -> float:
    """Find the t > 0 that minimises an objective along a direction.

    The objective is ``linear * t + quadratic / 2 * t^2 + sum_i costs_i max(0, slack_i -
    t * slope_i)^2``. Newton's method on its derivative, which is piecewise linear and grows,
    kept inside a bracket: it ends on the piece that holds the zero.

    Parameters
    ----------
    slack : ndarray of shape (n_samples,)
        What each row lacks at t = 0.
    slope : ndarray of shape (n_samples,)
        What it gains with t.
    costs : ndarray of shape (n_samples,)
        Its cost.
    linear : float
        The penalty's slope at t = 0.
    quadratic : float
        The penalty's curvature.

    Returns
    -------
    float
        0 where the direction does not descend.
    """

    def derivatives(t: float) -> tuple[float, float]:
        rest = slack - t * slope
        pull = 2 * costs * slope * (rest > 0)
        first = linear + quadratic * t - float(np.einsum("i,i->", pull, rest))
        return first, quadratic + float(np.einsum("i,i->", pull, slope))

    first, second = derivatives(0.0)
    if not first < 0 or not second > 0:
        return 0.0
    low, high, t = 0.0, np.inf, 1.0
    for _ in range(STEPS):
        first, second = derivatives(t)
        if first < 0:
            low = t
        else:
            high = t
        new = t - first / second
        if not low < new < high:
            new = (low + high) / 2 if np.isfinite(high) else 2 * t
        if abs(new - t) <= 1e-6 * t:
            return new
        t = new
    return t
