"""The exact minimum of an L2-SVM objective along a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.matrix import Floats

Doubles = NDArray[np.float64]

STEPS = 50
REACH = 2.0  # step lengths looked at first


def step_length(
    *, slack: Floats, slope: Floats, costs: Doubles, w: Doubles, step: Doubles
) -> float:
    """Find the best step length of one column, looking only at rows that can matter up to it.

    Parameters
    ----------
    slack : ndarray of shape (n_samples,)
        What each row lacks now.
    slope : ndarray of shape (n_samples,)
        What it gains along the whole step.
    costs : ndarray of shape (n_samples,)
        Its cost.
    w, step : ndarray of shape (n_weights,)
        The weights, and the step.

    Returns
    -------
    float
        0 where the step does not descend.
    """
    reach = REACH
    while True:
        rows = np.flatnonzero((slack > 0) | (slack > reach * slope))
        length = line_minimum(
            slack=slack[rows].astype(np.float64),
            slope=slope[rows].astype(np.float64),
            costs=costs[rows],
            linear=float(np.einsum("i,i->", w, step)),
            quadratic=float(np.einsum("i,i->", step, step)),
        )
        if length <= reach:
            return length
        reach *= 8


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
