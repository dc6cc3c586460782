"""Which rows of a feature file are augmented copies of others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile
from cnnfeat.parts import split_trained_on


def find_copies(file: FeatureFile, split: str) -> NDArray[np.bool_]:
    """Mark the rows of a split that are copies, (n_rows,): those that stand behind all others.

    Raises
    ------
    FeatureFileError
        If the file says that there are copies, and its rows can't be so many times others.
    """
    n_rows = file.n_rows(split)
    n_copies = file.provenance.options.get("extract", {}).get("augment_copies")
    if not n_copies or split != split_trained_on(file.splits):
        return np.zeros(n_rows, np.bool_)
    left_out = [one.row for one in file.skipped(split)]
    n_planned = n_rows + len(left_out)
    if not isinstance(n_copies, int) or n_copies < 1 or n_planned % (n_copies + 1):
        raise FeatureFileError(
            f"{file.path} says that {split!r} has {n_copies!r} copies of each row, and it has "
            f"{n_planned:,} rows in all",
            hint="make the file again with cnnfeat extract --overwrite",
        )
    return np.delete(np.arange(n_planned), left_out) >= n_planned // (n_copies + 1)
