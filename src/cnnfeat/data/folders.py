"""Which pictures a folder holds, in which order, and what its sub-folders say of them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.data.decode import is_image
from cnnfeat.data.source import ImageFile, is_utf8, packed_by, unreadable
from cnnfeat.documents import printable
from cnnfeat.errors import DataError
from cnnfeat.records import SPLIT_WORDS, some_of

if TYPE_CHECKING:
    from cnnfeat.data.remote import AnyPath

# A file with one of these endings claims to be a picture, and is an error if it isn't one.
_ENDINGS = frozenset(
    f".{ending}"
    for endings in (
        *("png jpg jpeg jpe jfif", "bmp gif webp tif tiff", "pgm ppm pbm pnm"),
        *("avif heic heif hif", "dcm"),
    )
    for ending in endings.split()
)
_APART = re.compile(r"[ _.-]+")  # what divides the words of a folder's name
# Pictures of kinds that are not read: as cameras write them, of medicine, vectors and others.
_UNREAD = frozenset(
    f".{ending}"
    for endings in (
        "cr2 cr3 crw nef nrw arw srf sr2 dng raf orf rw2 pef srw x3f erf mrw 3fr raw rwl iiq",
        "jxl jp2 j2k jpx jxr svg psd xcf exr hdr tga ico pcx dds eps nii mha nrrd fits fit czi",
    )
    for ending in endings.split()
)
FOLDER = "folder"  # --group-by: the folder that a picture lies in
_NOT_OURS = ("__MACOSX", "__pycache__")
_ORDER = ("train", "validation", "test")
_LISTED = 10
_NUMBER = re.compile(r"([0-9]+)")
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Listing:
    """All pictures of a source."""

    splits: dict[str, tuple[ImageFile, ...]]
    classes: tuple[str, ...]


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Sort key that puts `2.png` before `10.png`; texts and numbers alternate, the name ends ties.

    A number is a run of the digits 0 to 9. Of two without leading zeros the longer is the larger,
    so that no run is too long to be compared.
    """
    parts = enumerate(_NUMBER.split(name))
    return tuple(_number(part) if i % 2 else part for i, part in parts), name


def _number(digits: str) -> tuple[int, str]:
    significant = digits.lstrip("0")
    return len(significant), significant


def list_folder(root: AnyPath, *, grouped: bool = False) -> Listing:
    """List the pictures below a folder.

    Sub-folders are classes; where they have names like `train`, `val` and `test`, they are splits,
    theirs are classes, and others beside them are left out; see `_find_splits`. A folder without
    sub-folders has no labels. Hidden files and folders are left out; so are files that neither
    claim to be pictures by their ending nor are. A picture's group, if asked for, is the folder
    that it lies in, seen from its class: those called `patient7` in two classes are one.

    Raises
    ------
    DataError
        If there are no pictures, a class has none, or pictures lie beside class folders.
    """
    splits = _find_splits(root)
    others: set[AnyPath] = set()
    found = {
        split: _list_split(folder, root, others)
        for split, folder in (splits or {"all": root}).items()
    }
    names = sorted({name for classes in found.values() for name in classes or ()}, key=natural_key)
    if any(classes is None for classes in found.values()) and names:
        raise DataError(
            f"{root}: some splits have class folders and some have not: {', '.join(found)}"
        )
    if not names:
        flat = {
            split: _flat(splits.get(split, root), root, others, grouped=grouped) for split in found
        }
        _say_unread(root, others)
        if tables := [path.name for path in others if path.suffix.lower() in (".csv", ".tsv")]:
            _log.warning(
                "%s: no labels; not used, though they may hold some: %s; --labels names one",
                *(printable(str(root)), some_of(sorted(map(printable, tables)))),
            )
        return Listing(flat, ())
    _say_unread(root, others)
    labels = {name: label for label, name in enumerate(names)}
    return Listing(
        {
            split: tuple(
                ImageFile(
                    _id(path, root),
                    path,
                    labels[name],
                    _group(path, splits.get(split, root) / name) if grouped else None,
                )
                for name in sorted(classes or {}, key=natural_key)
                for path in (classes or {})[name]
            )
            for split, classes in found.items()
        },
        tuple(names),
    )


def list_pictures(root: AnyPath, *, labels: AnyPath) -> Listing:
    """List all pictures below a folder whose labels a file has: folders say the split at most."""
    splits = _find_splits(root)
    others: set[AnyPath] = set()
    found = {
        split: tuple(ImageFile(_id(path, root), path, None) for path in _walk(folder, (), others))
        for split, folder in (splits or {"all": root}).items()
    }
    if not all(found.values()):
        raise _empty(root)
    _say_unread(root, others - {labels})
    return Listing(found, ())


