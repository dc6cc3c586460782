"""Which picture files a folder holds, in which order, with which labels."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.data.decode import is_image
from cnnfeat.data.regular import unreadable
from cnnfeat.errors import DataError

# A file with one of these endings claims to be a picture, and is an error if it isn't one.
_ENDINGS = frozenset(
    f".{ending}"
    for endings in ("png jpg jpeg jpe jfif", "bmp gif webp tif tiff", "pgm ppm pbm pnm")
    for ending in endings.split()
)
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_VALIDATION = ("val", "valid", "validation")
_NOT_OURS = ("__MACOSX", "__pycache__")
_NUMBER = re.compile(r"([0-9]+)")
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One picture of a source."""

    id: str  # relative to the source, with `/` between folders
    path: Path
    label: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """All pictures of a source."""

    splits: dict[str, tuple[ImageFile, ...]]
    classes: tuple[str, ...]


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key that puts `2.png` before `10.png`; texts and numbers alternate."""
    parts = _NUMBER.split(name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def list_folder(root: Path) -> Listing:
    """List the pictures below a folder.

    Sub-folders are classes; where all of them have names like `train` and `test`, they are splits,
    and theirs are classes. A folder without sub-folders has no labels. Hidden files and folders are
    left out; so are files that neither claim to be pictures by their ending nor are.

    Raises
    ------
    DataError
        If there are no pictures, a class has none, or pictures lie beside class folders.
    """
    folders, _ = _scan(root)
    splits = _find_splits([folder for folder in folders if not folder.samefile(root)])
    found = {
        split: _list_split(folder, root) for split, folder in (splits or {"all": root}).items()
    }
    names = sorted({name for classes in found.values() for name in classes or ()}, key=natural_key)
    if any(classes is None for classes in found.values()) and names:
        raise DataError(
            f"{root}: some splits have class folders and some have not: {', '.join(found)}"
        )
    if not names:
        return Listing({split: _flat(splits.get(split, root), root) for split in found}, ())
    labels = {name: label for label, name in enumerate(names)}
    return Listing(
        {
            split: tuple(
                ImageFile(_id(path, root), path, labels[name])
                for name in sorted(classes or {}, key=natural_key)
                for path in (classes or {})[name]
            )
            for split, classes in found.items()
        },
        tuple(names),
    )


def _find_splits(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders that are splits, `train` first; none if any folder isn't one."""
    found: dict[str, Path] = {}
    validation: Path | None = None
    for folder in folders:
        name = folder.name.lower()
        if name in _VALIDATION:
            validation = folder
        elif name in _SPLITS and _SPLITS[name] not in found:
            found[_SPLITS[name]] = folder
        else:
            return {}
    if not found:
        return {}
    if validation is not None:
        if "test" in found:
            _log.warning("%s is left out: a source has the splits train and test", validation)
        else:
            _log.info("%s is used as the split test", validation)
            found["test"] = validation
    return {split: found[split] for split in ("train", "test") if split in found}


def _list_split(folder: Path, root: Path) -> dict[str, list[Path]] | None:
    """Pictures by class; None where there are no class folders."""
    found, files = _scan(folder)
    above = (_identity(root), _identity(folder))
    folders = [sub for sub in found if not _leads_back(sub, above)]
    if not folders:
        return None
    classes = {_utf8_name(sub): list(_walk(sub, above)) for sub in folders}
    if not any(classes.values()):
        if any(_is_candidate(path) for path in files):
            return None
        raise _empty(root)
    loose = [path for path in files if _is_candidate(path)]
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} pictures lie beside {len(folders)} class folders, for example "
            f"{loose[0].name!r}",
            hint="move them into class folders, or the folders away",
        )
    if not all(classes.values()):
        counts = ", ".join(f"{name}: {len(paths):,}" for name, paths in classes.items())
        raise DataError(
            f"{folder}: a class has no pictures ({counts})",
            hint="remove its folder, or put its pictures there",
        )
    return classes


def _flat(folder: Path, root: Path) -> tuple[ImageFile, ...]:
    _, files = _scan(folder)
    images = tuple(ImageFile(_id(path, root), path, None) for path in files if _is_candidate(path))
    if not images:
        raise _empty(folder)
    return images


def _empty(folder: Path) -> DataError:
    folders, files = _scan(folder)
    return DataError(
        f"{folder}: holds no pictures ({len(files)} other files, {len(folders)} folders)",
        hint="give a folder of pictures, with or without class folders",
    )


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Pictures in a folder and all folders in it."""
    if _leads_back(folder, above):
        return
    folders, files = _scan(folder)
    yield from (path for path in files if _is_candidate(path))
    for sub in folders:
        yield from _walk(sub, (*above, _identity(folder)))


def _leads_back(folder: Path, above: tuple[tuple[int, int], ...]) -> bool:
    """Whether a folder is a link to one it lies in, which is said."""
    if _identity(folder) not in above:
        return False
    _log.warning("%s leads back to a folder it lies in; left out", folder)
    return True


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder, in natural order, without the hidden ones."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
                if entry.name.startswith(".") or entry.name in _NOT_OURS:
                    continue
                (folders if _is_folder(entry) else files).append(folder / entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_candidate(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS or is_image(path)


def _id(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _utf8_name(folder: Path) -> str:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{os.fsencode(folder)!r}: the name of a class must be UTF-8", hint="rename the folder"
        ) from error
    return folder.name
