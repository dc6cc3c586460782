"""Checks every block of a feature file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import FeatureFileError
from cnnfeat.features.format import ID
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.seal import text_checksum
from cnnfeat.progress import SILENT, Progress, Task


@dataclass(frozen=True, slots=True)
class Damage:
    """One block that doesn't hold what was written."""

    split: str
    layer: str  # or "label" or "id"
    block: int | None  # None: can't be read at all
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a whole file found."""

    n_blocks: int
    size_bytes: int
    damages: tuple[Damage, ...]


def verify_file(path: Path, *, progress: Progress = SILENT) -> Verification:
    """Check features, labels and ids of a file against its block checksums.

    Raises
    ------
    FeatureFileError
        If the file can't be opened at all.
    MissingInputError
        If there is none.
    """
    damages: list[Damage] = []
    n_blocks = 0
    with FeatureFile(path) as file:
        rows = sum(file.n_rows(s) * len(file.sums(s).columns) for s in file.splits)
        with progress.task("verifying", total=rows, unit="rows") as task:
            for split in file.splits:
                for column in file.sums(split).columns:
                    n_blocks += len(file.sums(split).stops)
                    damages.extend(_check_column(file, split, column, task))
    return Verification(n_blocks, path.stat().st_size, tuple(damages))


def _check_column(file: FeatureFile, split: str, column: str, task: Task) -> list[Damage]:
    found = []
    begin = 0
    for block, end in enumerate(file.sums(split).stops.tolist()):
        try:
            if column == ID:
                _check_ids(file, split, block, begin=begin, end=end)
            else:
                file.check_block(split, column, block)
        except FeatureFileError as error:
            found.append(Damage(split, column, block, str(error)))
        task.advance(end - begin)
        begin = end
    return found


def _check_ids(file: FeatureFile, split: str, block: int, *, begin: int, end: int) -> None:
    expected = int(file.sums(split).of(ID)[block])
    try:
        found = text_checksum(file.ids(split, start=begin, stop=end))
    except FeatureFileError as error:
        raise file.damaged(split, ID, block) from error
    if found != expected:
        raise file.damaged(split, ID, block)
