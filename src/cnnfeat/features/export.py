"""Feature files in other programs' formats, written block by block."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from cnnfeat.errors import UsageError, near_names
from cnnfeat.features.projector import write_projector
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.selection import Selection, select
from cnnfeat.features.tables import write_csv, write_parquet
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.records import Array, Source

logger = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made."""

    paths: tuple[Path, ...]
    rows: Mapping[str, int]  # by split
    layers: tuple[str, ...]
    size_bytes: int


FORMATS = ("npz", "npy", "csv", "parquet", "projector")
_FOLDERS = ("npy", "projector")


def check_format(name: str) -> None:
    """Refuse a format that isn't known.

    Raises
    ------
    UsageError
        Naming all there are.
    """
    if name not in FORMATS:
        raise UsageError(
            f"no export format {name!r}; there are: {', '.join(FORMATS)}",
            hint=near_names(name, FORMATS),
        )


def export_features(
    features: Path,
    to: str,
    *,
    out: Path,
    layers: Sequence[str] = (),
    splits: Sequence[str] = (),
    limit: int | None = None,
    source: Source | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write a feature file, or part of it, in another format.

    Parameters
    ----------
    features : Path
        The feature file.
    to : str
        One of `FORMATS`.
    out : Path
        A file; for "npy" and "projector" a folder.
    layers, splits : sequence of str
        What to write; nothing named is all. The projector takes one layer.
    limit : int, optional
        Only the first rows of each split.
    source : Source, optional
        Where the images came from, for the projector's pictures.
    overwrite : bool
        Whether files that exist may be replaced.
    progress : Progress
        Told of every row.

    Raises
    ------
    UsageError
        If the format, a split or the number of layers can't be, or a library is missing.
    OutputExistsError
        If an output exists and may not be replaced.
    FeatureFileError
        If the file is damaged, or has no such layer.
    """
    check_format(to)
    if to in _FOLDERS and out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --to {to} writes a folder", hint="name one with -o")
    with FeatureFile(features) as file:
        selection = select(file, layers=layers, splits=splits, limit=limit)
        total = selection.total_rows * (len(selection.layers) if to in ("npz", "npy") else 1)
        with progress.task(f"exporting to {to}", total=total, unit="rows") as task:
            paths = _write(selection, to, out, source=source, overwrite=overwrite, task=task)
        rows = {split: selection.n_rows(split) for split in selection.splits}
    size_bytes = sum(path.stat().st_size for path in paths)
    return ExportResult(tuple(paths), rows, selection.layers, size_bytes)


def _write(
    selection: Selection,
    to: str,
    out: Path,
    *,
    source: Source | None,
    overwrite: bool,
    task: Task,
) -> list[Path]:
    if to == "projector":
        return write_projector(selection, out, source=source, overwrite=overwrite, task=task)
    if to == "npy":
        return _write_npy(selection, out, overwrite=overwrite, task=task)
    needed = _array_bytes(selection) if to == "npz" else 0
    check_output(out, overwrite=overwrite, needed_bytes=needed)
    writers: dict[str, Callable[[Selection, Path, Task], None]] = {
        "npz": _write_npz,
        "csv": write_csv,
        "parquet": write_parquet,
    }
    with replacing(out) as partial:
        writers[to](selection, partial, task)
    return [out]


def _array_bytes(selection: Selection) -> int:
    return sum(array.size_bytes for array in _arrays(selection))


@dataclass(frozen=True, slots=True)
class _StreamedArray:
    """An array of known shape whose rows come block by block."""

    name: str  # "train/conv2"
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]

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


def _arrays(selection: Selection) -> Iterator[_StreamedArray]:
    """Name every array of the selection, as the feature file does."""
    for split in selection.splits:
        n_rows = selection.n_rows(split)
        for layer in selection.layers:
            stored = selection.file.layer(split, layer)
            yield _StreamedArray(
                f"{split}/{layer}",
                np.dtype(stored.dtype),
                (n_rows, *stored.shape[1:]),
                lambda split=split, layer=layer: selection.blocks(split, layer),  # type: ignore[misc]
            )
        labels = selection.file.labels(split)
        if labels is not None:
            yield _whole(f"{split}/label", labels[:n_rows])
        yield _whole(f"{split}/id", np.array(selection.file.ids(split, stop=n_rows), dtype=np.str_))
    if selection.file.classes:
        yield _whole("classes", np.array(selection.file.classes, dtype=np.str_))


def _whole(name: str, array: Array) -> _StreamedArray:
    return _StreamedArray(name, array.dtype, array.shape, lambda: [array])


def _is_features(array: _StreamedArray, selection: Selection) -> bool:
    return array.name.partition("/")[2] in selection.layers


def _write_npz(selection: Selection, path: Path, task: Task) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for array in _arrays(selection):
            with archive.open(f"{array.name}.npy", "w", force_zip64=True) as member:
                array.write(member, task if _is_features(array, selection) else None)


def _write_npy(selection: Selection, out: Path, *, overwrite: bool, task: Task) -> list[Path]:
    arrays = list(_arrays(selection))
    paths = [out / f"{array.name.replace('/', '.')}.npy" for array in arrays]
    for path in paths:
        check_output(path, overwrite=overwrite, needed_bytes=_array_bytes(selection))
    for array, path in zip(arrays, paths, strict=True):
        with replacing(path) as partial, closing(partial.open("wb")) as file:
            array.write(file, task if _is_features(array, selection) else None)
    return paths
