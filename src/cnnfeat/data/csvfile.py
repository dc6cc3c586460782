"""Lines of a CSV or TSV file: UTF-8, comma, tab or semicolon, whichever stands in line one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnfeat.data.source import open_file
from cnnfeat.errors import DataError, UsageError, near_names

if TYPE_CHECKING:
    from cnnfeat.data.remote import AnyPath


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Which columns hold ids and labels; None: guessed."""

    ids: str | None = None
    labels: str | None = None


def separator(line: str) -> str:
    """Tell what stands between the cells of a file from its first line."""
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def cells_of(line: str) -> list[str]:
    """Divide one line into its cells."""
    return next(csv.reader([line], delimiter=separator(line)), [])


def csv_rows(path: AnyPath) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a file that aren't empty, each with its line's number, counted from 1.

    Raises
    ------
    DataError
        If it can't be read, or is no UTF-8 text; with the line, where one is no CSV.
    """
    with open_file(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
    first = text.splitlines()[0] if text else ""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator(first))
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def find_column(name: str, columns: Sequence[str], *, path: AnyPath) -> str:
    """Find a column that is meant, in any case.

    Raises
    ------
    DataError
        With the columns there are.
    """
    folded = {column.lower(): column for column in reversed(columns)}
    if name in columns:
        return name
    if name.lower() not in folded:
        raise DataError(
            f"{path}: no column {name!r}; line 1 names {', '.join(map(repr, columns))}",
            hint=near_names(name, columns),
        )
    return folded[name.lower()]


def find_group(
    group_by: str, columns: Sequence[str], *, path: AnyPath, otherwise: str
) -> str | None:
    """Find the column that says which pictures belong together.

    Returns
    -------
    str or None
        None for the word `otherwise`, where no column is called so.

    Raises
    ------
    UsageError
        With the columns there are.
    """
    folded = {column.lower(): column for column in reversed(columns)}
    if group_by.lower() in folded:
        return folded[group_by.lower()]
    if group_by == otherwise:
        return None
    there = f"it has: {', '.join(columns)}" if columns else "its first line names no columns"
    raise UsageError(
        f"--group-by {group_by}: {path} has no such column; {there}",
        hint=near_names(group_by, columns)
        or f"--group-by {otherwise} goes by the pictures' folders",
    )
