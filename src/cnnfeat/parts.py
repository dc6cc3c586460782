"""Which rows of a source are trained on, which choose, and which are only ever tested on.

One rule for everybody: a training divides a source by it, an extraction does it again by the
network's card, and a machine on features of unknown history divides them by it.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from cnnfeat.documents import Count, Name, Share, take_up
from cnnfeat.errors import DataError
from cnnfeat.records import Json, Labels, class_name

TRAIN, VALIDATION, TEST = "train", "validation", "test"


class Part(IntEnum):
    """What a network has seen of a row."""

    UNSEEN = 0  # nothing
    FITTED = 1  # its weights were fitted to it
    VALIDATION = 2  # its best epoch was picked by it


@dataclass(frozen=True, slots=True)
class DivisionRule:
    """How a source was divided for a training: with the source, all that the division depends on.

    A fraction is None where the source has such a split of its own; `validation` may be 0: no rows.
    """

    test_fraction: Share | None  # of all rows
    validation: Share | None  # of the rows that are left to train on
    seed: Count
    group_by: Name | None = None  # rows of one group stay on one side
    min_per_class: Count = 1  # classes of fewer rows were left out

    def to_json(self) -> dict[str, Json]:
        """Make the card's record of it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> DivisionRule:
        """Take up a card's record.

        Raises
        ------
        ValueError
            If it is none of this version.
        """
        return take_up(cls, record)


class KeptDivision(TypedDict, total=False):
    """What is kept of a division: its rule, of older versions a part of it, and what came of it."""

    test_fraction: Share | None
    validation: Share | None
    seed: Count
    group_by: Name | None
    min_per_class: Count
    parts_sha256: Name


def split_trained_on(splits: Iterable[str]) -> str | None:
    """Name the split that a network is trained on; None where all there are test or validate."""
    usable = [name for name in splits if name not in (VALIDATION, TEST)]
    return TRAIN if TRAIN in usable else next(iter(usable), None)


def hold_out(
    labels: Labels,
    fraction: float,
    *,
    seed: int,
    classes: Sequence[str] = (),
    groups: NDArray[np.int64] | None = None,
    keep: int = 1,
) -> NDArray[np.bool_]:
    """Pick rows to hold out, of every class its share, but one at least.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        The class of each row.
    fraction : float
        Share of the rows to hold out, above 0 and below 1.
    seed : int
        The same labels, fraction, seed and groups give the same rows.
    classes : sequence of str
        Names for messages.
    groups : ndarray of shape (n_samples,), optional
        Rows of the same number stay on one side; classes get their share as nearly as that allows.
    keep : int
        How many rows of each class (of groups: how many groups) are left at least, so that they can
        be divided once more.

    Returns
    -------
    ndarray of shape (n_samples,)
        True where a row is held out.

    Raises
    ------
    DataError
        If a class has too few rows, or lies in too few groups.
    """
    if groups is not None:
        return _hold_out_groups(
            labels, fraction, seed=seed, classes=classes, groups=groups, keep=keep
        )
    held = np.zeros(len(labels), np.bool_)
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        n_held = min(max(1, round(fraction * len(rows))), len(rows) - keep)
        if n_held < 1:
            raise DataError(
                f"class {class_name(label, classes)!r} has {_count(len(rows), 'picture')}, and a "
                f"division needs {keep + 1}, one for each side"
            )
        held[rows[:n_held]] = True
    return held


def _hold_out_groups(
    labels: Labels,
    fraction: float,
    *,
    seed: int,
    classes: Sequence[str],
    groups: NDArray[np.int64],
    keep: int,
) -> NDArray[np.bool_]:
    """Go through the groups, large ones first; hold one out if that comes nearer to the shares."""
    present, codes = np.unique(labels, return_inverse=True)
    n_groups, of_row = _numbered(groups)
    counts = np.zeros((n_groups, len(present)))
    np.add.at(counts, (of_row, codes), 1)
    total = counts.sum(axis=0)
    left = np.count_nonzero(counts, axis=0)
    for code, label in enumerate(present):
        if left[code] <= keep:
            raise DataError(
                f"all {int(total[code]):,} pictures of class {class_name(label, classes)!r} are in "
                f"{_count(int(left[code]), 'group')}, and a division needs {keep + 1}: some of "
                "them on each side"
            )
    order = np.random.default_rng(seed).permutation(n_groups)
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    chosen = np.zeros(n_groups, np.bool_)
    share = np.zeros(len(present))
    for group in order:
        with_it = share + counts[group] / total
        nearer = np.sum((with_it - fraction) ** 2) < np.sum((share - fraction) ** 2)
        if nearer and np.all(left[counts[group] > 0] > keep):
            chosen[group], share = True, with_it
            left -= counts[group] > 0
    for group in order[::-1]:  # a class that got nothing: the smallest groups that have it
        lacking = (share == 0) & (counts[group] > 0)
        if lacking.any() and np.all(left[counts[group] > 0] > keep):
            chosen[group], share = True, share + counts[group] / total
            left -= counts[group] > 0
    if not np.all(share > 0):
        lacking_names = [class_name(present[code], classes) for code in np.flatnonzero(share == 0)]
        raise DataError(
            f"the {n_groups:,} groups can't be divided so that all {len(present)} classes are on "
            f"both sides; without a picture held out: {', '.join(lacking_names[:5])}"
        )
    return chosen[of_row]


def _numbered(groups: NDArray[np.int64]) -> tuple[int, NDArray[np.intp]]:
    names, of_row = np.unique(groups, return_inverse=True)
    return len(names), of_row


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def pack_parts(parts: NDArray[np.uint8]) -> str:
    """Write the part of each row as a short text, for a record."""
    return base64.b64encode(zlib.compress(parts.tobytes(), 9)).decode("ascii")


def unpack_parts(text: str, *, n_samples: int) -> NDArray[np.uint8] | None:
    """Read what `pack_parts` wrote; None where it is not of so many rows."""
    try:
        packed = base64.b64decode(text, validate=True)
        unpacker = zlib.decompressobj()
        found = np.frombuffer(unpacker.decompress(packed, n_samples + 1), np.uint8)
    except (ValueError, zlib.error):
        return None
    return found if len(found) == n_samples and found.max(initial=0) <= max(Part) else None
