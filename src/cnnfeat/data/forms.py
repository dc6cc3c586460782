"""The forms in which data sets are handed round: one file, or a folder whose files are the splits.

In a folder the names of files begin with their split: `train_32x32.mat`,
`test-00000-of-00002.parquet`, `train.tfrecord`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cnnfeat.data.decode import is_image
from cnnfeat.data.folders import natural_key
from cnnfeat.data.remote import RemotePath
from cnnfeat.data.source import OpenedSource, unreadable
from cnnfeat.errors import DataError, UsageError
from cnnfeat.records import SPLIT_WORDS, some_of

_ORDER = ("train", "validation", "test")
# At the beginning; or behind a hyphen, as in `mnist-train.tfrecord-00000-of-00001`.
_WORD = re.compile(rf"(?:^|-)({'|'.join(SPLIT_WORDS)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(.*?-)(\d{1,9})-of-(\d{1,9})")
_DIGITS = re.compile(r"\d+")
_NOT_OURS = ("__MACOSX", "__pycache__")
_MAX_ENTRIES = 20_000
_log = logging.getLogger("cnnfeat")

P = TypeVar("P", Path, RemotePath)
Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True, slots=True)
class FormRequest:
    """What is to be opened: the files of each split, of the file or folder `path`."""

    path: Path
    files: Files
    labels: str | None
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Form:
    """One of the forms: how a file of it is known, and what opens them."""

    name: str
    known: Callable[[Path], bool]
    open: Callable[[FormRequest], OpenedSource]


def open_form(path: Path, *, labels: str | None, max_pixels: int) -> OpenedSource | None:
    """Open a file or folder, if it is in one of these forms.

    Parameters
    ----------
    path : Path
        Of a file or a folder.
    labels : str or None
        Which labels of several in it, as ":/coarse_labels".
    max_pixels : int
        Larger encoded pictures are refused before they are decoded.

    Returns
    -------
    OpenedSource or None
        None: it is none of these.

    Raises
    ------
    DataError
        If it is damaged, or a folder holds several forms.
    UsageError
        If it has no such labels.
    """
    from cnnfeat.data.cifar import find_cifar_files, open_cifar

    names = _list(path) if path.is_dir() else None
    if cifar := find_cifar_files(path, names):
        return _told(open_cifar(path, cifar, labels=_inside(labels, path)))
    found = _find(path) if names is None else _find_in_folder(path, names)
    if found is None:
        return None
    form, files = found
    return _told(form.open(FormRequest(path, files, labels, max_pixels)))


def open_files(
    pattern: Path, paths: Sequence[Path], *, labels: str | None, max_pixels: int
) -> OpenedSource | None:
    """Open files of one of these forms, whose names a pattern gives, in its order.

    They are one split, unless their names begin with several.

    Raises
    ------
    DataError
        If some aren't there; and as `open_form` does.
    """
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{pattern}: {len(missing):,} of {len(paths):,} files are missing: {some_of(missing)}"
        )
    form = next((form for form in _forms() if form.known(paths[0])), None)
    if form is None:
        return None
    splits = _by_split(paths)
    return _told(form.open(FormRequest(pattern, splits, _inside(labels, pattern), max_pixels)))


def open_stored_tapes(
    name: str, paths: Sequence[RemotePath], *, labels: str | None, max_pixels: int
) -> OpenedSource:
    """Open tar files in a store, in their order; they are divided as those of a pattern.

    Raises
    ------
    DataError
        If some aren't there, or are no tar files.
    """
    from cnnfeat.data.tape import is_tape_start
    from cnnfeat.data.webdataset import open_webdataset

    missing = [path.name for path in paths if path.entry is None]
    if missing:
        raise DataError(
            f"{name}: {len(missing):,} of {len(paths):,} files are missing: {some_of(missing)}"
        )
    if not is_tape_start(paths[0].start()):
        raise DataError(
            f"{paths[0]}: is no tar file; several files in a store are one source where they are"
        )
    labels = _inside(labels, name)
    return _told(open_webdataset(name, _by_split(paths), labels=labels, max_pixels=max_pixels))


def _by_split(paths: Sequence[P]) -> dict[str, list[P]]:
    """Divide files by the splits that all of their names begin with; else they are one."""
    splits: dict[str, list[P]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.name) or "all", []).append(path)
    return {"all": list(paths)} if "all" in splits or len(splits) == 1 else splits


def _forms() -> tuple[Form, ...]:
    """All of them; what reads them is loaded when something is opened, not before."""
    from cnnfeat.data.arrayfile import open_array_files
    from cnnfeat.data.matfile import is_mat
    from cnnfeat.data.parquet import is_parquet, open_parquet
    from cnnfeat.data.pixeltable import is_pixel_table, open_pixel_table
    from cnnfeat.data.tape import is_tape
    from cnnfeat.data.tfrecord import is_tfrecord, open_tfrecord
    from cnnfeat.data.webdataset import open_webdataset

    def arrays(asked: FormRequest) -> OpenedSource:
        return open_array_files(asked.path, asked.files, labels=asked.labels)

    def parquet(asked: FormRequest) -> OpenedSource:
        labels = _inside(asked.labels, asked.path)
        return open_parquet(asked.path, asked.files, labels=labels, max_pixels=asked.max_pixels)

    def tfrecord(asked: FormRequest) -> OpenedSource:
        labels = _inside(asked.labels, asked.path)
        return open_tfrecord(asked.path, asked.files, labels=labels, max_pixels=asked.max_pixels)

    def tapes(asked: FormRequest) -> OpenedSource:
        labels = _inside(asked.labels, asked.path)
        return open_webdataset(asked.path, asked.files, labels=labels, max_pixels=asked.max_pixels)

    def pixels(asked: FormRequest) -> OpenedSource:
        if asked.labels is not None:
            raise UsageError(
                f"labels can be named where there are several; {asked.path} has its own"
            )
        return open_pixel_table(asked.path, asked.files)

    return (
        Form(".mat files", is_mat, arrays),
        Form("parquet files", is_parquet, parquet),
        Form("TFRecord files", is_tfrecord, tfrecord),
        Form("tar files", is_tape, tapes),
        Form("CSV files of pixels", is_pixel_table, pixels),
    )


def _find(path: Path) -> tuple[Form, Files] | None:
    form = next((form for form in _forms() if form.known(path)), None)
    return None if form is None else (form, {"all": (path,)})


def _find_in_folder(folder: Path, names: Sequence[str]) -> tuple[Form, Files] | None:
    """Find the files of a form right in a folder that has neither folders nor pictures in it.

    Names that differ in their digits alone are files of one form.
    """
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in (folder / name for name in names):
        if path.is_dir():
            return None
        ending = _DIGITS.sub("0", "".join(path.suffixes))
        kinds.setdefault((_split_of(path.name), ending), []).append(path)
    found: dict[str, dict[str, list[Path]]] = {}
    forms = {form.name: form for form in _forms()}
    for (split, _), paths in kinds.items():
        if not paths[0].is_file():
            continue
        if is_image(paths[0]):
            return None
        form = next((form for form in forms.values() if form.known(paths[0])), None)
        if form is not None:
            found.setdefault(form.name, {}).setdefault(split, []).extend(paths)
    if not found:
        return None
    if len(found) > 1:
        raise DataError(f"{folder}: holds {' and '.join(found)}", hint="give one of them alone")
    ((name, files),) = found.items()
    return forms[name], _in_order(files, folder)


def _in_order(files: Files, folder: Path) -> Files:
    """Order splits, and the files of each; where no name has a split, all files are one."""
    named = {split: _sorted(files[split]) for split in _ORDER if split in files}
    others = _sorted(files.get("", ()))
    for paths in (*named.values(), others):
        _warn_of_missing(folder, [path.name for path in paths])
    if not named:
        return {"all": others}
    if others:
        _log.warning(
            "%s: left out, as their names begin with no split: %s",
            folder,
            ", ".join(path.name for path in others[:5]) + (" …" if len(others) > 5 else ""),
        )
    return named


def _warn_of_missing(folder: Path, names: Sequence[str]) -> None:
    """Say which files there should be besides `train-00000-of-00002`, by its own name."""
    found: dict[tuple[str, str], set[int]] = {}
    for word in filter(None, map(_SHARD.match, names)):
        found.setdefault((word[1], word[3]), set()).add(int(word[2]))
    for (stem, total), numbers in found.items():
        missing = sorted({*range(min(int(total), _MAX_ENTRIES))} - numbers)
        if missing:
            listed = some_of([f"{stem}{number:0{len(total)}d}-of-{total}" for number in missing])
            _log.warning("%s: files of a split are missing: %s", folder, listed)


def _list(folder: Path) -> list[str]:
    """Names of what is right in a folder; none of a folder with so many that it holds pictures."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ENTRIES + 1)]
    except OSError as error:
        raise unreadable(folder, error) from error
    ours = (name for name in names if not name.startswith(".") and name not in _NOT_OURS)
    return sorted(ours) if len(names) <= _MAX_ENTRIES else []


def _sorted(paths: Sequence[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(path.name))


def _split_of(name: str) -> str:
    word = _WORD.search(name)
    return "" if word is None else SPLIT_WORDS[word[1].lower()]


def _inside(labels: str | None, path: Path | str) -> str | None:
    """Check that labels are named as something in the files themselves."""
    if labels is not None and not labels.startswith(":"):
        raise UsageError(
            f"{path} has its own labels; of several they can be named, as :/NAME, not {labels!r}"
        )
    return labels


def _told(source: OpenedSource) -> OpenedSource:
    """Say what a source can't give."""
    bare = [split for split, info in source.splits.items() if not info.has_labels]
    if bare:
        _log.info("%s: no labels for %s", source.name, ", ".join(bare))
    if source.classes and all(name.lstrip("-").isdecimal() for name in source.classes):
        _log.info("%s: no names of classes; they are called by their numbers", source.name)
    return source
