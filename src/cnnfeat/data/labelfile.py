"""Labels of pictures out of a second file: a CSV with a column of ids and one of labels."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from cnnfeat.data.csvfile import LabelColumns, csv_rows, find_column, find_group
from cnnfeat.data.folders import FOLDER, Listing, list_pictures, natural_key, without_ending
from cnnfeat.data.imagefiles import ImageFileSource
from cnnfeat.data.labels import check_texts, first_few, one_of
from cnnfeat.data.source import file_states
from cnnfeat.documents import printable
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.data.remote import AnyPath

# Columns as people name them; the one that is meant may be said.
_IDS = {
    "id", "ids", "image_id", "imageid", "img_id", "image", "image_name", "imagename", "image_path",
    "img", "img_name", "name", "path", "file", "filename", "file_name", "file_path", "filepath",
    "picture", "photo",
}  # fmt: skip
_LABELS = {
    "label", "labels", "class", "classes", "class_name", "classname", "category", "target", "breed",
    "species", "type", "y", "diagnosis", "dx",
}  # fmt: skip
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class _Table:
    """A CSV: its columns by name, and the number of each row's line."""

    path: AnyPath
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]


def open_labelled_folder(
    folder: AnyPath,
    labels: AnyPath,
    named: LabelColumns,
    *,
    max_pixels: int,
    group_by: str | None = None,
) -> ImageFileSource:
    """Open a folder of pictures with the labels that a CSV has for them; see `attach_labels`.

    Its folders are no classes; those called `train`, `val` and `test` are splits.
    """
    listing = attach_labels(list_pictures(folder, labels=labels), labels, named, group_by=group_by)
    files = {file.id: file.path for split in listing.splits.values() for file in split}
    said = f"labels {labels}"
    return ImageFileSource(
        printable(str(folder)),
        "folder",
        images=listing.splits,
        classes=listing.classes,
        states=lambda: file_states(files | {said: labels}, always_contents=[said]),
        max_pixels=max_pixels,
        labels_from=str(labels),
    )


def attach_labels(
    listing: Listing, path: AnyPath, named: LabelColumns, *, group_by: str | None = None
) -> Listing:
    """Give pictures the labels that a CSV has for their names.

    An id is a picture's name, with or without its ending, with or without the folders that it is
    in. Rows for pictures that aren't there are left out, with a warning.

    Parameters
    ----------
    listing : Listing
        Pictures; the labels they have don't count.
    path : Path or RemotePath
        A CSV or TSV file whose first line names the columns.
    named : LabelColumns
        The columns that are meant.
    group_by : str, optional
        A column that says which pictures belong together, or "folder".

    Raises
    ------
    DataError
        If a column isn't there or can't be guessed, a cell is empty, an id means several pictures,
        a picture stands there twice or not at all, or labels are no classes.
    UsageError
        If there is no column `group_by`, with those there are.
    """
    table = _read(path)
    names = _Names(file.id for files in listing.splits.values() for file in files)
    id_column = _id_column(table, named, names)
    group = None
    if group_by is not None:
        group = find_group(group_by, list(table.columns), path=path, otherwise=FOLDER)
    ids, labels = table.columns[id_column], _labels(table, named, taken=(id_column, group))
    rows = _rows(table, ids, names)
    _check_complete(listing, rows, table, id_column)
    of_picture = {picture: labels[row] for picture, row in rows.items()}
    check_texts(of_picture.values(), name=str(path))
    classes = tuple(sorted(set(of_picture.values()), key=natural_key))
    index = {name: label for label, name in enumerate(classes)}
    groups: dict[str, str] = {}
    if group is not None:
        groups = {picture: table.columns[group][row] for picture, row in rows.items()}
    elif group_by is not None:
        n_above = 0 if "all" in listing.splits else 1  # the folder of the split
        groups = {name: "/".join(PurePosixPath(name).parts[n_above:-1]) for name in rows}
    return Listing(
        {
            split: tuple(
                dataclasses.replace(
                    file, label=index[of_picture[file.id]], group=groups.get(file.id)
                )
                for file in files
            )
            for split, files in listing.splits.items()
        },
        classes,
    )


def _read(path: AnyPath) -> _Table:
    rows = list(csv_rows(path))
    if len(rows) < 2:
        raise DataError(
            f"{path}: no labels; line 1 must name the columns, and a line for each picture follow"
        )
    (_, header), *body = rows
    names = [cell.strip() for cell in header]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name: {', '.join(map(repr, names))}")
    cells = {
        name: tuple(row[place].strip() if place < len(row) else "" for _, row in body)
        for place, name in enumerate(names)
    }
    return _Table(path, cells, tuple(number for number, _ in body))


