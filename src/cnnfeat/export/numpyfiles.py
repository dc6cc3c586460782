"""Feature files as NumPy's files: one archive, or a folder of arrays."""

from __future__ import annotations

import zipfile
from contextlib import closing
from pathlib import Path
from typing import IO

import numpy as np

from cnnfeat.export.excerpt import Excerpt, StreamedArray, array_bytes, arrays_of
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import Task


def write_npz(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write an archive with arrays such as `train/conv2`, uncompressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays_of(excerpt):
            with archive.open(f"{array.name}.npy", "w", force_zip64=True) as member:
                _write(array, member, task if array.is_features else None)


def write_npy(excerpt: Excerpt, out: Path, *, overwrite: bool, task: Task) -> list[Path]:
    """Write a file for each array into a folder, for memory mapping."""
    arrays = list(arrays_of(excerpt))
    paths = [out / f"{array.name.replace('/', '.')}.npy" for array in arrays]
    for path in paths:
        check_output(path, overwrite=overwrite, needed_bytes=array_bytes(excerpt))
    for array, path in zip(arrays, paths, strict=True):
        with replacing(path) as partial, closing(partial.open("wb")) as file:
            _write(array, file, task if array.is_features else None)
    return paths


def _write(array: StreamedArray, file: IO[bytes], task: Task | None) -> None:
    """Write it in NumPy's format."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    for block in array.blocks():
        file.write(np.ascontiguousarray(block, array.dtype).tobytes())
        if task is not None:
            task.advance(len(block))
