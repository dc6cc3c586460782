"""Pictures written out as numbers in a CSV file, as Kaggle hands them out.

Either a column a pixel, `label,pixel0,pixel1,…`, or all pixels in one cell, `emotion,pixels,Usage`,
where the last column is the division. Pictures are grey and square: of three colours such a file
doesn't say in which order they stand. They are held in memory, a byte a pixel, which is less than
the file takes.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.arrays import ArraySource, index_labels, make_split
from cnnfeat.data.csvfile import cells_of, separator
from cnnfeat.data.folders import natural_key
from cnnfeat.data.source import file_states, open_file
from cnnfeat.errors import DataError
from cnnfeat.records import SPLIT_WORDS

if TYPE_CHECKING:
    from cnnfeat.records import Array

_MAX_LINE_BYTES = 2**22  # of the names of the columns
_LEAST_PIXELS = 4  # columns of pixels; fewer may be anything
_PIXEL = re.compile(r"(pixel|px|p)[ _-]?\d+|\d+x\d+")
_LABELS = ("label", "emotion", "class", "target")
_DIVISIONS = ("usage", "split")
_USAGES = {**SPLIT_WORDS, "publictest": "validation", "privatetest": "test"}
_SHOWN = 40  # characters of a cell
_ORDER = ("train", "validation", "test", "all")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a table hold what."""

    pixels: range  # one each, or a single one with all of them
    names: Sequence[str]
    label: int | None
    usage: int | None
    order: Array | None  # of the pixels, where they don't stand in that of their names


@dataclass(slots=True)
class _Table:
    """The rows of a split."""

    pixels: bytearray = field(default_factory=bytearray)
    labels: list[str] = field(default_factory=list)
    n_rows: int = 0
    n_pixels: int = 0


def is_pixel_table(path: Path) -> bool:
    """Whether a file is a CSV whose first line names columns of pixels."""
    with open_file(path) as file:
        line = file.readline(_MAX_LINE_BYTES)
    try:
        return _columns(line.decode("utf-8-sig")) is not None
    except (UnicodeDecodeError, csv.Error):
        return False


def open_pixel_table(path: Path, files: Mapping[str, Sequence[Path]]) -> ArraySource:
    """Open CSV files of pixels as a source.

    Parameters
    ----------
    path : Path
        The file, or their folder.
    files : mapping of str to sequence of Path
        The files of each split; a column `Usage` goes before that.

    Raises
    ------
    DataError
        With the line, where one has other pixels than it should, or an unknown division.
    """
    tables: dict[str, _Table] = {}
    for split, paths in files.items():
        for one in paths:
            _read(one, split, tables)
    if not tables:
        raise DataError(f"{path}: holds no pictures")
    raw: dict[str, Array] = {}
    for split, table in tables.items():
        if table.labels and len(table.labels) < table.n_rows:
            raise DataError(f"{path}: some files of the split {split} have no labels")
        if table.labels:
            raw[split] = _numbers_or_text(table.labels)
    indices, classes = index_labels(raw, name=str(path))
    used = {one.name: one for paths in files.values() for one in paths}
    return ArraySource(
        str(path),
        "pixels",
        arrays={
            split: make_split(
                _images(tables[split], path), indices.get(split), name=f"{path}, {split}"
            )
            for split in _ORDER
            if split in tables
        },
        classes=classes,
        states=lambda: file_states(used),
    )


def _columns(line: str) -> _Columns | None:
    """Which columns hold what; None if the line names no pixels."""
    cells = [cell.strip().lower() for cell in cells_of(line)]
    label = next((cells.index(name) for name in _LABELS if name in cells), None)
    usage = next((cells.index(name) for name in _DIVISIONS if name in cells), None)
    if "pixels" in cells:
        place = cells.index("pixels")
        return _Columns(range(place, place + 1), cells, label, usage, None)
    places = [place for place, cell in enumerate(cells) if _PIXEL.fullmatch(cell)]
    if len(places) < _LEAST_PIXELS or places[-1] - places[0] != len(places) - 1:
        return None
    order = np.array(sorted(range(len(places)), key=lambda one: natural_key(cells[places[one]])))
    sorted_already = np.array_equal(order, np.arange(len(order)))
    return _Columns(
        range(places[0], places[-1] + 1), cells, label, usage, None if sorted_already else order
    )