class _Names:
    """Pictures by what an id may say of them."""

    def __init__(self, ids: Iterator[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for name in ids:
            self._by_stem.setdefault(without_ending(PurePosixPath(name).name), []).append(name)

    def find(self, text: str) -> list[str]:
        """Pictures that an id means, the best matches alone: one, unless it is ambiguous."""
        wanted = PurePosixPath(text.replace("\\", "/"))
        found: dict[tuple[bool, ...], list[str]] = {}
        for stem in {wanted.name, without_ending(wanted.name)}:
            for name in self._by_stem.get(stem, ()):
                known = PurePosixPath(name)
                if _is_below(known.parent.parts, wanted.parent.parts):
                    exact = known.name == wanted.name
                    rank = (exact, stem == wanted.name, known.parent == wanted.parent)
                    found.setdefault(rank, []).append(name)
        return found[max(found)] if found else []


def _is_below(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two folders are one, seen from different places: one ends in the other."""
    n = min(len(one), len(other))
    return n == 0 or tuple(one[-n:]) == tuple(other[-n:])


def _id_column(table: _Table, named: LabelColumns, names: _Names) -> str:
    """The column that is meant, or else the only one, of those with a usual name, that fits."""
    columns = list(table.columns)
    if named.ids is not None:
        return find_column(named.ids, columns, path=table.path)
    usual = [column for column in columns if column.lower() in _IDS] or columns
    if len(usual) > 1:
        fitting = [name for name in usual if any(map(names.find, table.columns[name]))]
        usual = fitting if len(fitting) == 1 else usual
    if len(usual) > 1:
        raise DataError(
            f"{table.path}: can't tell which column holds the pictures' names: "
            + first_few(map(repr, usual)),
            hint="--id-column names it",
        )
    if names.find(usual[0]):
        raise DataError(
            f"{table.path}: line 1 must name the columns, and has {usual[0]!r}, a picture",
            hint="put a line such as id,label before it",
        )
    return usual[0]


def _labels(table: _Table, named: LabelColumns, *, taken: tuple[str, str | None]) -> Sequence[str]:
    """The labels of all rows. No cell is empty in that column and those that are taken."""
    others = {name: cells for name, cells in table.columns.items() if name not in taken}
    if named.labels is not None:
        column = find_column(named.labels, list(table.columns), path=table.path)
    else:
        usual = [name for name in others if name.lower() in _LABELS]
        if len(usual) != 1:
            if (found := one_of(others, lines=table.lines, name=str(table.path))) is not None:
                return found
            usual = usual or list(others)
        if len(usual) != 1:
            what = f": {first_few(map(repr, usual))}" if usual else f"; it has {taken[0]!r} alone"
            raise DataError(
                f"{table.path}: can't tell which column holds the labels{what}",
                hint="--label-column names it",
            )
        (column,) = usual
    for name in dict.fromkeys((*filter(None, taken), column)):
        empty = [table.lines[row] for row, cell in enumerate(table.columns[name]) if not cell]
        if empty:
            raise DataError(
                f"{table.path}: {len(empty):,} of {len(table.lines):,} lines have an empty cell in "
                f"{name!r}: lines {first_few(empty)}",
                hint="fill them in, or leave the lines out",
            )
    return table.columns[column]


def _rows(table: _Table, ids: Sequence[str], names: _Names) -> dict[str, int]:
    """The row of each picture that has one; says which rows have none."""
    rows: dict[str, list[int]] = {}
    doubtful, surplus = [], []
    for row, text in enumerate(ids):
        found = names.find(text)
        if len(found) > 1:
            doubtful.append(f"{text!r} in line {table.lines[row]}: {first_few(found)}")
        elif found:
            rows.setdefault(found[0], []).append(row)
        else:
            surplus.append(text)
    if doubtful:
        raise DataError(
            f"{table.path}: {len(doubtful):,} ids could each mean several pictures: "
            + first_few(doubtful),
            hint="write the folder before the name, and the ending after it",
        )
    several = [
        f"{name} (lines {first_few(table.lines[row] for row in places)})"
        for name, places in rows.items()
        if len(places) > 1
    ]
    if several:
        raise DataError(
            f"{table.path}: {len(several):,} pictures stand there more than once: "
            + first_few(several),
            hint="one line and one label for each picture is needed",
        )
    if surplus and rows:
        _log.warning(
            "%s: %s of %s lines are for pictures that aren't there: %s",
            table.path,
            f"{len(surplus):,}",
            f"{len(ids):,}",
            first_few(map(repr, surplus)),
        )
    return {name: place for name, (place,) in rows.items()}


def _check_complete(
    listing: Listing, rows: Mapping[str, int], table: _Table, id_column: str
) -> None:
    """Refuse pictures without a label."""
    missing = {
        split: [file.id for file in files if file.id not in rows]
        for split, files in listing.splits.items()
    }
    without = [name for names in missing.values() for name in names]
    if not without:
        return
    n_pictures = sum(map(len, listing.splits.values()))
    if not rows:
        hint = f"in {id_column!r} stands {table.columns[id_column][0]!r}; --id-column names another"
    else:
        whole = [
            split for split, files in listing.splits.items() if len(missing[split]) == len(files)
        ]
        hint = "add lines for them, or move them away"
        if whole:
            folders = {PurePosixPath(name).parts[0] for split in whole for name in missing[split]}
            hint += f"; in {first_few(sorted(folders))} none has one: --data with another folder"
    raise DataError(
        f"{table.path}: {len(without):,} of {n_pictures:,} pictures have no label there: "
        + first_few(without),
        hint=hint,
    )
