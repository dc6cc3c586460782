"""Sources known by name: where their files lie, and opening them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pooch

from cnnfeat.data.arrays import ArraySource, make_split
from cnnfeat.data.idx import open_idx_pairs
from cnnfeat.data.registry import (
    DATASETS,
    Dataset,
    DatasetFile,
    download,
    get_dataset,
    reachable_mirrors,
    unreachable,
)
from cnnfeat.data.source import CONTENTS, FileStates, sha256_of
from cnnfeat.errors import DataError, StorageError
from cnnfeat.progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array, Labels

DATA_DIR_VARIABLE = "CNNFEAT_DATA_DIR"
_BUNDLED = "inside scikit-learn"
_TEST_EVERY = 5  # one image of five in each class is a test image
_WHITE = 16  # the brightest grey level in the bundled array
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class NamedSource:
    """A source known by name, as `cnnfeat data list` shows it."""

    name: str
    description: str
    location: str  # a folder, "inside scikit-learn", or "" where it must be downloaded


def user_cache() -> Path:
    """Where downloads are kept."""
    return Path(pooch.os_cache("cnnfeat"))


def list_sources(*, data_dir: Path | None = None) -> tuple[NamedSource, ...]:
    """Sources known by name, and where each lies now. Contents aren't checked."""
    return tuple(
        NamedSource(dataset.name, dataset.description, _location(dataset, data_dir))
        for dataset in DATASETS.values()
    )


def fetch(name: str, *, data_dir: Path | None = None, progress: Progress = SILENT) -> NamedSource:
    """Make sure that a data set's files are there, and whole.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    data_dir : Path, optional
        Its sub-folder `name` gets what is missing; the user cache by default.
    progress : Progress
        Told of downloads.

    Returns
    -------
    NamedSource
        With the folder that holds the files.

    Raises
    ------
    UsageError
        If no source has this name.
    DownloadError
        With each mirror's reason.
    """
    dataset = get_dataset(name)
    if not dataset.files:
        return NamedSource(dataset.name, dataset.description, _BUNDLED)
    folder = (data_dir or user_cache()) / dataset.name
    for file in dataset.files:
        if _find(dataset, file, [folder], replaceable=folder) is None:
            download(dataset, file, folder=folder, progress=progress)
    return NamedSource(dataset.name, dataset.description, str(folder))


def open_named(
    name: str, *, data_dir: Path | None = None, progress: Progress = SILENT
) -> ArraySource:
    """Open a source by its name; what isn't on disk is downloaded.

    Raises
    ------
    UsageError
        If no source has this name.
    DataError
        If a file on disk isn't what it should be.
    DownloadError
        With each mirror's reason.
    """
    dataset = get_dataset(name)
    if not dataset.files:
        return open_digits()
    found = _find_all(dataset, data_dir)
    return _open_files(dataset, found, mirrors=dataset.mirrors, progress=progress)


def open_auto(*, data_dir: Path | None = None, progress: Progress = SILENT) -> ArraySource:
    """Open MNIST where it is on disk or can be downloaded, else the bundled digits.

    That it had to be the digits, and what to do about it, is said in a warning.
    """
    dataset = get_dataset("mnist")
    found = _find_all(dataset, data_dir)
    mirrors = dataset.mirrors
    try:
        if None in found.values():
            mirrors, reasons = reachable_mirrors(dataset)
            if not mirrors:
                raise unreachable(dataset, reasons=reasons, folder=_cache(dataset))
        return _open_files(dataset, found, mirrors=mirrors, progress=progress)
    except StorageError as error:
        _log.warning(
            "MNIST is neither on disk nor can it be downloaded; using the bundled digits "
            "instead, %s. For MNIST: %s",
            get_dataset("digits").description,
            error.hint,
        )
        _log.debug("%s", error.message)
        return open_digits()


def _find_all(dataset: Dataset, data_dir: Path | None) -> dict[DatasetFile, Path | None]:
    folders = _folders(dataset, data_dir)
    return {
        file: _find(dataset, file, folders, replaceable=_cache(dataset)) for file in dataset.files
    }


