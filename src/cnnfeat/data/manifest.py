"""A CSV or TSV file that lists pictures: `path,label[,split]`, paths relative to it.

Any other column can say which pictures belong together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cnnfeat.data.imagefiles import FOLDER, ImageFile, ImageFileSource, natural_key
from cnnfeat.data.source import file_states, open_regular
from cnnfeat.errors import DataError, UsageError, near_names

_COLUMNS = {
    "path": ("path", "file", "filename", "image", "image_path"),
    "label": ("label", "class", "target"),
    "split": ("split", "subset", "set"),
}
_SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
_ORDER = ("train", "validation", "test", "all")
_START_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class _Line:
    number: int  # in the file, counted from 1
    path: str
    label: str | None
    split: str
    group: str | None


def is_manifest(path: Path) -> bool:
    """Whether a file looks like lines of `path,label`: UTF-8 text with a separator in line one."""
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
    text = start.decode("utf-8-sig", "replace")
    first = text.splitlines()[0] if text.strip() else ""
    return "\0" not in text and _columns(_cells(first)) is not None


def open_manifest(path: Path, *, max_pixels: int, group_by: str | None = None) -> ImageFileSource:
    """Open the pictures a manifest lists, in its order.

    The first line may name the columns: `path`, `label`, `split`; without names they come in this
    order, and label and split may be missing. `group_by` names a column whose values say which
    pictures belong together, or is "folder": then they do that lie in one.

    Raises
    ------
    DataError
        With the line, where one has no label or group, an unknown split, or too few columns.
    UsageError
        If there is no column `group_by`, with those there are.
    """
    lines = list(_read(path, group_by))
    if not lines:
        raise DataError(f"{path}: lists no pictures")
    classes = _classes(path, lines)
    index = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[ImageFile]] = {}
    for line in lines:
        label = None if line.label is None else index[line.label]
        file = ImageFile(line.path, path.parent / line.path, label, line.group)
        splits.setdefault(line.split, []).append(file)
    files = {line.path: path.parent / line.path for line in lines}
    return ImageFileSource(
        str(path),
        "manifest",
        images={name: splits[name] for name in _ORDER if name in splits},
        classes=classes,
        states=lambda: file_states({path.name: path} | files, always_contents=[path.name]),
        max_pixels=max_pixels,
    )


def _read(path: Path, group_by: str | None) -> Iterator[_Line]:
    with open_regular(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
    first = text.splitlines()[0] if text else ""
    columns = _columns(_cells(first)) or {}
    if group_by is not None:
        columns |= _group_column(path, _cells(first), group_by)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(first))
    try:
        for row in rows:
            if not row or (rows.line_num == 1 and _is_header(row)):
                continue
            yield _line(path, row, number=rows.line_num, columns=columns, group_by=group_by)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def _line(
    path: Path,
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
    if "split" in columns and split not in _SPLITS:
        raise DataError(f"{path}, line {number}: split {split!r}; {', '.join(_SPLITS)} are allowed")
    group = None if group_by is None else PurePosixPath(row[columns["path"]]).parent.as_posix()
    if "group" in columns:
        group = row[columns["group"]].strip()
        if not group:
            raise DataError(f"{path}, line {number}: nothing in the column {group_by!r}")
    return _Line(
        number=number,
        path=row[columns["path"]],
        label=row[columns["label"]].strip() if "label" in columns else None,
        split=_SPLITS.get(split, split),
        group=group,
    )


def _group_column(path: Path, cells: Sequence[str], group_by: str) -> dict[str, int]:
    """Find the column that says which pictures belong together; none: their folders do."""
    names = [cell.strip() for cell in cells] if _is_header(cells) else []
    folded = [name.lower() for name in names]
    if group_by.lower() in folded:
        return {"group": folded.index(group_by.lower())}
    if group_by == FOLDER:
        return {}
    there = f"it has: {', '.join(names)}" if names else "its first line names no columns"
    raise UsageError(
        f"--group-by {group_by}: {path} has no such column; {there}",
        hint=near_names(group_by, names) or f"--group-by {FOLDER} goes by the pictures' folders",
    )


def _classes(path: Path, lines: Sequence[_Line]) -> tuple[str, ...]:
    empty = [line.number for line in lines if line.label == ""]
    if len(empty) == len(lines):
        raise DataError(f"{path}: the column of labels is empty", hint="leave the column out")
    if empty:
        raise DataError(
            f"{path}: {len(empty):,} of {len(lines):,} lines have no label; the first is "
            f"line {empty[0]}"
        )
    return tuple(sorted({line.label for line in lines if line.label is not None}, key=natural_key))


def _separator(line: str) -> str:
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _cells(line: str) -> list[str]:
    return next(csv.reader([line], delimiter=_separator(line)), [])


def _is_header(cells: Sequence[str]) -> bool:
    return any(cell.strip().lower() in _COLUMNS["path"] for cell in cells)


def _columns(cells: Sequence[str]) -> dict[str, int] | None:
    """Which column holds what; None if the line can't be one of a manifest."""
    if _is_header(cells):
        folded = [cell.strip().lower() for cell in cells]
        return {
            column: next(folded.index(name) for name in names if name in folded)
            for column, names in _COLUMNS.items()
            if any(name in folded for name in names)
        }
    if 2 <= len(cells) <= 3:
        return {column: place for place, column in enumerate(_COLUMNS) if place < len(cells)}
    return None
