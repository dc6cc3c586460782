"""A feature file whose rows are read in the order of another one of the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError
from cnnfeat.records import some_of

if TYPE_CHECKING:
    from cnnfeat.features.reader import FeatureFile
    from cnnfeat.records import Array, Groups, Labels, Parts

T = TypeVar("T", bound=np.generic)
_NAMED = 3  # ids in a message
AGAIN = "make both with cnnfeat extract, of the same images, divided alike"


class AlignedFile:
    """A feature file, read in the order of another.

    Rows are the same where their split and id are.

    Parameters
    ----------
    file : FeatureFile
        What is read.
    first : FeatureFile
        Whose order it is; the same file changes nothing.

    Raises
    ------
    FeatureFileError
        If one has splits, classes or ids that the other hasn't, or an id twice where the order
        doesn't tell which is which.
    """

    def __init__(self, file: FeatureFile, first: FeatureFile) -> None:
        self.file = file
        self._orders: dict[str, NDArray[np.int64]] = {}
        self._sound: set[tuple[str, str]] = set()  # what was read once, and its checksums held
        if file is not first:
            _check_alike(first, file)
            orders = {split: _row_order(first, file, split) for split in first.splits}
            self._orders = {split: rows for split, rows in orders.items() if rows is not None}

    def own_row(self, split: str, row: int) -> int:
        """Say where a row stands in the file itself."""
        return int(self._orders[split][row]) if split in self._orders else row

    def labels(self, split: str) -> Labels | None:
        """Labels of a split, (n_rows,)."""
        found = self.file.labels(split)
        return None if found is None else self.ordered(split, found)

    def parts(self, split: str) -> Parts | None:
        """What its network has seen of each row, (n_rows,)."""
        found = self.file.parts(split)
        return None if found is None else self.ordered(split, found)

    def groups(self, split: str) -> Groups | None:
        """Which rows belong together, (n_rows,)."""
        found = self.file.groups(split)
        return None if found is None else self.ordered(split, found)

    def ordered(self, split: str, column: NDArray[T]) -> NDArray[T]:
        """Bring what stands in the file's own order, (n_rows, ...), into the other's."""
        return column[self._orders[split]] if split in self._orders else column

    def take(
        self, split: str, layer: str, rows: NDArray[np.integer], *, any_numbers: bool
    ) -> Array:
        """Read some rows, in the order given; see `FeatureFile.take`."""
        order = self._orders.get(split)
        own = rows if order is None else order[rows]
        return self.file.take(split, layer, own, any_numbers=any_numbers)

    def blocks(
        self, split: str, layer: str, *, rows: int | None, any_numbers: bool
    ) -> Iterator[tuple[int, Array]]:
        """Read all rows in order, checking them; see `FeatureFile.blocks`."""
        order = self._orders.get(split)
        if order is None:
            yield from self.file.blocks(split, layer, rows=rows, any_numbers=any_numbers)
            return
        if (split, layer) not in self._sound:  # checksums are of rows in the file's own order
            for _ in self.file.blocks(split, layer, any_numbers=any_numbers):
                pass
            self._sound.add((split, layer))
        step = rows or len(order)
        for start in range(0, len(order), step):
            own = order[start : start + step]
            yield start, self.file.take(split, layer, own, any_numbers=any_numbers)


def _check_alike(first: FeatureFile, other: FeatureFile) -> None:
    """Refuse a file of other splits or classes."""
    if set(first.splits) != set(other.splits):
        raise FeatureFileError(
            f"{first.path} has the splits {', '.join(first.splits)}, and {other.path} has "
            f"{', '.join(other.splits)}: rows are joined by split and id",
            hint=AGAIN,
        )
    if not first.classes or not other.classes or first.classes == other.classes:
        return
    pairs = enumerate(zip(first.classes, other.classes, strict=False))
    label = next((label for label, (here, there) in pairs if here != there), None)
    differing = f"{len(first.classes):,} and {len(other.classes):,} of them"
    if label is not None:
        differing = f"class {label} is {first.classes[label]!r} and {other.classes[label]!r}"
    raise FeatureFileError(
        f"{first.path} and {other.path} have different classes: {differing}", hint=AGAIN
    )


def _row_order(first: FeatureFile, other: FeatureFile, split: str) -> NDArray[np.int64] | None:
    """Say where each row of a split of one file stands in another; None: at the same place."""
    wanted, there = first.ids(split), other.ids(split)
    if wanted == there:
        return None
    places = {name: row for row, name in enumerate(there)}
    _check_lacking(first, other, split=split, lacking=[n for n in wanted if n not in places])
    known = set(wanted)
    _check_lacking(other, first, split=split, lacking=[n for n in there if n not in known])
    for file, names in ((first, wanted), (other, there)):
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise FeatureFileError(
                f"{file.path}: {len(twice):,} ids of split {split!r} stand there more than once "
                f"({some_of(twice, most=_NAMED)}), and {first.path} and {other.path} have their "
                "rows in different orders: which is which can't be told",
                hint="make both with cnnfeat extract, of the images in one order",
            )
    return np.fromiter((places[name] for name in wanted), np.int64, len(wanted))


def _check_lacking(
    file: FeatureFile, other: FeatureFile, *, split: str, lacking: Sequence[str]
) -> None:
    if lacking:
        raise FeatureFileError(
            f"{len(lacking):,} ids of split {split!r} of {file.path} are not in {other.path}: "
            f"{some_of(lacking, most=_NAMED)}",
            hint=AGAIN,
        )