def _open_files(
    dataset: Dataset,
    found: Mapping[DatasetFile, Path | None],
    *,
    mirrors: Sequence[str],
    progress: Progress,
) -> ArraySource:
    """Open a data set, downloading what was not found."""
    paths = [
        path or download(dataset, file, folder=_cache(dataset), mirrors=mirrors, progress=progress)
        for file, path in found.items()
    ]
    digests = {file.name: bytes.fromhex(file.sha256) for file in dataset.files}
    return open_idx_pairs(
        {"train": (paths[0], paths[1]), "test": (paths[2], paths[3])},
        name=dataset.name,
        kind=dataset.name,
        states=lambda: FileStates(digests, CONTENTS),
        classes=dataset.classes,
    )


def _cache(dataset: Dataset) -> Path:
    return user_cache() / dataset.name


def _folders(dataset: Dataset, data_dir: Path | None) -> list[Path]:
    """Where files are looked for, the first place first."""
    variable = os.environ.get(DATA_DIR_VARIABLE)
    roots = [root for root in (data_dir, Path(variable) if variable else None) if root is not None]
    return [folder for root in roots for folder in (root / dataset.name, root)] + [_cache(dataset)]


def _candidates(file: DatasetFile, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Where a file may lie in a folder, with the digest it must have."""
    yield folder / file.name, file.sha256
    yield folder / file.name.removesuffix(".gz"), file.unpacked_sha256


def _find(
    dataset: Dataset, file: DatasetFile, folders: Sequence[Path], *, replaceable: Path
) -> Path | None:
    """Find one file, and check that it is the right one.

    A wrong file in the folder `replaceable`, the cache, counts as missing.
    """
    for folder in folders:
        for path, expected in _candidates(file, folder):
            if not path.is_file():
                continue
            actual = sha256_of(path).hex()
            if _belongs_to_another(dataset, file, actual):
                continue
            if expected in (actual, None):
                return path
            if folder != replaceable:
                raise DataError(
                    f"{path}: not the file of {dataset.name}: SHA-256 {actual}, "
                    f"expected {expected}",
                    hint="remove it and it will be downloaded; or open it as a folder of your own: "
                    f"--data {folder}",
                )
            _log.warning("%s is damaged and will be downloaded again", path)
    return None


def _belongs_to_another(dataset: Dataset, file: DatasetFile, digest: str) -> bool:
    """Whether a file is known, by another data set's name: some share their file names."""
    return any(
        digest in (other.sha256, other.unpacked_sha256)
        for candidate in DATASETS.values()
        if candidate.name != dataset.name
        for other in candidate.files
        if other.name == file.name
    )


def _location(dataset: Dataset, data_dir: Path | None) -> str:
    if not dataset.files:
        return _BUNDLED
    for folder in _folders(dataset, data_dir):
        if all(
            any(path.is_file() for path, _ in _candidates(file, folder)) for file in dataset.files
        ):
            return str(folder)
    return ""


def open_digits() -> ArraySource:
    """Open the digits bundled with scikit-learn: real handwriting, 8×8 pixels, always at hand.

    They are uint8, (n, 8, 8, 1), "train" with 1,438 images, "test" with 359:
    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits

    Every fifth image of each class, counted over all classes one after the other, is a test image.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _WHITE)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    is_test = _test_rows(labels)
    splits = {"train": ~is_test, "test": is_test}
    return ArraySource(
        "digits",
        "digits",
        arrays={
            split: make_split(images[rows], labels[rows], name="digits")
            for split, rows in splits.items()
        },
        classes=tuple(str(name) for name in bunch.target_names),
        states=lambda: _states(images, labels),
    )


def _test_rows(labels: Labels) -> NDArray[np.bool_]:
    """Choose test rows: one of five in each class, in the order of the images."""
    by_class = np.argsort(labels, kind="stable")
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return chosen


def _states(images: Array, labels: Labels) -> FileStates:
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).digest()
    return FileStates({"digits": digest}, "array contents")
