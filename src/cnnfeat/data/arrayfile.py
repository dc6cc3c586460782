"""A file of arrays as a source: which of them are images, which labels."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cnnfeat.data.arrays import ArraySource, StackedRows, index_labels, make_split
from cnnfeat.data.hdf5 import Hdf5File, is_hdf5
from cnnfeat.data.labels import first_few
from cnnfeat.data.matfile import Mat5File, Mat73File, is_mat, open_mat
from cnnfeat.data.npy import ZIP_MAGIC, NpyFile, NpzFile, StoredRows
from cnnfeat.data.source import Rows, file_states, open_file
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.npyheader import NPY_MAGIC
from cnnfeat.records import SPLIT_WORDS, some_of

if TYPE_CHECKING:
    from cnnfeat.records import Array

_log = logging.getLogger("cnnfeat")

# Words for images and labels, the most usual first. With one for a split beside it they name what
# most people do: `x_train`, `train_images`, `trainX`, `train_set_x_orig`, `train/images`.
_IMAGES = ("images", "x", "image", "data", "pixels")
_LABELS = ("labels", "label", "y", "targets", "target")
_FILLING = {"set", "dataset", "orig"}
_WORDS = re.compile(r"[A-Z](?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_TOGETHER = re.compile(rf"(x|y)?({'|'.join(SPLIT_WORDS)})(x|y)?")  # in one word: `xtrain`, `testy`


class ArrayFile(Protocol):
    """A file that holds arrays by name."""

    kind: str
    shapes: Mapping[str, tuple[int, ...]]

    def rows(self, name: str) -> Rows: ...

    def close(self) -> None: ...


_OPENERS: Mapping[bytes, Callable[[Path], ArrayFile]] = {
    NPY_MAGIC: NpyFile,
    ZIP_MAGIC: NpzFile,
}


def is_array_file(path: Path) -> bool:
    """Whether a file begins as `.npy`, `.npz`, HDF5 or `.mat` files do."""
    return _opener(path) is not None


def split_member(spec: str) -> tuple[Path, str | None]:
    """Divide "images.h5:/x" into a path and the name of an array, None where there isn't one."""
    path = Path(spec)
    if ":" in spec and not os.path.lexists(path):
        before, _, after = spec.rpartition(":")
        if before:
            return Path(before), after.strip("/")
    return path, None


def open_array_source(path: Path, *, member: str | None, labels: str | None) -> ArraySource:
    """Open a file of arrays as a source.

    Parameters
    ----------
    path : Path
        An `.npy`, `.npz`, HDF5 or `.mat` file, told by its content.
    member : str or None
        The array that holds the images; None chooses by the names people use: `x_train`, `y_train`,
        `x_val`, `y_val`, `x_test`, `y_test`, or `images`, `labels`, or the only array that can be
        images.
    labels : str or None
        Where the labels of `member` lie: ":/y" in the same file, or another file.

    Raises
    ------
    UsageError
        If there is no such array; with those there are.
    DataError
        If no array can be images, or counts disagree.
    """
    with contextlib.ExitStack() as stack:
        file = _open(path)
        stack.callback(file.close)
        chosen = _choose(file, path, member)
        if labels is not None and len(chosen) > 1:
            raise UsageError(
                f"{path} has the splits {', '.join(chosen)}; labels can be named for one array only"
            )
        if labels is None:
            _say_unused(file, path, chosen)
        used = {f"{path.name}:/{member}" if member else path.name: path}
        raw_labels = {
            split: file.rows(label_name)[:]
            for split, (_, label_name) in chosen.items()
            if label_name is not None and labels is None
        }
        labels_from = _absolute(labels) if labels else ""
        if labels is not None:
            raw_labels[next(iter(chosen))] = _read_labels(labels, path)
            used[f"labels {labels_from}"] = (
                path if labels.startswith(":") else split_member(labels)[0]
            )
        indices, classes = index_labels(raw_labels, name=str(path))
        images = {split: file.rows(name) for split, (name, _) in chosen.items()}
        arrays = {
            split: make_split(rows, indices.get(split), name=f"{path}:/{chosen[split][0]}")
            for split, rows in images.items()
        }
        for rows in images.values():
            if isinstance(rows, StoredRows):
                stack.callback(rows.close)
        return ArraySource(
            f"{path}:/{member}" if member else str(path),
            file.kind,
            arrays=arrays,
            classes=classes,
            states=lambda: file_states(used),
            close=[stack.pop_all().close],
            labels_from=labels_from,
        )


def open_array_files(
    folder: Path, files: Mapping[str, Sequence[Path]], *, labels: str | None
) -> ArraySource:
    """Open files of arrays as a source; those of a split are one after the other.

    Raises
    ------
    DataError
        If a file has several splits, no array that can be images, or labels where another has none.
    """
    if labels is not None:
        raise UsageError(f"labels can be named for one file; {folder} has several")
    with contextlib.ExitStack() as stack:
        images: dict[str, dict[str, Rows]] = {}
        raw_labels: dict[str, Array] = {}
        for split, paths in files.items():
            pairs = [_open_pair(path, stack) for path in paths]
            images[split] = {path.name: pair[0] for path, pair in zip(paths, pairs, strict=True)}
            found = {
                path.name: pair[1]
                for path, pair in zip(paths, pairs, strict=True)
                if pair[1] is not None
            }
            if found and len(found) < len(pairs):
                raise DataError(f"{folder}: some files of the split {split} have no labels")
            if found:
                raw_labels[split] = StackedRows(found)[:]
        indices, classes = index_labels(raw_labels, name=str(folder))
        used = {path.name: path for paths in files.values() for path in paths}
        return ArraySource(
            str(folder),
            "mat",
            arrays={
                split: make_split(StackedRows(parts), indices.get(split), name=f"{folder}, {split}")
                for split, parts in images.items()
            },
            classes=classes,
            states=lambda: file_states(used),
            close=[stack.pop_all().close],
        )


