"""Writes a feature file in place, block by block, so that nothing that was finished is lost.

Beside `features.h5` stand, while it is made: `features.h5.partial` (the file), `.journal` (which
blocks are done) and `.lock` (who writes). The order is: arrays laid out; for each block its rows,
then its line in the journal; at the end names and checksums, sync, and the rename.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cnnfeat.errors import DataError
from cnnfeat.features.checksum import as_bytes, checksum
from cnnfeat.features.disk import Disk, storage_errors
from cnnfeat.features.format import LABEL, Column, FilePlan, SplitPlan
from cnnfeat.features.journal import Block, BlockNames, Journal
from cnnfeat.features.output import OutputPaths
from cnnfeat.records import Array, Batch

SYNC_BYTES = 16 << 20  # written between two syncs
CACHED_BYTES = 2 << 30  # a larger file is not kept in the system's cache: it would take all of it


@dataclass(slots=True)
class SplitState:
    """How far one split is."""

    plan: SplitPlan
    position: int = 0  # samples of the source that are done
    n_rows: int = 0  # of them kept
    stops: list[int] = field(default_factory=list)
    sums: list[tuple[int, ...]] = field(default_factory=list)
    overflows: list[int] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Count a block in."""
        self.position = block.stop
        self.n_rows += block.n_rows
        self.stops.append(self.n_rows)
        self.sums.append(block.sums)
        before = self.overflows or [0] * len(block.overflows)
        self.overflows = [a + b for a, b in zip(before, block.overflows, strict=True)]


class FeatureWriter:
    """A feature file in the making; made by `open_writer`. One thread at a time may append."""

    def __init__(
        self,
        paths: OutputPaths,
        plan: FilePlan,
        *,
        disk: Disk,
        handle: int,
        journal: Journal,
        offsets: dict[tuple[str, str], int],
    ) -> None:
        self.paths = paths
        self.plan = plan
        self.disk = disk
        self.handle = handle
        self.journal = journal
        self.offsets = offsets
        self.states = {split.name: SplitState(split) for split in plan.splits}
        self._unsynced = 0
        self._syncer = ThreadPoolExecutor(1, "cnnfeat-sync")
        self._sync: Future[None] | None = None

    def position(self, split: str) -> int:
        """How many samples of the source's split are done."""
        return self.states[split].position

    @property
    def n_done(self) -> int:
        """Samples done in all splits."""
        return sum(state.position for state in self.states.values())

    def overflows(self, split: str) -> dict[str, int]:
        """Values beyond the stored type's range, by column."""
        state = self.states[split]
        names = [column.name for column in state.plan.columns]
        return dict(zip(names, state.overflows, strict=False))

    def append(self, split: str, batch: Batch, arrays: Sequence[Array]) -> None:
        """Write one block: the rows of a batch, then its line in the journal.

        Parameters
        ----------
        split : str
            One of the plan's.
        batch : Batch
            The next samples of this split.
        arrays : sequence of ndarray
            `(len(batch), *row_shape)` each, in the order of the plan's layers.

        Raises
        ------
        StorageError
            If the disk refuses. Blocks written before are kept.
        """
        state = self.states[split]
        if batch.start != state.position:
            raise ValueError(f"batch starts at {batch.start}, {state.position} expected")
        sums, overflows = [], []
        for column, values in zip(
            state.plan.columns, self._with_labels(state, batch, arrays), strict=True
        ):
            rows, overflow = fit(values, column)
            self._write(state, column, rows)
            sums.append(checksum(rows))
            overflows.append(overflow)
        block = Block(split, batch.start, batch.stop, len(batch), tuple(sums), tuple(overflows))
        names = BlockNames(split, tuple(map(stored_text, batch.ids)), batch.skipped)
        with storage_errors(self.journal.path):
            self.journal.append(block, names)
        state.add(block)
        self._sync_now_and_then(len(batch) * sum(c.row_bytes for c in state.plan.columns))

    def sync(self) -> None:
        """Bring all finished blocks to the medium: rows first, then the journal."""
        with storage_errors(self.paths.final):
            self.disk.sync(self.handle)
            self.journal.sync()
        if self.plan.size_bytes > CACHED_BYTES:
            self.disk.forget(self.handle)
        self._unsynced = 0

    def close(self) -> None:
        """Wait for the last sync; what is done stays for a resume."""
        self._syncer.shutdown(wait=True)

    def _with_labels(
        self, state: SplitState, batch: Batch, arrays: Sequence[Array]
    ) -> Sequence[Array]:
        if state.plan.columns[-1].name != LABEL or state.plan.columns[-1].output is not None:
            return arrays
        if batch.labels is None:
            raise DataError(
                f"samples {batch.start} to {batch.stop - 1} of {state.plan.name!r} have no labels, "
                "those before have"
            )
        return [*arrays, batch.labels]

    def _write(self, state: SplitState, column: Column, rows: Array) -> None:
        place = self.offsets[state.plan.name, column.name] + state.n_rows * column.row_bytes
        if not len(rows):
            return
        with storage_errors(self.paths.final):
            self.disk.write(self.handle, as_bytes(rows), offset=place)

    def _sync_now_and_then(self, n_bytes: int) -> None:
        self._unsynced += n_bytes
        if self._sync is not None and self._sync.done():
            self._sync.result()
            self._sync = None
        if self._unsynced >= SYNC_BYTES and self._sync is None:
            self._sync = self._syncer.submit(self.sync)


def fit(values: Array, column: Column) -> tuple[Array, int]:
    """Bring values to a column's type; also count the finite ones that became infinite."""
    dtype = np.dtype(column.dtype)
    if values.shape[1:] != column.row_shape:
        raise DataError(
            f"{column.name!r}: rows of shape {values.shape[1:]}, {column.row_shape} expected"
        )
    if values.dtype == dtype:
        return np.ascontiguousarray(values), 0
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, dtype=dtype)
    if dtype.kind != "f":
        return rows, 0
    return rows, int(np.isinf(rows).sum() - np.isinf(values).sum())


def read_exactly(handle: int, size: int, offset: int) -> Array:
    """Read bytes; zeros stand for those beyond the file's end."""
    found = np.zeros(size, np.uint8)
    view, begin = found.data, 0
    while begin < size:
        count = os.preadv(handle, [view[begin:]], offset + begin)
        if count == 0:
            break
        begin += count
    return found


def stored_text(text: str) -> str:
    """Make a text that UTF-8 can hold: bytes that are none are written as `\\xNN`."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
