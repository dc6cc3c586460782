"""Choosing the kind of source, by content and never by ending."""

from __future__ import annotations

from pathlib import Path

from cnnfeat.data.idxfolder import find_idx_files, open_idx_folder
from cnnfeat.data.named import open_auto, open_named
from cnnfeat.data.registry import DATASETS
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Source

AUTO = "auto"
DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own limit, 512 MiB as RGB
_ALLOWED = (
    "allowed are a name ({names}), a folder of IDX files, a folder of images, an .npz or .npy "
    "file, an HDF5 data set (images.h5:/x), a CSV or TSV manifest"
)


def open_source(
    spec: str,
    *,
    data_dir: Path | None = None,
    labels: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress = SILENT,
) -> Source:
    """Open a source of images.

    Parameters
    ----------
    spec : str
        A name ("mnist"; "auto" for MNIST or else the bundled digits), or a path.
    data_dir : Path, optional
        Where named data sets are looked for first.
    labels : str, optional
        Where labels lie, for an HDF5 source (":/y" in the same file) or an array file (a path).
    max_pixels : int
        Larger images are refused before they are decoded.
    progress : Progress
        Told of downloads.

    Raises
    ------
    UsageError
        If nothing is meant by `spec`; with near names.
    DataError
        If what it means can't be used.
    DownloadError
        If a named data set is neither on disk nor reachable.
    """
    if spec == AUTO:
        return open_auto(data_dir=data_dir, progress=progress)
    if spec in DATASETS:
        return open_named(spec, data_dir=data_dir, progress=progress)
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path)
    raise UsageError(
        f"no data source {spec!r}; " + _ALLOWED.format(names=", ".join((AUTO, *DATASETS))),
        hint=near_names(spec, (AUTO, *DATASETS)),
    )


def _open_folder(folder: Path) -> Source:
    files = find_idx_files(folder)
    if files:
        return open_idx_folder(folder.resolve(), files)
    raise DataError(f"{folder}: holds no images")
