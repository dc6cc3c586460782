"""Feature files as MATLAB's `.mat` files of version 5, which Octave and SciPy read too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import UsageError
from cnnfeat.export.excerpt import Excerpt, StreamedArray, arrays_of
from cnnfeat.progress import Task

if TYPE_CHECKING:
    from cnnfeat.records import Array

LARGEST_BYTES = 2**31 - 2**10  # of a variable: MATLAB takes none of 2 GiB, its head included
_LONGEST_NAME = 63  # letters of a variable
_HALF = np.dtype(np.float16)  # which MATLAB has not


def check_mat(excerpt: Excerpt) -> int:
    """Count the bytes of all variables.

    Raises
    ------
    UsageError
        If one is too large for that version.
    """
    sizes = {array.name: array.size_bytes * _factor(array.dtype) for array in arrays_of(excerpt)}
    for name, size_bytes in sizes.items():
        if size_bytes > LARGEST_BYTES:
            raise UsageError(
                f"{name} has {size_bytes:,} bytes; a variable in a .mat file of version 5 has less "
                "than 2 GiB",
                hint="--limit or --split takes fewer rows; --to npz has no such end; MATLAB's "
                "h5read reads the feature file itself",
            )
    return sum(sizes.values())


def _factor(dtype: np.dtype[np.generic]) -> int:
    return 2 if dtype == _HALF else 1


def write_mat(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write a variable for each array, one held at a time.

    `train/conv2` is called `train_conv2`; whatever MATLAB allows in no name is an underscore, and
    `contents` has each variable beside its name in the feature file. Numbers of half precision
    become single ones. Names are cells. Labels count from 0, as everywhere.
    """
    from scipy.io import savemat

    arrays = list(arrays_of(excerpt))
    names = list(variable_names(array.name for array in arrays))
    contents = np.array([*zip(names, (array.name for array in arrays), strict=True)], object)
    with path.open("wb") as file:
        for name, array in zip(names, arrays, strict=True):
            savemat(file, {name: _read(array, task)}, oned_as="column")
        savemat(file, {"contents": contents})


def _read(array: StreamedArray, task: Task) -> Array:
    if array.dtype.kind == "U":
        return np.concatenate([block.astype(object) for block in array.blocks()])
    whole = np.empty(array.shape, np.float32 if array.dtype == _HALF else array.dtype)
    start = 0
    for block in array.blocks():
        whole[start : start + len(block)] = block
        start += len(block)
        if array.is_features:
            task.advance(len(block))
    return whole


def variable_names(names: Iterable[str]) -> Iterator[str]:
    """Turn names into those that variables of MATLAB may have, no two the same."""
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
        plain = (plain if plain[:1].isalpha() else f"x{plain}")[:_LONGEST_NAME]
        found, number = plain, 2
        while found in taken:
            ending = f"_{number}"
            found, number = plain[: _LONGEST_NAME - len(ending)] + ending, number + 1
        taken.add(found)
        yield found
