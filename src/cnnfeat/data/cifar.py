"""CIFAR-10 and CIFAR-100 as their Python batches, in a folder.

https://www.cs.toronto.edu/~kriz/cifar.html: each batch is a pickled dict, `data` (n, 3072) uint8
the pictures, 1,024 numbers of red, then green, then blue, by rows; the names of the classes lie in
another one.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.arrays import ArraySource, ArraySplit, StackedRows, index_labels
from cnnfeat.data.folders import natural_key
from cnnfeat.data.pickled import as_text, is_pickle, read_pickle
from cnnfeat.data.source import file_states
from cnnfeat.errors import DataError, UsageError, near_names

if TYPE_CHECKING:
    from cnnfeat.records import Array

_TEN = {
    "train": re.compile(r"data_batch(_\d+)?"),
    "test": re.compile(r"test_batch"),
    "meta": re.compile(r"batches\.meta"),
}
_HUNDRED = {"train": re.compile("train"), "test": re.compile("test"), "meta": re.compile("meta")}
_LABELS = ("fine_labels", "labels", "coarse_labels")  # the first that is there
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class CifarFiles:
    """The batches of a folder, by split, and the names of their classes."""

    batches: Mapping[str, Sequence[Path]]
    meta: Path | None


def find_cifar_files(path: Path, names: Sequence[str] | None) -> CifarFiles | None:
    """Find the batches right in a folder, told by their names and their content.

    Parameters
    ----------
    path : Path
        The folder; or a file, which is a batch if it is a pickle.
    names : sequence of str or None
        Of what is in the folder; None: it is a file.
    """
    if names is None:
        return CifarFiles({"all": [path]}, None) if is_pickle(path) else None
    files = [path / name for name in sorted(names, key=natural_key)]
    for patterns in (_TEN, _HUNDRED):
        found = {
            part: [path for path in files if pattern.fullmatch(path.name) and path.is_file()]
            for part, pattern in patterns.items()
        }
        batches = {split: found[split] for split in ("train", "test") if found[split]}
        if any(is_pickle(batch) for paths in batches.values() for batch in paths):
            return CifarFiles(batches, next(iter(found["meta"]), None))
    return None


def open_cifar(path: Path, files: CifarFiles, *, labels: str | None) -> ArraySource:
    """Open batches as a source, whose splits are `train` and `test`.

    Parameters
    ----------
    path : Path
        Their folder; or a single one, which is the split `all`.
    files : CifarFiles
        The batches, all of which are read.
    labels : str or None
        Which of a batch's lists: ":/coarse_labels". None: `fine_labels`, or `labels`.

    Raises
    ------
    DataError
        If a batch is none, or holds more than data.
    UsageError
        If it has no such labels; with those there are.
    """
    batches = {
        split: {one: read_pickle(one) for one in paths} for split, paths in files.batches.items()
    }
    images = {split: _images(of_split) for split, of_split in batches.items()}
    first = next(batch for of_split in batches.values() for batch in of_split.values())
    key = _label_key(first, labels, path)
    names = {} if files.meta is None else read_pickle(files.meta)
    indices, classes = index_labels(
        {split: _labels(of_split, key) for split, of_split in batches.items() if key},
        name=str(path),
        classes=_class_names(names, key),
    )
    _warn_of_missing(path, [one.name for one in files.batches.get("train", ())])
    used = [one for paths in files.batches.values() for one in paths]
    used += [] if files.meta is None else [files.meta]
    return ArraySource(
        str(path),
        "cifar",
        arrays={
            split: ArraySplit(rows, indices.get(split), channels_first=True)
            for split, rows in images.items()
        },
        classes=classes,
        states=lambda: file_states({one.name: one for one in used}),
        labels_from=labels or "",
    )


def _warn_of_missing(path: Path, names: Sequence[str]) -> None:
    """Say which of CIFAR-10's batches aren't there."""
    there = {name for name in names if name.startswith("data_batch_")}
    missing = [name for n in range(1, 6) if (name := f"data_batch_{n}") not in there]
    if there and missing:
        _log.warning("%s: batches are missing: %s", path, ", ".join(missing))


def _label_key(batch: Mapping[str, object], labels: str | None, path: Path) -> str:
    """Choose one of a batch's lists of labels; "" where it has none."""
    known = [key for key in batch if key == "labels" or key.endswith("_labels")]
    if labels is not None:
        asked = labels.removeprefix(":").strip("/")
        if asked not in known:
            raise UsageError(
                f"{path}: no labels {labels!r}; its batches have: {', '.join(known) or 'none'}",
                hint=near_names(asked, known),
            )
        return asked
    key = next((key for key in _LABELS if key in known), "")
    others = [other for other in known if other != key]
    if key and others:
        _log.info("%s: labels are %s; --labels :/%s takes others", path, key, others[0])
    return key


def _class_names(names: Mapping[str, object], key: str) -> tuple[str, ...]:
    """`fine_label_names` go with `fine_labels`, and so on."""
    found = names.get(f"{key.removesuffix('s')}_names")
    return tuple(as_text(name) for name in found) if isinstance(found, list) else ()


def _labels(batches: Mapping[Path, Mapping[str, object]], key: str) -> Array:
    found = []
    for path, batch in batches.items():
        labels = batch.get(key)
        if isinstance(labels, list | tuple) and all(type(label) is int for label in labels):
            labels = np.array(labels, np.int64)
        if not isinstance(labels, np.ndarray):
            raise DataError(f"{path}: {key} isn't a list of whole numbers")
        n_images = len(_data(batch, path))
        if len(labels) != n_images:
            raise DataError(f"{path}: {n_images:,} images but {len(labels):,} labels")
        found.append(labels)
    return np.concatenate(found)


def _images(batches: Mapping[Path, Mapping[str, object]]) -> StackedRows:
    rows = StackedRows({str(path): _data(batch, path) for path, batch in batches.items()})
    if not rows.shape[0]:
        raise DataError(f"{', '.join(map(str, batches))}: holds no images")
    return rows


def _data(batch: Mapping[str, object], path: Path) -> Array:
    """The pictures of a batch, (n, 3, side, side) uint8."""
    data = batch.get("data")
    if not isinstance(data, np.ndarray):
        raise DataError(
            f"{path}: no batch of CIFAR: it has no array 'data'; its keys: "
            f"{', '.join(list(batch)[:10]) or 'none'}"
        )
    side = math.isqrt(data.shape[1] // 3) if data.ndim == 2 else 0
    if data.dtype != np.uint8 or not side or data.shape[1] != 3 * side**2:
        raise DataError(
            f"{path}: data is {data.dtype} of shape {data.shape}; bytes of shape (n, 3072) are "
            "pictures of 32×32"
        )
    return data.reshape(-1, 3, side, side)