def _find_splits(root: AnyPath, *, deep: int = 3) -> dict[str, AnyPath]:
    """Folders that are splits, `train` first; none if those there are classes.

    They are called `train`, `val` and `test`, or so with the same words around them (`seg_train`,
    `seg_test`); others beside them are left out, which is said. Where all there is is one folder,
    they may be in it, and a split in a folder of its own name.

    Raises
    ------
    DataError
        If several folders are called the same split.
    """
    folders = [folder for folder in _scan(root)[0] if not _leads_to(folder, root)]
    named: dict[tuple[str, ...], list[tuple[str, AnyPath]]] = {}
    for folder in folders:
        for split, others in _splits_named(folder.name):
            named.setdefault(others, []).append((split, folder))
    for others, pairs in sorted(named.items(), key=lambda item: len(item[0])):
        found = dict(pairs)
        beside = [folder for folder in folders if folder not in found.values()]
        if not _are_splits(found, beside, named_so=not others):
            continue
        if len(found) < len(pairs):
            raise DataError(
                f"{root}: has several folders for one split: "
                + ", ".join(folder.name for _, folder in pairs),
                hint="leave one for each of train, validation and test",
            )
        if beside:
            names = ", ".join(folder.name for folder in beside[:_LISTED])
            _log.warning("%s: left out, as they are no splits: %s", printable(str(root)), names)
        return {split: _inner(found[split]) for split in _ORDER if split in found}
    if len(folders) == 1 and deep and not any(map(_is_candidate, _scan(root)[1])):
        return _find_splits(folders[0], deep=deep - 1)
    return {}


