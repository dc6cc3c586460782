"""What workers say of the shards they have written, kept on disk until a manifest is written."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import TYPE_CHECKING, BinaryIO

from cnnfeat.documents import json_text, parse_document, take_up
from cnnfeat.features import ShardEntry, storage_errors
from cnnfeat.records import SkippedSample

if TYPE_CHECKING:
    from cnnfeat.extraction.publishing import WrittenShard


class WrittenShards:
    """Shards, which come in any order; iterated over, their entries are in that of their numbers.

    Memory is eight bytes a shard, and what samples that were left out take.

    Attributes
    ----------
    rows : mapping of str to int
        By split, of all shards there are so far.
    size_bytes : int
        Of their files.
    """

    def __init__(self, file: BinaryIO, n_shards: int) -> None:
        self._file, self._starts = file, array("q", [-1]) * n_shards
        self._skipped: dict[str, list[SkippedSample]] = {}
        self.rows: Counter[str] = Counter()
        self.size_bytes = 0

    @classmethod
    @contextmanager
    def kept(cls, n_shards: int) -> Iterator[WrittenShards]:
        """Keep so many of them in a file that is gone at the end."""
        with storage_errors(Path(gettempdir())):
            file = TemporaryFile()  # noqa: SIM115 - closed below
        try:
            yield cls(file, n_shards)
        finally:
            with suppress(OSError):  # what a full disk has not taken
                file.close()

    def add(self, number: int, written: WrittenShard) -> None:
        """Take down what is said of the shard of a number, from 1.

        Raises
        ------
        StorageError
            If the disk for temporary files is full.
        """
        entry = written.entry
        with storage_errors(Path(gettempdir())):
            self._starts[number - 1] = self._file.seek(0, 2)
            self._file.write(json_text(asdict(entry)).encode() + b"\n")
            self._file.flush()
        self.rows.update(entry.rows)
        self.size_bytes += entry.size_bytes
        for split, samples in written.skipped.items():
            self._skipped.setdefault(split, []).extend(samples)

    def __iter__(self) -> Iterator[ShardEntry]:
        for start in self._starts:
            self._file.seek(start)
            yield take_up(ShardEntry, parse_document(self._file.readline()))

    def skipped(self) -> Mapping[str, tuple[SkippedSample, ...]]:
        """List what was left out, by split, in the source's order."""
        return {
            split: tuple(sorted(samples, key=lambda one: one.row))
            for split, samples in self._skipped.items()
            if samples
        }
