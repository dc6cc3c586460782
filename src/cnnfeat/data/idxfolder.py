"""A folder of IDX files, as MNIST and its relatives come."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.data.arrays import ArraySource, ArraySplit, index_labels, make_split
from cnnfeat.data.fingerprint import FileStates, file_states
from cnnfeat.data.idx import read_idx, read_idx_header
from cnnfeat.data.regular import unreadable
from cnnfeat.data.rows import Rows, StoredRows
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.records import Array

_NAMED = re.compile(r"idx\d-ubyte(\.gz)?$")
_SPLIT_WORDS = {"train": "train", "t10k": "test", "test": "test"}
_MAX_ENTRIES = 200  # a folder with more entries holds something else


@dataclass(slots=True)
class _Pair:
    images: Path | None = None
    labels: Path | None = None


def find_idx_files(folder: Path) -> tuple[Path, ...]:
    """IDX files right in `folder`, told by their content, or by a name like MNIST's."""
    try:
        entries = sorted(islice(folder.iterdir(), _MAX_ENTRIES + 1))
    except OSError as error:
        raise unreadable(folder, error) from error
    if len(entries) > _MAX_ENTRIES:
        return ()
    return tuple(path for path in entries if path.is_file() and _looks_like_idx(path))


def open_idx_folder(folder: Path, files: tuple[Path, ...]) -> ArraySource:
    """Open the IDX files of a folder as a source.

    `train` in a file's name makes it part of the split "train", `test` or `t10k` of "test"; without
    either, images and labels make the split "all".

    Raises
    ------
    DataError
        If a file is damaged, a split has no images, or counts disagree.
    """
    pairs = _pair(folder, files)
    used = {
        path.name: path for pair in pairs.values() for path in (pair.images, pair.labels) if path
    }
    return open_idx_pairs(
        {split: (pair.images, pair.labels) for split, pair in pairs.items()},
        name=str(folder),
        kind="idx",
        states=lambda: file_states(used),
    )


def open_idx_pairs(
    pairs: Mapping[str, tuple[Path | None, Path | None]],
    *,
    name: str,
    kind: str,
    states: Callable[[], FileStates],
    classes: tuple[str, ...] = (),
) -> ArraySource:
    """Open pairs of image and label files, one pair a split."""
    images: dict[str, Rows] = {}
    raw_labels: dict[str, Array] = {}
    for split, (image_path, label_path) in pairs.items():
        if image_path is None:
            raise DataError(f"{name}: the split {split} has labels ({label_path}) but no images")
        images[split] = read_idx(image_path)[1]
        if label_path is not None:
            raw_labels[split] = read_idx(label_path)[1][:]
    labels, found = index_labels(raw_labels, name=name)
    arrays: dict[str, ArraySplit] = {
        split: make_split(rows, labels.get(split), name=str(pairs[split][0]))
        for split, rows in images.items()
    }
    if classes and len(found) > len(classes):
        raise DataError(f"{name}: labels up to {found[-1]}; there are {len(classes)} classes")
    return ArraySource(
        name,
        kind,
        arrays=arrays,
        classes=classes or found,
        states=states,
        close=[rows.close for rows in images.values() if isinstance(rows, StoredRows)],
    )


def _looks_like_idx(path: Path) -> bool:
    if _NAMED.search(path.name):
        return True
    try:
        read_idx_header(path)
    except DataError:
        return False
    return True


def _split_of(file_name: str) -> str:
    for word, split in _SPLIT_WORDS.items():
        if word in file_name.lower():
            return split
    return "all"


def _pair(folder: Path, files: tuple[Path, ...]) -> dict[str, _Pair]:
    unpacked = {path.name for path in files}
    pairs: dict[str, _Pair] = {}
    for path in files:
        if path.suffix == ".gz" and path.stem in unpacked:
            continue  # the same file, packed
        pair = pairs.setdefault(_split_of(path.name), _Pair())
        part = "labels" if len(read_idx_header(path).shape) == 1 else "images"
        if getattr(pair, part) is not None:
            raise DataError(
                f"{folder}: {getattr(pair, part).name} and {path.name} both look like the {part} "
                f"of the split {_split_of(path.name)}",
                hint="keep one data set in a folder",
            )
        setattr(pair, part, path)
    return {split: pairs[split] for split in ("train", "test", "all") if split in pairs}