def _open_pair(path: Path, stack: contextlib.ExitStack) -> tuple[Rows, Rows | None]:
    """Open the images and labels of a file that has one pair of them."""
    file = _open(path)
    stack.callback(file.close)
    chosen = _choose(file, path, None)
    if list(chosen) != ["all"]:
        raise DataError(
            f"{path}: has the splits {', '.join(chosen)} of its own; in a folder a file is a split",
            hint="give the file alone",
        )
    image_name, label_name = chosen["all"]
    return file.rows(image_name), None if label_name is None else file.rows(label_name)


def _absolute(labels: str) -> str:
    """Say where labels lie so that it holds from any folder."""
    return labels if labels.startswith(":") else str(Path(labels).absolute())


def _opener(path: Path) -> Callable[[Path], ArrayFile] | None:
    if is_mat(path):
        return open_mat
    with open_file(path) as file:
        beginning = file.read(8)
    for magic, opener in _OPENERS.items():
        if beginning.startswith(magic):
            return opener
    return Hdf5File if is_hdf5(path) else None


def _open(path: Path) -> ArrayFile:
    opener = _opener(path)
    if opener is None:
        raise DataError(f"{path}: not an .npy, .npz, HDF5 or .mat file")
    return opener(path)


def _read_labels(spec: str, images: Path) -> Array:
    """Read a whole array: ":/y" of the file of images, "file.h5:/y", "y.npy"."""
    path, member = split_member(spec) if not spec.startswith(":") else (images, spec[1:].strip("/"))
    with contextlib.closing(_open(path)) as file:
        return file.rows(_find(file, path, member or _only(file, path, rank=1)))[:]


def _choose(file: ArrayFile, path: Path, member: str | None) -> dict[str, tuple[str, str | None]]:
    """Names of the images and labels of each split."""
    if member is not None:
        return {"all": (_find(file, path, member), None)}
    named: dict[tuple[str, str], str] = {}
    for name, shape in file.shapes.items():
        if (meaning := _meaning(name, pictures=len(shape) > 2)) is not None:
            named.setdefault(meaning, name)
    chosen: dict[str, tuple[str, str | None]] = {}
    for split in ("train", "validation", "test", "all"):
        image, label = (
            next((named[split, word] for word in words if (split, word) in named), None)
            for words in (_IMAGES, _LABELS)
        )
        if image is not None:
            chosen[split] = (image, label)
        elif label is not None and split != "all":
            raise DataError(f"{path}: has {label} but no images of the split {split}")
    if chosen.keys() - {"all"}:
        chosen.pop("all", None)
    return chosen or {"all": (_only(file, path, rank=3), None)}


def _meaning(name: str, *, pictures: bool) -> tuple[str, str] | None:
    """The split that an array's name says, "all" for none, and the word for what it holds.

    Of `pictures` a split alone says enough.
    """
    words: list[str] = []
    for word in (found.lower() for found in _WORDS.findall(name)):
        together = _TOGETHER.fullmatch(word)
        words += [word] if together is None else filter(None, together.groups())
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    others = [word for word in words if word not in SPLIT_WORDS and word not in _FILLING]
    others = others or (["images"] if splits and pictures else [])
    if len(splits) > 1 or len(others) != 1 or others[0] not in (*_IMAGES, *_LABELS):
        return None
    return (splits[0] if splits else "all"), others[0]


def _say_unused(file: ArrayFile, path: Path, chosen: Mapping[str, tuple[str, str | None]]) -> None:
    """Name arrays that could be the labels of images that have none."""
    used = {name for pair in chosen.values() for name in pair}
    for image, label in chosen.values():
        shapes = file.shapes if label is None and file.shapes[image] else {}
        found = [
            f"{name} {shape}"
            for name, shape in shapes.items()
            if name not in used and 0 < len(shape) < 3 and shape[0] == file.shapes[image][0]
        ]
        if found:
            _log.warning(
                "%s: not used, though it could be the labels of %s: %s; %s",
                path,
                image or "the images",
                first_few(found),
                "--labels :/NAME takes it" if len(chosen) == 1 else "called y_train, … it would be",
            )
    for name, kind in _others(file).items():
        split, word = _meaning(name, pictures=False) or ("", "")
        if word in _LABELS and chosen.get(split, ("", "known"))[1] is None:
            _log.warning("%s: labels in %s, a %s array, aren't read; numbers are", path, name, kind)


def _others(file: ArrayFile) -> Mapping[str, str]:
    """Names of what else a file of MATLAB's holds, and what each is: cell, char, struct."""
    return file.others if isinstance(file, Mat5File | Mat73File) else {}


def _only(file: ArrayFile, path: Path, *, rank: int) -> str:
    """The only array of at least `rank` dimensions."""
    names = [name for name, shape in file.shapes.items() if len(shape) >= rank or name == ""]
    if len(names) != 1:
        numbers = [f"{name} {shape}" for name, shape in file.shapes.items()]
        others = [f"{name} ({kind})" for name, kind in _others(file).items()]
        there = some_of([*numbers, *others], most=20)
        what = "images" if rank > 1 else "labels"
        raise DataError(
            f"{path}: can't tell which array holds the {what}; it has: {there or 'none'}",
            hint=f"name it: {path}:/NAME" if names else "",
        )
    return names[0]


def _find(file: ArrayFile, path: Path, name: str) -> str:
    if name not in file.shapes:
        there = ", ".join(list(file.shapes)[:20]) or "nothing"
        raise UsageError(
            f"{path}: no array {name!r}; it holds: {there}", hint=near_names(name, file.shapes)
        )
    return name
