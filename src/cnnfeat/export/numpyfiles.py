"""Feature files as NumPy's files: one archive, or a folder of arrays."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from cnnfeat.export.excerpt import Excerpt
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import Task
from cnnfeat.records import Array


def array_bytes(excerpt: Excerpt) -> int:
    """Count the bytes of all arrays."""
    return sum(array.size_bytes for array in arrays_of(excerpt))


@dataclass(frozen=True, slots=True)
class StreamedArray:
    """An array of known shape whose rows come block by block."""

    name: str  # "train/conv2"
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]
    is_features: bool = False

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def write(self, file: IO[bytes], task: Task | None) -> None:
        """Write it in NumPy's format."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for block in self.blocks():
            file.write(np.ascontiguousarray(block, self.dtype).tobytes())
            if task is not None:
                task.advance(len(block))


def arrays_of(excerpt: Excerpt) -> Iterator[StreamedArray]:
    """Name every array of the excerpt, as the feature file does."""
    for split in excerpt.splits:
        n_rows = excerpt.n_rows(split)
        for layer in excerpt.layers:
            stored = excerpt.file.layer(split, layer)
            yield StreamedArray(
                f"{split}/{layer}",
                np.dtype(stored.dtype),
                (n_rows, *stored.shape[1:]),
                lambda split=split, layer=layer: excerpt.blocks(split, layer),  # type: ignore[misc]
                is_features=True,
            )
        file = excerpt.file
        for name, read in (("label", file.labels), ("part", file.parts), ("group", file.groups)):
            numbers = read(split)
            if numbers is not None:
                yield _whole(f"{split}/{name}", numbers[:n_rows])
        yield _whole(f"{split}/id", np.array(file.ids(split, stop=n_rows), dtype=np.str_))
    if excerpt.file.classes:
        yield _whole("classes", np.array(excerpt.file.classes, dtype=np.str_))


def _whole(name: str, array: Array) -> StreamedArray:
    return StreamedArray(name, array.dtype, array.shape, lambda: [array])


def write_npz(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write an archive with arrays such as `train/conv2`, uncompressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays_of(excerpt):
            with archive.open(f"{array.name}.npy", "w", force_zip64=True) as member:
                array.write(member, task if array.is_features else None)


def write_npy(excerpt: Excerpt, out: Path, *, overwrite: bool, task: Task) -> list[Path]:
    """Write a file for each array into a folder, for memory mapping."""
    arrays = list(arrays_of(excerpt))
    paths = [out / f"{array.name.replace('/', '.')}.npy" for array in arrays]
    for path in paths:
        check_output(path, overwrite=overwrite, needed_bytes=array_bytes(excerpt))
    for array, path in zip(arrays, paths, strict=True):
        with replacing(path) as partial, closing(partial.open("wb")) as file:
            array.write(file, task if array.is_features else None)
    return paths
