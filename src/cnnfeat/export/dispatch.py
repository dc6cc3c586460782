"""Which format is written by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import UsageError, near_names
from cnnfeat.export.excerpt import Excerpt, array_bytes
from cnnfeat.export.h5ad import write_h5ad
from cnnfeat.export.matlab import check_mat, write_mat
from cnnfeat.export.numpyfiles import write_npy, write_npz
from cnnfeat.export.projector import write_projector
from cnnfeat.export.tables import write_csv, write_parquet
from cnnfeat.features import FeatureFile
from cnnfeat.files import check_output, replacing
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.records import Source

FORMATS = ("npz", "npy", "csv", "parquet", "mat", "h5ad", "projector")
_FOLDERS = ("npy", "projector")
_BY_ARRAY = ("npz", "npy", "mat")  # rows are counted once a layer


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made."""

    paths: tuple[Path, ...]
    rows: Mapping[str, int]  # by split
    layers: tuple[str, ...]
    size_bytes: int


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
    if to not in FORMATS:
        raise UsageError(
            f"no export format {to!r}; there are: {', '.join(FORMATS)}",
            hint=near_names(to, FORMATS),
        )
    if to in _FOLDERS and out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --to {to} writes a folder", hint="name one with -o")
    with FeatureFile(features) as file:
        excerpt = Excerpt.of(file, layers=layers, splits=splits, limit=limit)
        total = excerpt.total_rows * (len(excerpt.layers) if to in _BY_ARRAY else 1)
        with progress.task(f"exporting to {to}", total=total, unit="rows") as task:
            paths = _write(excerpt, to, out, source=source, overwrite=overwrite, task=task)
        rows = {split: excerpt.n_rows(split) for split in excerpt.splits}
    size_bytes = sum(path.stat().st_size for path in paths)
    return ExportResult(tuple(paths), rows, excerpt.layers, size_bytes)


def _write(
    excerpt: Excerpt,
    to: str,
    out: Path,
    *,
    source: Source | None,
    overwrite: bool,
    task: Task,
) -> list[Path]:
    if to == "projector":
        return write_projector(excerpt, out, source=source, overwrite=overwrite, task=task)
    if to == "npy":
        return write_npy(excerpt, out, overwrite=overwrite, task=task)
    needed = {"npz": array_bytes, "mat": check_mat, "h5ad": array_bytes}.get(to)
    check_output(out, overwrite=overwrite, needed_bytes=needed(excerpt) if needed else 0)
    writers: dict[str, Callable[[Excerpt, Path, Task], None]] = {
        "npz": write_npz,
        "csv": write_csv,
        "parquet": write_parquet,
        "mat": write_mat,
        "h5ad": write_h5ad,
    }
    with replacing(out) as partial:
        writers[to](excerpt, partial, task)
    return [out]
