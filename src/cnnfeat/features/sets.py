"""A set of shards, read as the one feature file that they make up."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError, UsageError, near_names
from cnnfeat.features.format import Column, StoredLayer
from cnnfeat.features.inventory import MANIFEST, Inventory, ShardEntry, read_inventory
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.rows import check_rows
from cnnfeat.features.safety import Sums
from cnnfeat.features.shardfile import ShardFile
from cnnfeat.records import Array, SkippedSample

MOST_OPEN = 16  # shards at a time
T = TypeVar("T")
Kinds: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]  # by layer: type and shape of a row
_HINT = "make it again with cnnfeat extract --shard, then cnnfeat merge FOLDER --manifest"


class FeatureSet(FeatureFile):
    """A folder of shards and their manifest, open for reading as one feature file.

    A shard is opened when its rows are wanted, and held against the manifest then.

    Parameters
    ----------
    path : Path
        The folder.
    inventory : Inventory, optional
        What it holds, where that is known and no manifest need be there.

    Raises
    ------
    FeatureFileError
        If it has no manifest; if a shard is missing, damaged, or of other settings than the rest.
    """

    def __init__(self, path: Path | str, inventory: Inventory | None = None) -> None:
        self.path = Path(path)
        self.inventory = inventory or read_inventory(self.path)
        shards = self.inventory.shards
        self._ends = {
            split: np.cumsum([shard.rows.get(split, 0) for shard in shards])
            for split in self.inventory.splits
        }
        self._shelf = _Shelf(self._opened)
        self._kinds: Kinds = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        try:
            self._load()
        except FeatureFileError:
            self.close()
            raise

    def _load(self) -> None:
        filled = [split for split, ends in self._ends.items() if ends[-1]]
        empty = [split for split in self._ends if split not in filled]
        if empty:
            raise FeatureFileError(f"{self.path}: split {empty[0]!r} has no rows", hint=_HINT)
        self.held = self.splits = tuple(self._ordered(filled))
        self._firsts = {split: int(np.argmax(self._ends[split] > 0)) for split in self.splits}
        with self.shard(self._firsts[self.splits[0]]) as first:
            self.provenance = first.provenance.of_set(self.inventory.settings)
            self.attributes = self.provenance.to_attributes()
            self.classes, self.layers = first.classes, first.layers
            self._kinds = _kinds(first)
            self._row_words = {name: first._rows_of(name) for name in first.layers}

    def _opened(self, number: int) -> ShardFile:
        """Open a shard, and hold it against the manifest and the first one."""
        entry = self.inventory.shards[number]
        file = ShardFile(self.path / entry.name)
        try:
            file.check_settings(self.inventory.settings, "the others of its set")
            if ShardEntry.of(file) != entry:
                raise FeatureFileError(
                    f"{file.path} isn't the shard that {MANIFEST} lists: its rows are others",
                    hint=_HINT,
                )
            file.check_place(number + 1, self.n_pieces)
            file.check_columns(self._columns)
            if self._kinds and (file.classes != self.classes or _kinds(file) != self._kinds):
                raise FeatureFileError(
                    f"{file.path} has other classes or layers than the first shard", hint=_HINT
                )
        except FeatureFileError:
            file.close()
            raise
        return file

    def _rows_of(self, layer: str) -> str:
        return self._row_words[layer]

    def close(self) -> None:
        """Close all shards."""
        self._shelf.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size_bytes for shard in self.inventory.shards)

    @property
    def n_pieces(self) -> int:
        """How many files there are."""
        return len(self.inventory.shards)

    @contextlib.contextmanager
    def piece(self, number: int) -> Iterator[tuple[FeatureFile, Mapping[str, int]]]:
        """Open one of the files; with it, by split, the rows of all before it."""
        rows = self.inventory.shards[number].rows
        before = {
            split: int(ends[number]) - rows.get(split, 0) for split, ends in self._ends.items()
        }
        with self.shard(number) as shard:
            yield shard, before

    @contextlib.contextmanager
    def shard(self, number: int) -> Iterator[ShardFile]:
        """Open one of the shards, unless it is."""
        with self._shelf.take(number) as shard:
            yield shard

    def planned_columns(self, split: str) -> tuple[Column, ...]:
        """Describe its arrays as they were planned."""
        return self._first_shard(split, lambda shard: shard.planned_columns(split))

    def n_rows(self, split: str) -> int:
        """Rows of a split."""
        return int(self._of(split)[-1])

    def n_blocks(self, split: str) -> int:
        """Blocks of a split."""
        self._of(split)
        return sum(shard.blocks.get(split, 0) for shard in self.inventory.shards)

    def columns(self, split: str) -> tuple[str, ...]:
        """Names of what each row has."""
        self._of(split)
        with self.shard(self._firsts[split]) as shard:
            return shard.columns(split)

    def sums(self, split: str) -> Sums:
        """Block checksums of all shards, each of which is opened for them."""
        stops, values, columns = [], [], self.columns(split)
        for number, before in self._filled_shards(split, with_blocks=True):
            with self.shard(number) as shard:
                found = shard.sums(split)
                stops.append(found.stops + before)
                values.append(found.values)
        return Sums(np.concatenate(stops), columns, np.concatenate(values))

    def layer(self, split: str, name: str) -> StoredLayer:
        """Describe one layer."""
        n_rows = self.n_rows(split)
        with self.shard(self._firsts[split]) as shard:
            found = shard.layer(split, name)
        row_bytes = found.size_bytes // found.shape[0]
        shape = (n_rows, *found.shape[1:])
        return replace(found, shape=shape, size_bytes=row_bytes * n_rows)

    def overflows(self, split: str, name: str) -> int:
        """How many values of a layer were beyond its stored type, and are infinite."""
        found = 0
        for number, _ in self._filled_shards(split):
            with self.shard(number) as shard:
                found += shard.overflows(split, name)
        return found

    def read(self, split: str, layer: str, *, start: int = 0, stop: int | None = None) -> Array:
        """Read consecutive rows."""
        found = [self._first_shard(split, lambda shard: shard.read(split, layer, stop=0))]
        for number, begin, end in self._spans(split, start, self._stop(split, stop)):
            with self.shard(number) as shard:
                found.append(shard.read(split, layer, start=begin, stop=end))
        return found[1] if len(found) == 2 else np.concatenate(found)

    def take(
        self,
        split: str,
        layer: str,
        rows: Sequence[int] | NDArray[np.integer],
        *,
        any_numbers: bool = False,
    ) -> Array:
        """Read some rows, in the order given; each shard is opened once."""
        wanted = np.asarray(rows, dtype=np.int64)
        ends = self._of(split)
        check_rows(wanted, self.n_rows(split))
        none = self._first_shard(split, lambda shard: shard.read(split, layer, stop=0))
        taken = np.empty((len(wanted), *none.shape[1:]), none.dtype)
        owners = np.searchsorted(ends, wanted, side="right")
        places = np.argsort(owners, kind="stable")
        numbers, firsts = np.unique(owners[places], return_index=True)
        for number, own in zip(numbers.tolist(), np.split(places, firsts[1:]), strict=False):
            before = int(ends[number - 1]) if number else 0
            with self.shard(number) as shard:
                local = wanted[own] - before
                taken[own] = shard.take(split, layer, local, any_numbers=any_numbers)
        return taken

    def blocks(
        self, split: str, layer: str, *, rows: int | None = None, any_numbers: bool = False
    ) -> Iterator[tuple[int, Array]]:
        """Read all rows in order, checking them; see `FeatureFile.blocks`."""
        found = self._blocks(split, layer, rows=rows, any_numbers=any_numbers)
        return found if rows is None else _regrouped(found, rows)

    def _blocks(
        self, split: str, layer: str, *, rows: int | None, any_numbers: bool
    ) -> Iterator[tuple[int, Array]]:
        for number, before in self._filled_shards(split):
            with self.shard(number) as shard:
                for start, array in shard.blocks(split, layer, rows=rows, any_numbers=any_numbers):
                    yield before + start, array

    def check_block(
        self,
        split: str,
        layer: str,
        block: int,
        *,
        look: Callable[[int, Array], None] | None = None,
    ) -> None:
        """Check one block of numbers."""
        for number, before in self._filled_shards(split, with_blocks=True):
            n_blocks = self.inventory.shards[number].blocks[split]
            if block < n_blocks:
                with self.shard(number) as shard:
                    shard.check_block(split, layer, block, look=_from(before, look))
                return
            block -= n_blocks

    def ids(self, split: str, *, start: int = 0, stop: int | None = None) -> list[str]:
        """Names of the samples, a row each."""
        found: list[str] = []
        for number, begin, end in self._spans(split, start, self._stop(split, stop)):
            with self.shard(number) as shard:
                found += shard.ids(split, start=begin, stop=end)
        return found

    def skipped(self, split: str) -> tuple[SkippedSample, ...]:
        """Samples that were left out, and why."""
        self._of(split)
        found: list[SkippedSample] = []
        for number, entry in enumerate(self.inventory.shards):
            if entry.n_samples(split) > entry.rows.get(split, 0):
                with self.shard(number) as shard:
                    found += shard.skipped(split)
        return tuple(found)

    def _whole(self, split: str, column: str) -> Array | None:
        """All rows of a column that stands beside the layers; None where there is none."""
        if self._first_shard(split, lambda shard: shard._whole(split, column)) is None:
            return None
        return np.concatenate([rows for _, rows in self.blocks(split, column, any_numbers=True)])

    def _layers_of(self, split: str) -> list[str]:  # noqa: ARG002 - all splits have the same
        return list(self.layers)

    def _of(self, split: str) -> NDArray[np.int64]:
        """Where each shard's rows of a split end."""
        if split not in self.splits:
            raise UsageError(
                f"{self.path} has no split {split!r}; it has: {', '.join(self.splits)}",
                hint=near_names(split, self.splits),
            )
        return self._ends[split]

    def _first_shard(self, split: str, read: Callable[[ShardFile], T]) -> T:
        """Ask the first shard that has rows of a split."""
        self._of(split)
        with self.shard(self._firsts[split]) as shard:
            return read(shard)

    def _filled_shards(self, split: str, *, with_blocks: bool = False) -> Iterator[tuple[int, int]]:
        """Number the shards that have rows of a split, or blocks; with the rows before each."""
        before = 0
        self._of(split)
        for number, entry in enumerate(self.inventory.shards):
            n_rows = entry.rows.get(split, 0)
            if n_rows or (with_blocks and split in entry.blocks):
                yield number, before
            before += n_rows

    def _spans(self, split: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Find consecutive rows: a shard's number, and its own rows from and to."""
        ends = self._of(split)
        number = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            before = int(ends[number - 1]) if number else 0
            end = min(stop, int(ends[number]))
            if end > start:
                yield number, start - before, end - before
                start = end
            number += 1


class _Shelf:
    """The shards that are open: few at a time, and none is closed while it is used.

    Threads may share it.
    """

    def __init__(self, open_shard: Callable[[int], ShardFile]) -> None:
        self._open_shard = open_shard
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._users: Counter[int] = Counter()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def take(self, number: int) -> Iterator[ShardFile]:
        """Open a shard, unless it is."""
        with self._lock:
            if number not in self._open:
                self._open[number] = self._open_shard(number)
            self._open.move_to_end(number)
            self._users[number] += 1
            shard = self._open[number]
        try:
            yield shard
        finally:
            with self._lock:
                self._users[number] -= 1
                self._close_idle()

    def _close_idle(self) -> None:
        idle = [number for number in self._open if not self._users[number]]
        for number in idle[: max(0, len(self._open) - MOST_OPEN)]:
            self._open.pop(number).close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def _from(
    before: int, look: Callable[[int, Array], None] | None
) -> Callable[[int, Array], None] | None:
    """Count a shard's rows from those before it."""
    return None if look is None else lambda start, rows: look(before + start, rows)


def _kinds(shard: ShardFile) -> Kinds:
    found = ((name, shard.layer(shard.held[0], name)) for name in shard.layers)
    return {name: (layer.dtype, layer.shape[1:]) for name, layer in found}


def _regrouped(blocks: Iterator[tuple[int, Array]], n: int) -> Iterator[tuple[int, Array]]:
    """Make blocks of `n` rows of those that end with their shards."""
    held: list[Array] = []
    start = n_held = 0
    for _, block in blocks:
        rows = block
        while n_held + len(rows) >= n:
            yield start, np.concatenate([*held, rows[: n - n_held]])
            rows, start = rows[n - n_held :], start + n
            held, n_held = [], 0
        held.append(rows)
        n_held += len(rows)
    if n_held:
        yield start, np.concatenate(held)
