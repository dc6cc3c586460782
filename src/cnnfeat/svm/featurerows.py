"""A layer of a feature file, or several side by side, as a matrix that is read by blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.svm.matrix import FEW, Floats, Indices


class FeatureRows:
    """Rows of one layer of features, flattened in C order (the last axis runs fastest).

    Whether something can be computed from all of their numbers is counted by `matrix.moments`.

    Parameters
    ----------
    features : FeatureFile or FeatureTable
    split, layer : str
    rows_per_block : int, optional
        By default the blocks of the file.
    """

    dtype: np.dtype[np.floating] = np.dtype(np.float32)

    def __init__(
        self,
        features: FeatureFile | FeatureTable,
        split: str,
        *,
        layer: str,
        rows_per_block: int | None = None,
    ) -> None:
        self._features, self._split, self._layer = features, split, layer
        self._step = rows_per_block
        self.n_samples = features.n_rows(split)
        self.n_features = int(np.prod(features.layer(split, layer).shape[1:], dtype=np.int64))

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Read the file once, in its own order."""
        for start, block in self._features.blocks(
            self._split, self._layer, rows=self._step, any_numbers=True
        ):
            yield start, self._flat(block)

    def take(self, rows: Indices) -> Floats:
        """Collect some rows: few of them one by one, many in one sequential read."""
        if len(rows) <= FEW * self.n_samples:
            some = self._features.take(self._split, self._layer, rows, any_numbers=True)
            return self._flat(some)
        taken = np.empty((len(rows), self.n_features), self.dtype)
        done = 0
        for start, block in self.blocks():
            stop = done + int(np.searchsorted(rows[done:], start + len(block)))
            taken[done:stop] = block[rows[done:stop] - start]
            done = stop
        return taken

    def _flat(self, block: NDArray[np.generic]) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then is refused
            return block.reshape(len(block), self.n_features).astype(self.dtype, copy=False)
