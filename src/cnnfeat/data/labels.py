"""What labels are: one class an image. Several classes and measured numbers are told apart from it.

An SVM here learns which of several classes an image is of. Labels that say something else (all that
is in an image, how large it is) are refused, with what was found.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.records import Array

SHOWN = 5  # of what is wrong, the first so many are listed
_NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LARGEST = 2.0**63  # from here on, no int64 holds it
_ONE_EACH = "give each image one class, or keep the images that have one"
_log = logging.getLogger("cnnfeat")


def first_few(items: Iterable[object]) -> str:
    """List the first five, and say how many there are in all if there are more."""
    listed = [str(item) for item in items]
    more = f", … ({len(listed):,} in all)" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def check_texts(labels: Collection[str], *, name: str) -> None:
    """Refuse texts that aren't names of classes.

    Parameters
    ----------
    labels : collection of str
        Those of all images, or each of them once.
    name : str
        What they are from, for messages.

    Raises
    ------
    DataError
        If all are numbers and some are fractions; if some are provably lists of classes.
    """
    different = set(labels)
    if different and all(map(_NUMERAL.fullmatch, different)):
        check_numbers(np.array([float(label) for label in different]), name=name)
    lists = sorted(_lists(different))
    if lists:
        raise DataError(
            f"{name}: multi-label, {len(lists):,} of {len(different):,} different labels are lists "
            f"of classes, such as {lists[0]!r}; one class an image is needed",
            hint=f"{_ONE_EACH}; if it is the name of one, write it without the mark between",
        )


def check_numbers(labels: Array, *, name: str) -> None:
    """Refuse floating-point numbers that aren't whole.

    Raises
    ------
    DataError
        With how many are NaN or infinite, or what they look like.
    """
    bad = int(np.count_nonzero(~(np.abs(labels) < _LARGEST)))
    if bad:
        raise DataError(
            f"{name}: {bad:,} of {len(labels):,} labels are NaN, infinite or too large; "
            "whole numbers or text are needed"
        )
    fractions = labels[np.floor(labels) != labels]
    if len(fractions):
        raise DataError(
            f"{name}: continuous targets, {len(np.unique(labels)):,} different numbers from "
            f"{labels.min():g} to {labels.max():g}, such as {fractions[0]:g}; classes are needed: "
            "whole numbers or text",
            hint="classes can be made of them, for example by numpy.digitize(y, edges)",
        )


def _lists(labels: Collection[str]) -> set[str]:
    """Labels that are provably lists of others.

    Brackets around all of them prove it. So does `|` if a part stands in another label too. Other
    marks stand within names as well: there all parts must be labels by themselves, or the same
    parts be a label in another order.
    """
    if labels and all(label[:1] + label[-1:] == "[]" for label in labels):
        return set(labels)
    found: set[str] = set()
    for mark in "|,; ":
        divided = {label: _parts(label, mark) for label in labels if mark in label}
        divided = {label: parts for label, parts in divided.items() if len(set(parts)) > 1}
        uses = Counter(part for parts in divided.values() for part in set(parts))
        orders = Counter(frozenset(parts) for parts in divided.values())
        for label, parts in divided.items():
            shared = any(part in labels or uses[part] > 1 for part in parts)
            alone = all(part in labels for part in parts)
            if (mark == "|" and shared) or alone or orders[frozenset(parts)] > 1:
                found.add(label)
    return found


def _parts(label: str, mark: str) -> list[str]:
    return [part.strip() for part in label.split(mark) if part.strip()]


def one_of(
    columns: Mapping[str, Sequence[str]], *, lines: Sequence[int], name: str
) -> list[str] | None:
    """Read several columns of 0 and 1 as one label a row: the name of the column with the 1.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        Cells by the names of the columns.
    lines : sequence of int
        The number of each row's line, for messages.
    name : str
        What they are from, for messages.

    Returns
    -------
    list of str or None
        None if they aren't two or more such columns.

    Raises
    ------
    DataError
        If rows have several ones, or none.
    """
    cells = {cell.strip() for column in columns.values() for cell in column}
    if len(columns) < 2 or not all(map(_NUMERAL.fullmatch, cells)):
        return None
    if not {float(cell) for cell in cells} <= {0, 1}:
        return None
    table = np.array([[float(cell) for cell in column] for column in columns.values()]).T
    places = one_hot(table, name=f"{name}, columns {first_few(columns)}", lines=lines)
    names = list(columns)
    return [names[place] for place in places.tolist()]


def one_hot(table: Array, *, name: str, lines: Sequence[int] | None = None) -> Array:
    """Say in which column each row has its 1.

    Parameters
    ----------
    table : ndarray of shape (n_samples, n_classes)
        Zeros and ones.
    name : str
        What it is from, for messages.
    lines : sequence of int, optional
        The number of each row's line in a file, for messages.

    Raises
    ------
    DataError
        If rows have several ones, or none.
    """
    n_ones = np.count_nonzero(table, axis=1)
    several, none = np.flatnonzero(n_ones > 1).tolist(), np.flatnonzero(n_ones == 0).tolist()
    if several or none:
        rows = several or none
        what = f"{len(rows):,} of {len(table):,} rows have {'several ones' if several else 'no 1'}"
        where = f"rows {first_few(rows)}"
        if lines is not None:
            where = f"lines {first_few(lines[row] for row in rows)}"
        raise DataError(
            f"{name}: {'multi-label, ' if several else ''}{what} ({where}); one class an image is "
            "needed",
            hint=_ONE_EACH,
        )
    _log.info("%s: one 1 a row: taken as %s classes", name, f"{table.shape[1]:,}")
    places: Array = table.argmax(axis=1)
    return places
