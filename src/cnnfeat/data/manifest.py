"""A CSV or TSV file that lists pictures: `path,label[,split]`, paths relative to it.

Any other column can say which pictures belong together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cnnfeat.address import Address, is_address, store_address
from cnnfeat.data.csvfile import LabelColumns, cells_of, csv_rows, find_column, find_group
from cnnfeat.data.folders import FOLDER, natural_key, without_ending
from cnnfeat.data.imagefiles import ImageFileSource
from cnnfeat.data.labels import check_texts, first_few, one_of
from cnnfeat.data.remote import AnyPath, RemotePath, remote_paths
from cnnfeat.data.source import ImageFile, file_states, open_file
from cnnfeat.errors import DataError, UsageError
from cnnfeat.records import SPLIT_WORDS

# Columns as people name them; of several the first here is taken.
_COLUMNS = {
    "path": (
        *("path", "file", "filename", "image", "image_path", "file_path", "filepath"),
        *("file_name", "image_name", "imagename", "img_name", "image_id", "imageid", "img_id"),
        *("img", "picture", "photo", "id", "name"),
    ),
    "label": (
        *("label", "class", "target", "labels", "classes", "class_name", "classname"),
        *("category", "breed", "species", "diagnosis", "dx"),
    ),
    "split": ("split", "subset", "set", "partition", "phase"),
}
_ORDER = ("train", "validation", "test", "all")
_START_BYTES = 65_536
_ANY = LabelColumns()
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int  # in the file, counted from 1
    path: str
    label: str | None
    split: str
    group: str | None
    rest: tuple[str, ...]  # cells of the other columns


def is_manifest(path: Path) -> bool:
    """Whether a file looks like lines of `path,label` or `path`; see `is_manifest_start`."""
    with open_file(path) as file:
        return is_manifest_start(file.read(_START_BYTES))


def is_manifest_start(start: bytes) -> bool:
    """Whether bytes are UTF-8 text, of whose first line the cells can be those of a manifest."""
    text = start.decode("utf-8-sig", "replace")
    first = text.splitlines()[0] if text.strip() else ""
    return "\0" not in text and _columns(cells_of(first)) is not None


def open_manifest(
    path: AnyPath, named: LabelColumns = _ANY, *, max_pixels: int, group_by: str | None = None
) -> ImageFileSource:
    """Open the pictures a manifest lists, in its order.

    The first line may name the columns: `path`, `label`, `split`, or those that are meant; without
    names they come in this order, and label and split may be missing. `group_by` names a column
    whose values say which pictures belong together, or is "folder": then they do that lie in one.

    Raises
    ------
    DataError
        With the line, where one has no label or group, an unknown split, or too few columns; if a
        column that is meant isn't there, or labels are no classes.
    UsageError
        If there is no column `group_by`, with those there are.
    """
    lines = _read(path, named, group_by)
    classes = _classes(path, lines)
    files = _places(path, lines)
    index = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[ImageFile]] = {}
    for line in lines:
        label = None if line.label is None else index[line.label]
        file = ImageFile(line.path, files[line.path], label, line.group)
        splits.setdefault(line.split, []).append(file)
    return ImageFileSource(
        str(path),
        "manifest",
        images={name: splits[name] for name in _ORDER if name in splits},
        classes=classes,
        states=lambda: file_states({path.name: path} | files, always_contents=[path.name]),
        max_pixels=max_pixels,
    )


def _places(path: AnyPath, lines: Sequence[_Line]) -> dict[str, AnyPath]:
    """Find the file of each line: beside the list, or at an address that stands there.

    What a list at an address names lies in such a store, and never on this machine.
    """
    places: dict[str, AnyPath] = {}
    addresses: dict[str, Address] = {}
    for line in lines:
        if isinstance(path, Path) and not is_address(line.path):
            places[line.path] = path.parent / line.path
            continue
        try:
            addresses[line.path] = _address(path, line.path)
        except UsageError as error:
            raise DataError(f"{path}, line {line.number}: {error}", hint=error.hint) from error
    found = remote_paths(addresses.values())
    return places | {name: found[address] for name, address in addresses.items()}


def _address(path: AnyPath, name: str) -> Address:
    if isinstance(path, RemotePath) and not is_address(name):
        return path.address.parent.join(name)
    return store_address(name)


def _read(path: AnyPath, named: LabelColumns, group_by: str | None) -> list[_Line]:
    rows = list(csv_rows(path))
    first = rows[0][1] if rows else []
    columns = _columns(first) or {} if named == _ANY else _named_columns(first, named, path=path)
    if "path" not in columns:
        raise DataError(
            f"{path}: no column of pictures' paths; line 1 has {', '.join(map(repr, first))}",
            hint="--id-column names it",
        )
    header = rows.pop(0)[1] if rows and (named != _ANY or _is_header(first)) else []
    if group_by is not None:
        names = [cell.strip() for cell in header]
        column = find_group(group_by, names, path=path, otherwise=FOLDER)
        columns |= {} if column is None else {"group": names.index(column)}
    lines = [
        _line(path, row, number=number, columns=columns, group_by=group_by) for number, row in rows
    ]
    if not lines:
        raise DataError(f"{path}: lists no pictures")
    if not header:
        _check_first(path, first, lines)
    return lines if "label" in columns else _with_one_of(path, header, lines, columns)


def _check_first(path: AnyPath, first: Sequence[str], lines: Sequence[_Line]) -> None:
    """Refuse a first line that is no picture where all others are: its words name the columns."""
    one, *others = (line.path for line in lines)
    if others and not _has_ending(one) and all(map(_has_ending, others)):
        if isinstance(path, Path) and (path.parent / one).exists():
            return
        columns = zip(("--id-column", "--label-column"), first, strict=False)
        raise DataError(
            f"{path}: line 1 names no picture, and no columns that are known: "
            + ", ".join(map(repr, first)),
            hint=" ".join(f"{option} {name}" for option, name in columns) + " if it names columns",
        )


def _has_ending(name: str) -> bool:
    return without_ending(name) != name


def _names_picture(cell: str) -> bool:
    return _has_ending(cell.strip()) or is_address(cell.strip())


def _line(
    path: AnyPath,
    row: Sequence[str],
    *,
    number: int,
    columns: Mapping[str, int],
    group_by: str | None,
) -> _Line:
    if len(row) <= max(columns.values()):
        raise DataError(
            f"{path}, line {number}: {len(row)} columns, {max(columns.values()) + 1} are needed"
        )
    if not row[columns["path"]] or "\0" in row[columns["path"]]:
        raise DataError(f"{path}, line {number}: no path")
    split = row[columns["split"]].strip().lower() if "split" in columns else "all"
    if "split" in columns and split not in SPLIT_WORDS:
        raise DataError(
            f"{path}, line {number}: split {split!r}; {', '.join(SPLIT_WORDS)} are allowed"
        )
    group = None if group_by is None else PurePosixPath(row[columns["path"]]).parent.as_posix()
    if "group" in columns:
        group = row[columns["group"]].strip()
        if not group:
            raise DataError(f"{path}, line {number}: nothing in the column {group_by!r}")
    return _Line(
        number=number,
        path=row[columns["path"]],
        label=row[columns["label"]].strip() if "label" in columns else None,
        split=SPLIT_WORDS.get(split, split),
        group=group,
        rest=tuple(cell for place, cell in enumerate(row) if place not in columns.values()),
    )


def _with_one_of(
    path: AnyPath, header: Sequence[str], lines: list[_Line], columns: Mapping[str, int]
) -> list[_Line]:
    """Take columns of 0 and 1, one a class, for the labels; without them there are none."""
    names = [cell.strip() for place, cell in enumerate(header) if place not in columns.values()]
    if any(len(line.rest) != len(names) for line in lines):
        return lines
    cells = {name: [line.rest[place] for line in lines] for place, name in enumerate(names)}
    labels = one_of(cells, lines=[line.number for line in lines], name=str(path))
    if labels is None:
        if any(names):
            listed = first_few(repr(name) for name in names if name)
            _log.warning("%s: no labels; not used: %s; --label-column names them", path, listed)
        return lines
    return [replace(line, label=label) for line, label in zip(lines, labels, strict=True)]


def _classes(path: AnyPath, lines: Sequence[_Line]) -> tuple[str, ...]:
    empty = [line.number for line in lines if line.label == ""]
    if len(empty) == len(lines):
        raise DataError(f"{path}: the column of labels is empty", hint="leave the column out")
    if empty:
        raise DataError(
            f"{path}: {len(empty):,} of {len(lines):,} lines have no label: lines "
            f"{first_few(empty)}"
        )
    labels = {line.label for line in lines if line.label is not None}
    check_texts(labels, name=str(path))
    return tuple(sorted(labels, key=natural_key))


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a line names columns: that of paths, or another while no picture stands in it."""
    words = {cell.strip().lower() for cell in cells}
    others = words & {*_COLUMNS["label"], *_COLUMNS["split"]}
    return bool(words & {*_COLUMNS["path"]}) or (bool(others) and not any(map(_has_ending, cells)))


def _columns(cells: Sequence[str]) -> dict[str, int] | None:
    """Which column holds what; None if the line can't be one of a manifest."""
    if _is_header(cells):
        return _usual_columns(cells)
    if 2 <= len(cells) <= 3 or (len(cells) == 1 and _names_picture(cells[0])):
        return {column: place for place, column in enumerate(_COLUMNS) if place < len(cells)}
    return None


def _usual_columns(cells: Sequence[str]) -> dict[str, int]:
    """Which column holds what, by the names that people give them."""
    folded = [cell.strip().lower() for cell in cells]
    return {
        column: next(folded.index(name) for name in names if name in folded)
        for column, names in _COLUMNS.items()
        if any(name in folded for name in names)
    }


def _named_columns(cells: Sequence[str], named: LabelColumns, *, path: AnyPath) -> dict[str, int]:
    """Which column holds what, where that is said of one of them at least."""
    names = [cell.strip() for cell in cells]
    said = {"path": named.ids, "label": named.labels}
    return _usual_columns(cells) | {
        column: names.index(find_column(name, names, path=path))
        for column, name in said.items()
        if name is not None
    }