def _read(path: Path, split: str, tables: dict[str, _Table]) -> None:
    """Add a file's rows to the tables of their splits."""
    with open_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        try:
            first = text.readline()
            columns = _columns(first)
            if columns is None:
                raise DataError(f"{path}: its first line names no columns of pixels")
            for number, row in enumerate(csv.reader(text, delimiter=separator(first)), 2):
                if row:
                    where = f"{path}, line {number}"
                    table = tables.setdefault(_split_of(row, columns, split, where), _Table())
                    _add(table, row, columns, where)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise DataError(f"{path}: {error}") from error


def _split_of(row: Sequence[str], columns: _Columns, split: str, where: str) -> str:
    n_columns = len(columns.names)
    if len(row) != n_columns:
        raise DataError(f"{where}: {len(row):,} columns; the first line has {n_columns:,}")
    if columns.usage is None:
        return split
    usage = row[columns.usage].strip()
    found = _USAGES.get(usage.lower())
    if found is None:
        said = repr(usage if len(usage) <= _SHOWN else f"{usage[:_SHOWN]}…")
        name = columns.names[columns.usage].capitalize()
        raise DataError(
            f"{where}: {name} {said}; Training, PublicTest, PrivateTest are known, and "
            "train, validation, test"
        )
    return found


def _add(table: _Table, row: Sequence[str], columns: _Columns, where: str) -> None:
    pixels = _pixels(" ".join(row[columns.pixels.start : columns.pixels.stop]), where)
    needed = len(columns.pixels) if len(columns.pixels) > 1 else table.n_pixels or len(pixels)
    if len(pixels) != needed or needed != (table.n_pixels or needed):
        raise DataError(f"{where}: {len(pixels):,} pixels; {needed:,} are needed")
    table.n_pixels = needed
    if columns.order is not None:
        pixels = pixels[columns.order]
    if columns.label is not None:
        label = row[columns.label].strip()
        if not label:
            raise DataError(f"{where}: no label")
        table.labels.append(label)
    table.pixels += pixels.tobytes()
    table.n_rows += 1


def _pixels(text: str, where: str) -> Array:
    """Read numbers between spaces."""
    numbers = _numbers(text, np.dtype(np.int64))  # seven times as fast as floats
    if numbers is None:
        numbers = _numbers(text, np.dtype(np.float64))
    if numbers is None:
        raise DataError(f"{where}: pixels that aren't numbers")
    # NaN is not within.
    within = numbers.size and float(numbers.min()) >= 0 and float(numbers.max()) <= 255
    pixels = numbers.astype(np.uint8) if within else np.empty(0, np.uint8)
    if not np.array_equal(pixels, numbers):
        raise DataError(f"{where}: pixels must be whole numbers from 0 to 255")
    return pixels


def _numbers(text: str, dtype: np.dtype[np.int64 | np.float64]) -> Array | None:
    """All numbers of a text; None where it holds something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.fromstring(text, dtype, sep=" ")
    except (ValueError, DeprecationWarning):
        return None


def _images(table: _Table, path: Path) -> Array:
    side = math.isqrt(table.n_pixels)
    of_colour = math.isqrt(table.n_pixels // 3)
    if of_colour > 1 and 3 * of_colour**2 == table.n_pixels:
        size = f"{of_colour}, {of_colour}"
        raise DataError(
            f"{path}: {table.n_pixels:,} numbers a picture, which are {of_colour}×{of_colour} in "
            "three colours; it doesn't say whether a pixel's three stand together or one colour "
            "comes after another",
            hint=f"save an .npz of images and labels: x.reshape(-1, {size}, 3), or "
            f"x.reshape(-1, 3, {size}).transpose(0, 2, 3, 1)",
        )
    if side**2 != table.n_pixels or not side:
        raise DataError(
            f"{path}: {table.n_pixels:,} pixels a picture; only squares, grey, can be told from "
            f"their number, such as {max(side, 1)}×{max(side, 1)} or {side + 1}×{side + 1}",
            hint="save them as an .npz of images (n, height, width), labels (n,)",
        )
    images: Array = np.frombuffer(table.pixels, np.uint8).reshape(-1, side, side)
    return images


def _numbers_or_text(labels: Sequence[str]) -> Array:
    try:
        return np.array([int(label) for label in labels], np.int64)
    except (ValueError, OverflowError):
        return np.array(labels, np.str_)
