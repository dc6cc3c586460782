"""Checks every block of a feature file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import format as fmt
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.seal import text_checksum
from cnnfeat.pixels import unusable
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.records import Array


@dataclass(frozen=True, slots=True)
class Damage:
    """One block that doesn't hold what was written, or a whole shard: then it is of no split."""

    split: str
    layer: str  # or "label", "part", "group", "id"
    block: int | None  # None: can't be read at all
    message: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """Rows of a layer that were written so, and nothing can be computed from."""

    split: str
    layer: str
    n_rows: int  # of the split
    n_bad: int
    first: int  # row
    id: str  # its
    reason: str  # what it holds

    def __str__(self) -> str:
        return (
            f"{self.split}/{self.layer} has NaN, infinite or immense numbers in {self.n_bad:,} of "
            f"{self.n_rows:,} rows; the first is row {self.first} ({self.id}): {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a whole file found."""

    n_blocks: int
    size_bytes: int
    damages: tuple[Damage, ...]
    unusable: tuple[Unusable, ...] = ()


class UnusableRows:
    """Counts the rows of a layer that nothing can be computed from, a block at a time."""

    def __init__(self, file: FeatureFile, split: str, layer: str) -> None:
        self._file, self._split, self._layer = file, split, layer
        self.before = 0  # rows of other shards, before those that are looked at
        self.found: Unusable | None = None

    def look_at(self, start: int, rows: Array) -> None:
        """Take in the rows from `start` on."""
        bad = unusable(rows)
        if not bad:
            return
        if self.found is None:
            place, reason = next(iter(bad.items()))
            row = self.before + start + place
            n_rows = self._file.n_rows(self._split)
            self.found = Unusable(self._split, self._layer, n_rows, 0, row, self._id(row), reason)
        self.found = replace(self.found, n_bad=self.found.n_bad + len(bad))

    def _id(self, row: int) -> str:
        try:
            return self._file.ids(self._split, start=row, stop=row + 1)[0]
        except FeatureFileError:
            return "whose id is damaged"


def verify_file(path: Path, *, progress: Progress = SILENT) -> Verification:
    """Check features, labels, parts, groups and ids of a file against its block checksums.

    Of a set, all shards are checked; one that can't be opened is a damage among others.

    Raises
    ------
    FeatureFileError
        If the file, or the set, can't be opened at all.
    MissingInputError
        If there is none.
    """
    with FeatureFile(path) as file:
        return verify_opened(file, progress=progress)


def verify_opened(file: FeatureFile, *, progress: Progress = SILENT) -> Verification:
    """Check what an open file, or set, holds; see `verify_file`."""
    damages: list[Damage] = []
    columns = {split: file.columns(split) for split in file.splits}
    counted = {
        (split, column): UnusableRows(file, split, column)
        for split in file.splits
        for column in columns[split]
    }
    rows = sum(file.n_rows(split) * len(names) for split, names in columns.items())
    with progress.task("verifying", total=rows, unit="rows") as task:
        for number in range(file.n_pieces):
            damages += _check_piece(file, number, counted, task)
    n_blocks = sum(file.n_blocks(split) * len(names) for split, names in columns.items())
    bad = tuple(one.found for one in counted.values() if one.found is not None)
    return Verification(n_blocks, file.size_bytes, tuple(damages), bad)


def _check_piece(
    file: FeatureFile, number: int, counted: Mapping[tuple[str, str], UnusableRows], task: Task
) -> list[Damage]:
    found = []
    try:
        with file.piece(number) as (piece, before):
            for split in piece.splits:
                for column in piece.columns(split):
                    rows = counted[split, column]
                    rows.before = before[split]
                    found += _check_column(piece, split, column, rows, task)
    except FeatureFileError as error:
        found.append(Damage("", "", None, str(error)))
    return found


def _check_column(
    file: FeatureFile, split: str, column: str, counted: UnusableRows, task: Task
) -> list[Damage]:
    found = []
    begin = 0
    for block, end in enumerate(file.sums(split).stops.tolist()):
        before = counted.found
        try:
            if column == fmt.ID:
                _check_ids(file, split, block, begin=begin, end=end)
            else:
                file.check_block(split, column, block, look=counted.look_at)
        except FeatureFileError as error:
            counted.found = before
            found.append(Damage(split, column, block, str(error)))
        task.advance(end - begin)
        begin = end
    return found


def _check_ids(file: FeatureFile, split: str, block: int, *, begin: int, end: int) -> None:
    try:
        found = text_checksum(file.ids(split, start=begin, stop=end))
    except FeatureFileError as error:
        raise file.damaged(split, fmt.ID, block) from error
    if found != int(file.sums(split).of(fmt.ID)[block]):
        raise file.damaged(split, fmt.ID, block)