def _splits_named(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the split that a folder's name says, and the other words of it."""
    words = tuple(word for word in _APART.split(name.lower()) if word not in ("", "set"))
    for place, word in enumerate(words):
        if word in SPLIT_WORDS:
            yield SPLIT_WORDS[word], (*words[:place], *words[place + 1 :])


def _are_splits(found: Mapping[str, AnyPath], beside: Sequence[AnyPath], *, named_so: bool) -> bool:
    """Whether folders that are called splits are no classes: there are some called train."""
    if len(found) > 1:
        return named_so or "train" in found
    ((split, folder),) = found.items()
    if not named_so or split == "validation":
        return False
    folders, files = _scan(folder)
    inside = bool(folders) and not any(map(_is_candidate, files))
    return not beside or (inside and not any(_scan(other)[0] for other in beside))


def _inner(split: AnyPath) -> AnyPath:
    """Go into the folder of a split's own name that is all that it holds."""
    folders, files = _scan(split)
    same = len(folders) == 1 and folders[0].name == split.name and not _leads_to(folders[0], split)
    return folders[0] if same and not any(map(_is_candidate, files)) else split


def _list_split(
    folder: AnyPath, root: AnyPath, others: set[AnyPath]
) -> dict[str, list[AnyPath]] | None:
    """Pictures by class; None where there are no class folders."""
    found, files = _scan(folder)
    above = (_identity(root), _identity(folder))
    folders = [sub for sub in found if not _leads_back(sub, above)]
    if not folders:
        return None
    classes = {_utf8_name(sub): list(_walk(sub, above, others)) for sub in folders}
    for sub in folders:
        _say_splits_inside(sub, classes[sub.name])
    if not any(classes.values()):
        if any(map(_is_candidate, files)):
            return None
        raise _empty(root)
    loose = list(_pictures(files, others))
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


def _say_splits_inside(folder: AnyPath, pictures: Sequence[AnyPath]) -> None:
    """Warn of a folder that is taken for a class, and has split folders in it."""
    depth = len(folder.parts)
    inside = {parent.parts[depth] for parent in {path.parent for path in pictures} - {folder}}
    splits = {SPLIT_WORDS[name.lower()] for name in inside if name.lower() in SPLIT_WORDS}
    if len(splits) > 1:
        _log.warning(
            "%s: taken for a class, though it holds the splits %s; give it alone as --data",
            *(printable(str(folder)), ", ".join(sorted(splits))),
        )


def _flat(
    folder: AnyPath, root: AnyPath, others: set[AnyPath], *, grouped: bool
) -> tuple[ImageFile, ...]:
    _, files = _scan(folder)
    images = tuple(
        ImageFile(_id(path, root), path, None, _group(path, folder) if grouped else None)
        for path in _pictures(files, others)
    )
    if not images:
        raise _empty(folder)
    return images


def _empty(folder: AnyPath) -> DataError:
    """Say what there is instead, and what could be meant."""
    folders, files = _scan(folder)
    named = [f"{sub.name}/" for sub in folders] + [file.name for file in files]
    near = [file for file in files[:5] if isinstance(file, Path)]
    packed = next(((file, by) for file in near if (by := packed_by(file))), None)
    if files and not near:
        hint = "pictures are known by their endings there; other kinds of data: download them first"
    elif packed:
        hint = f"{packed[0].name} is packed with {packed[1][0]}; unpack it first: {packed[1][1]}"
    elif folders:
        hint = f"give the folder in it that holds them, such as {folders[0]}"
    else:
        hint = "give a folder of pictures, with or without class folders"
    return DataError(
        f"{folder}: holds no pictures; it has: {some_of(named) or 'nothing'}", hint=hint
    )


def _walk(folder: AnyPath, above: tuple[Hashable, ...], others: set[AnyPath]) -> Iterator[AnyPath]:
    """Pictures in a folder and all folders in it; what else there is goes to `others`."""
    if _leads_back(folder, above):
        return
    folders, files = _scan(folder)
    yield from _pictures(files, others)
    for sub in folders:
        yield from _walk(sub, (*above, _identity(folder)), others)


def _pictures(files: Sequence[AnyPath], others: set[AnyPath]) -> Iterator[AnyPath]:
    for path in files:
        if _is_candidate(path):
            yield path
        else:
            others.add(path)


def _say_unread(root: AnyPath, others: Collection[AnyPath]) -> None:
    """Say which files beside the pictures aren't read; warn where these are pictures, too."""
    counts = Counter(path.suffix.lower() for path in others)
    photos = {ending: n for ending, n in counts.items() if ending in _UNREAD}
    if photos:
        _log.warning(
            "%s: left out, as such pictures can't be read here: %s; as PNG or TIFF they can",
            *(printable(str(root)), _counted(photos)),
        )
    if plain := {ending: n for ending, n in counts.items() if ending not in _UNREAD}:
        _log.info("%s: no pictures, and not used: %s", printable(str(root)), _counted(plain))


def _counted(endings: Mapping[str, int]) -> str:
    """Count files by their endings: "5 .nef, 1 without an ending"."""
    most = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{n:,} {printable(ending) or 'without an ending'}" for ending, n in most])


def _leads_back(folder: AnyPath, above: tuple[Hashable, ...]) -> bool:
    """Whether a folder is a link to one it lies in, which is said."""
    if _identity(folder) not in above:
        return False
    _log.warning("%s leads back to a folder it lies in; left out", folder)
    return True


def _leads_to(folder: AnyPath, other: AnyPath) -> bool:
    return _identity(folder) == _identity(other)


def _identity(folder: AnyPath) -> Hashable:
    if not isinstance(folder, Path):  # in a store there are no links
        return folder
    status = folder.stat()
    return status.st_dev, status.st_ino


def _scan(folder: AnyPath) -> tuple[list[AnyPath], list[AnyPath]]:
    """Folders and files in a folder, in natural order, without the hidden ones."""
    folders: list[AnyPath] = []
    files: list[AnyPath] = []
    for name, is_folder in sorted(_names(folder), key=lambda item: natural_key(item[0])):
        if not name.startswith(".") and name not in _NOT_OURS:
            (folders if is_folder else files).append(folder / name)
    return folders, files


def _names(folder: AnyPath) -> list[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder."""
    if not isinstance(folder, Path):
        return list(folder.names())
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _is_folder(entry)) for entry in entries]
    except OSError as error:
        raise unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_candidate(path: AnyPath) -> bool:
    """Whether a file is one of pictures: by its ending; if it is no request away, by what it is."""
    if path.suffix.lower() in _ENDINGS:
        return True
    return isinstance(path, Path) and is_image(path)


def _group(path: AnyPath, folder: AnyPath) -> str:
    return _id(path.parent, folder) or "."


def without_ending(name: str) -> str:
    """Cut off a file's ending, if it is one of pictures."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in _ENDINGS else name


def _id(path: AnyPath, root: AnyPath) -> str:
    return "/".join(path.parts[len(root.parts) :])


def _utf8_name(folder: AnyPath) -> str:
    if not is_utf8(folder.name):
        raise DataError(
            f"{os.fsencode(str(folder))!r}: the name of a class must be UTF-8",
            hint="rename the folder",
        )
    return folder.name
