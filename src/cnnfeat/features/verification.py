"""Checks every block of a feature file."""

from __future__ import annotations

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
    """One block that doesn't hold what was written."""

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
        self.found: Unusable | None = None

    def look_at(self, start: int, rows: Array) -> None:
        """Take in the rows from `start` on."""
        bad = unusable(rows)
        if not bad:
            return
        if self.found is None:
            place, reason = next(iter(bad.items()))
            row = start + place
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

    Raises
    ------
    FeatureFileError
        If the file can't be opened at all.
    MissingInputError
        If there is none.
    """
    damages: list[Damage] = []
    bad: list[Unusable] = []
    n_blocks = 0
    with FeatureFile(path) as file:
        rows = sum(file.n_rows(s) * len(file.sums(s).columns) for s in file.splits)
        with progress.task("verifying", total=rows, unit="rows") as task:
            for split in file.splits:
                for column in file.sums(split).columns:
                    n_blocks += len(file.sums(split).stops)
                    counted = UnusableRows(file, split, column)
                    damages.extend(_check_column(file, split, column, counted, task))
                    bad += [] if counted.found is None else [counted.found]
    return Verification(n_blocks, path.stat().st_size, tuple(damages), tuple(bad))


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
