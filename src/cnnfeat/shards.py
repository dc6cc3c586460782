"""Shards: which rows one of several runs computes, by two numbers alone. Nobody hands them out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.documents import Count
from cnnfeat.errors import OutputExistsError, UsageError

_DIGITS = 4
_NAME = re.compile(r"features\.([0-9]{4,9})-of-([0-9]{4,9})\.h5")


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Which rows of a set are a shard's."""

    number: Count  # from 1
    of: Count
    # By split, places in the source: of the first sample, and the one after the last.
    samples: Mapping[str, tuple[Count, Count]]


@dataclass(frozen=True, slots=True)
class ShardNumber:
    """The third of twenty: `3/20`."""

    number: int  # from 1
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(
                f"there is no shard {self}: of {self.of} shards they are numbered "
                f"{f'1 to {self.of}' if self.of > 0 else 'from 1'}",
                hint="--shard 3/20 is the third of twenty",
            )

    @classmethod
    def parse(cls, text: str) -> ShardNumber:
        """Read `3/20`.

        Raises
        ------
        UsageError
            If it isn't two whole numbers, the first from 1 to the second.
        """
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
        if found is None:
            raise UsageError(
                f"{text!r} is no shard: NUMBER/OF is, both whole and the first from 1",
                hint="--shard 3/20 is the third of twenty",
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def file_name(self) -> str:
        """What its file is called, in the folder of the set."""
        width = max(_DIGITS, len(str(self.of)))
        return f"features.{self.number:0{width}d}-of-{self.of:0{width}d}.h5"

    def path_in(self, folder: Path) -> Path:
        """Say where its file goes.

        Raises
        ------
        OutputExistsError
            If there is a file where the folder would be.
        """
        if folder.is_file():
            raise OutputExistsError(
                f"{folder} is a file, and shards go into a folder", hint="name a folder with -o"
            )
        return folder / self.file_name

    def rows(self, n_samples: Mapping[str, int], *, batch_size: int) -> ShardRows:
        """Find its samples: of each split a run of whole batches, as one run would have them.

        Parameters
        ----------
        n_samples : mapping of str to int
            By split, what all shards have together.
        batch_size : int
            Samples a batch.

        Raises
        ------
        UsageError
            If there are more shards than the longest split has batches.
        """
        n_batches = {split: -(-n // batch_size) for split, n in n_samples.items()}
        most = max(n_batches.values())
        if self.of > most:
            raise UsageError(
                f"{self.of:,} shards are more than there are batches: the longest split has "
                f"{most:,}, of {batch_size:,} images each",
                hint=f"make at most {most:,} shards, or smaller ones with --batch-size",
            )
        return ShardRows(
            self.number,
            self.of,
            {
                split: (
                    min(n_samples[split], (self.number - 1) * n // self.of * batch_size),
                    min(n_samples[split], self.number * n // self.of * batch_size),
                )
                for split, n in n_batches.items()
            },
        )


def numbers_in(name: str) -> tuple[int, int] | None:
    """Read a shard's number, and of how many it is, in the name of a file; None: it is no shard."""
    if found := _NAME.fullmatch(name):
        number, of = int(found[1]), int(found[2])
        # Another name of the same number would stand for a shard twice.
        if 1 <= number <= of and ShardNumber(number, of).file_name == name:
            return number, of
    return None


def shard_files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Find the shards in a folder by their names: number, of how many, path."""
    for path in folder.iterdir():
        if numbers := numbers_in(path.name):
            yield *numbers, path
