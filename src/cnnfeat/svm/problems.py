"""The two-class problems a solver works on at once: a column for each class and fold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.matrix import Floats, Indices

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the rows are, for all columns."""

    codes: NDArray[np.intp]  # (n_samples,) class of each row
    weights: Doubles | None = None  # (n_samples,), a factor of each row's cost
    folds: NDArray[np.intp] | None = None  # (n_samples,) fold of each row
    members: tuple[Indices, ...] = field(init=False)  # rows of each class

    def __post_init__(self) -> None:
        """List the rows of each class once."""
        order = np.argsort(self.codes, kind="stable")
        ends = np.cumsum(np.bincount(self.codes))
        object.__setattr__(self, "members", tuple(np.split(order, ends[:-1])))


@dataclass(frozen=True, slots=True)
class Columns:
    """The two-class problems, m of them."""

    positive: NDArray[np.intp]  # (m,) the class that is +1
    C_positive: Doubles  # (m,) the cost of its rows
    C_negative: Doubles  # (m,) the cost of all others
    held_out: NDArray[np.intp]  # (m,) the fold left out; -1: none

    def __len__(self) -> int:
        return len(self.positive)

    def scaled(self, factor: float) -> Columns:
        """The same problems with all costs times `factor`."""
        return replace(
            self, C_positive=self.C_positive * factor, C_negative=self.C_negative * factor
        )

    def slack(self, j: int, targets: Targets, decision: Floats) -> Floats:
        """Compute 1 - sign * decision of each row in column `j`, shape (n_samples,)."""
        return self.signed(j, targets, -decision) + decision.dtype.type(1)

    def signed(self, j: int, targets: Targets, values: Floats) -> Floats:
        """Multiply `values`, one a row, with the labels +1 and -1 of column `j`."""
        result: Floats = -values
        members = targets.members[self.positive[j]]
        result[members] = values[members]
        return result

    def signs(self, j: int, targets: Targets, rows: Indices) -> Doubles:
        """Labels of some rows in column `j`, +1 and -1."""
        return np.where(targets.codes[rows] == self.positive[j], 1.0, -1.0)

    def costs(self, j: int, targets: Targets, rows: Indices) -> Doubles:
        """Costs of some rows in column `j`; 0 in the fold left out."""
        positive = targets.codes[rows] == self.positive[j]
        costs: Doubles = np.where(positive, self.C_positive[j], self.C_negative[j])
        if targets.weights is not None:
            costs *= targets.weights[rows]
        if self.held_out[j] >= 0 and targets.folds is not None:
            costs[targets.folds[rows] == self.held_out[j]] = 0
        return costs
