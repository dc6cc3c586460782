"""Which rows of a feature file are augmented copies of others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.parts import split_trained_on


def find_copies(features: FeatureFile | FeatureTable, split: str) -> NDArray[np.bool_]:
    """Mark the rows of a split that are copies in any file, (n_rows,).

    Raises
    ------
    FeatureFileError
        If a file says that there are copies, and its rows can't be so many times others.
    """
    found = [
        one.ordered(split, _copies_in(one.file, split)) for one in FeatureTable.of(features).aligned
    ]
    copies: NDArray[np.bool_] = np.any(found, axis=0)
    return copies


def _copies_in(file: FeatureFile, split: str) -> NDArray[np.bool_]:
    """Mark the copies in a file's own order: they stand behind all others."""
    n_rows = file.n_rows(split)
    n_copies = file.provenance.options.get("extract", {}).get("augment_copies")
    if not n_copies or split != split_trained_on(file.splits):
        return np.zeros(n_rows, np.bool_)
    left_out = [one.row for one in file.skipped(split)]
    n_planned = n_rows + len(left_out)
    if type(n_copies) is not int or n_copies < 1 or n_planned % (n_copies + 1):
        raise FeatureFileError(
            f"{file.path} says that {split!r} has {n_copies!r} copies of each row, and it has "
            f"{n_planned:,} rows in all",
            hint="make the file again with cnnfeat extract --overwrite",
        )
    return np.delete(np.arange(n_planned), left_out) >= n_planned // (n_copies + 1)
