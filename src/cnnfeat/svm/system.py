"""The Newton equations of some columns, and conjugate gradients that solve them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.svm.factors import Factor
from cnnfeat.svm.rows import CHUNK_BYTES, Floats, Indices

Doubles = NDArray[np.float64]

CG_TOLERANCE = 0.1  # of the residual, in the preconditioner's norm
CG_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Active:
    """The active rows of one column."""

    rows: Indices
    pull: Floats  # cost * sign * (1 - margin) of each: minus half its gradient
    costs: Floats

    def between(self, start: int, stop: int) -> Active:
        """Those from row `start` to row `stop`."""
        part = slice(*np.searchsorted(self.rows, (start, stop)))
        return Active(self.rows[part], self.pull[part], self.costs[part])


class System:
    """The Newton equations of some columns over the gathered rows active in any of them."""

    def __init__(self, gathered: Floats, rows: Indices, active: list[Active]) -> None:
        self.active = active
        self._gathered = gathered
        shape = (len(rows), len(active))
        self._pull = np.zeros(shape, gathered.dtype)
        self._costs = np.zeros(shape, gathered.dtype)
        self._places = []
        for k, column in enumerate(active):
            place = np.searchsorted(rows, column.rows)
            self._pull[place, k] = 2 * column.pull
            self._costs[place, k] = 2 * column.costs
            self._places.append(place)

    @property
    def n_rows(self) -> int:
        """Rows active in any column."""
        return len(self._gathered)

    def pull(self) -> Doubles:
        """Minus the gradient of the loss, (n_weights, n_columns)."""
        total = np.zeros((self._gathered.shape[1], len(self.active)))
        for part, chunk in self._chunks():
            total += chunk.T @ self._pull[part]
        return total

    def hessian(self, k: int) -> Floats:
        """The Hessian of column `k`, (n_weights, n_weights)."""
        d = self._gathered.shape[1]
        total = np.zeros((d, d), self._gathered.dtype)
        place, costs = self._places[k], self.active[k].costs
        even = len(costs) > 0 and bool(np.all(costs == costs[0]))
        step = max(2048, d)
        for start in range(0, len(place), step):
            rows = self._gathered[place[start : start + step]]
            if not even:
                rows *= np.sqrt(2 * costs[start : start + step, None])
            total += rows.T @ rows
        if even:
            total *= 2 * costs[0]
        total.flat[:: d + 1] += 1
        return total

    def diagonal(self, k: int) -> Factor:
        """The Hessian's diagonal, as a preconditioner."""
        total = np.ones(self._gathered.shape[1])
        for part, chunk in self._chunks():
            total += (chunk * chunk).T @ self._costs[part, k]
        return Factor(diagonal=total.astype(self._gathered.dtype))

    def solve(self, right: Doubles, factors: list[Factor]) -> tuple[Doubles, NDArray[np.intp]]:
        """Solve by preconditioned conjugate gradients, all columns at once.

        Returns
        -------
        solution : ndarray of shape (n_weights, n_columns)
        iterations : ndarray of shape (n_columns,)
        """
        dtype = self._gathered.dtype
        residual = np.asfortranarray(right, dtype)
        solution = np.zeros_like(residual)
        z = _apply(factors, residual)
        p = z.copy()
        rho = _dots(residual, z)
        first = rho.copy()
        iterations = np.zeros(len(factors), np.intp)
        live = np.flatnonzero(rho > 0)
        for _ in range(CG_LIMIT):
            if not len(live):
                break
            now = np.ascontiguousarray(p[:, live])
            product = now + self._product(now, self._costs[:, live])
            curvature = _dots(now, product)
            length = (rho[live] / curvature).astype(dtype)
            solution[:, live] += now * length
            residual[:, live] -= product * length
            z = _apply([factors[k] for k in live], np.asfortranarray(residual[:, live]))
            new = _dots(residual[:, live], z)
            p[:, live] = z + now * (new / rho[live]).astype(dtype)
            rho[live] = new
            iterations[live] += 1
            live = live[new > CG_TOLERANCE**2 * first[live]]
        return solution.astype(np.float64), iterations

    def _product(self, p: Floats, costs: Floats) -> Floats:
        total = np.zeros(p.shape, np.float64)
        for part, chunk in self._chunks():
            inner = chunk @ p
            inner *= costs[part]
            total += chunk.T @ inner
        return total.astype(p.dtype)

    def _chunks(self) -> Iterator[tuple[slice, Floats]]:
        row_bytes = self._gathered.shape[1] * self._gathered.itemsize
        step = max(64, CHUNK_BYTES // row_bytes)
        for start in range(0, len(self._gathered), step):
            part = slice(start, start + step)
            yield part, self._gathered[part]


def _dots(a: Floats, b: Floats) -> Doubles:
    """Inner products of the columns, summed in float64."""
    products: Doubles = np.einsum("ij,ij->j", a, b, dtype=np.float64)
    return products


def _apply(factors: list[Factor], right: Floats) -> Floats:
    """Apply each column's preconditioner; those that share one are solved at once."""
    if all(factor is factors[0] for factor in factors):
        return factors[0].solve(right)
    solved = np.empty_like(right)
    for k, factor in enumerate(factors):
        solved[:, k] = factor.solve(right[:, k : k + 1])[:, 0]
    return solved
