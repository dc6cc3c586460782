"""Which rows each class looks at between two full passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cnnfeat.svm.factors import Curvature
from cnnfeat.svm.matrix import Floats, Indices
from cnnfeat.svm.problems import Columns, Targets


@dataclass(frozen=True, slots=True)
class Group:
    """The live columns of one class, and the rows looked at."""

    positive: int  # the class
    places: Indices  # of its columns among the live ones
    columns: Indices
    rows: Indices  # ascending


def pick_groups(
    columns: Columns,
    targets: Targets,
    live: Indices,
    *,
    decision: Floats,
    curvatures: Mapping[int, Curvature],
    near: float,
) -> list[Group]:
    """Pick for each class the rows that are active, or nearly so, in any of its live columns.

    Parameters
    ----------
    columns : Columns
        The problems.
    targets : Targets
        The rows' classes.
    live : ndarray of shape (n_live,)
        Which columns are not done.
    decision : ndarray of shape (m, n_samples)
        The rows' decision values.
    curvatures : mapping of int to Curvature
        By class; rows that are in one's sum are looked at too.
    near : float
        Rows whose margin is less than 1 + `near` are looked at.
    """
    groups = []
    classes = columns.positive[live]
    for k in np.unique(classes):
        places = np.flatnonzero(classes == k)
        picked = np.zeros(decision.shape[1], np.bool_)
        for j in live[places]:
            rows = np.flatnonzero(columns.slack(j, targets, decision[j]) > -near)
            picked[rows[columns.costs(j, targets, rows) > 0]] = True
        if int(k) in curvatures:
            picked[curvatures[int(k)].rows] = True
        groups.append(Group(int(k), places, live[places], np.flatnonzero(picked)))
    return groups


def union_of(groups: list[Group], n_samples: int) -> Indices:
    """All rows that any group looks at, ascending."""
    if len(groups) == 1:
        return groups[0].rows
    marked = np.zeros(n_samples, np.bool_)
    for group in groups:
        marked[group.rows] = True
    return np.flatnonzero(marked)
