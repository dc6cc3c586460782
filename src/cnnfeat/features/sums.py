"""The table of block checksums of one split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import format as fmt
from cnnfeat.features import safety


@dataclass(frozen=True, slots=True)
class Sums:
    """The block checksums of one split."""

    stops: NDArray[np.int64]  # (n_blocks,): the row after each block's last
    columns: tuple[str, ...]
    values: NDArray[np.uint64]  # (n_blocks, n_columns)

    def of(self, column: str) -> NDArray[np.uint64]:
        """Checksums of one column, (n_blocks,)."""
        return self.values[:, self.columns.index(column)]


def read_sums(file: h5py.File, split: str, path: Path) -> Sums:
    """Read the table of a split.

    Raises
    ------
    FeatureFileError
        If it is missing or damaged.
    """
    root = safety.child_group(file, fmt.CHECKSUMS, path)
    group = safety.child_group(root, split, path)
    arrays = {name: safety.child_array(group, name, path) for name in ("stop", "sum")}
    columns = safety.texts(safety.child_array(group, "column", path), path)
    safety.numeric(arrays["stop"], path, "i")
    safety.numeric(arrays["sum"], path, "u")
    sums = Sums(arrays["stop"][...], tuple(columns), arrays["sum"][...])
    if (
        sums.stops.ndim != 1
        or sums.values.shape != (len(sums.stops), len(columns))
        or not len(sums.stops)
        or len(set(columns)) != len(columns)
        or fmt.ID not in columns
        or np.any(np.diff(sums.stops, prepend=0) < 0)
    ):
        raise FeatureFileError(f"{path}: the checksums of split {split!r} are damaged")
    return sums
