"""Writes a feature file in place, block by block, so that nothing that was finished is lost.

Beside `features.h5` stand, while it is made: `features.h5.partial` (the file), `.journal` (which
blocks are done) and `.lock` (who writes). The order is: arrays laid out; for each block its rows,
then its line in the journal; at the end names and checksums, sync, and the rename.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cnnfeat.errors import DataError, OutputExistsError, UsageError
from cnnfeat.features.disk import Disk, storage_errors
from cnnfeat.features.format import (
    DIGEST,
    LABEL,
    Block,
    BlockNames,
    Column,
    FilePlan,
    SplitPlan,
)
from cnnfeat.features.journal import Header, Journal, read_header
from cnnfeat.features.layout import SplitState, complete_file, create_arrays
from cnnfeat.features.safety import open_checked
from cnnfeat.features.seal import byte_view, checksum
from cnnfeat.files import check_output, check_space, locked
from cnnfeat.progress import SILENT, Progress
from cnnfeat.provenance import differing_settings
from cnnfeat.records import Array, Batch, SkippedSample

SYNC_BYTES = 16 << 20  # written between two syncs
CACHED_BYTES = 2 << 30  # a larger file is not kept in the system's cache: it would take all of it
_COPY_BYTES = 8 << 20
_TEXT_BYTES_PER_ROW = 96  # an id in the file and in the journal, with what HDF5 adds
_SLACK_BYTES = 1 << 20
_SMALLER = "--dtype float16, --pool, --limit"

_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """A feature file's final name and the names beside it while it is made."""

    final: Path

    @classmethod
    def of(cls, path: Path) -> OutputPaths:
        """Follow symbolic links, so that two names of one file are one output."""
        return cls(Path(os.path.realpath(path)))

    def _beside(self, suffix: str) -> Path:
        return self.final.with_name(self.final.name + suffix)

    @property
    def partial(self) -> Path:
        """The file in the making."""
        return self._beside(".partial")

    @property
    def compact(self) -> Path:
        """Where the kept rows are moved together when samples were left out."""
        return self._beside(".compact")

    @property
    def journal(self) -> Path:
        """Which blocks are done."""
        return self._beside(".journal")

    @property
    def temporary(self) -> tuple[Path, ...]:
        """All that must be gone when the final name is there."""
        return self.partial, self.compact, self.journal


class FeatureWriter:
    """A feature file in the making, new or gone on with; a context manager.

    One thread at a time may append.

    Parameters
    ----------
    path : Path
        Its final name, which appears when `finish` has been called.
    plan : FilePlan
        What will be in it.
    overwrite : bool
        Whether an existing file may be replaced, and an interrupted run's part of one dropped.
    resume : bool
        Whether to go on with what an interrupted run left. Every block it finished is checked.
    disk : Disk, optional
        What makes the system calls.
    progress : Progress
        Told of the checking.

    Attributes
    ----------
    plan : FilePlan
    paths : OutputPaths

    Raises
    ------
    OutputExistsError
        On entering, if there is a file and neither `overwrite` nor `resume`.
    UsageError
        On entering, if the interrupted run had other settings.
    LockedError
        On entering, if another process writes the same file.
    StorageError
        If there is not enough space, or the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        plan: FilePlan,
        *,
        overwrite: bool = False,
        resume: bool = False,
        disk: Disk | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.plan = plan
        self.paths = OutputPaths.of(path)
        self._path = path
        self._overwrite, self._resume = overwrite, resume
        self._disk = disk or Disk()
        self._progress = progress
        self._states = {split.name: SplitState(split) for split in plan.splits}
        self._stack = contextlib.ExitStack()

    @staticmethod
    def check(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        """Make sure, before any long work, that a feature file may be written as `path`.

        Raises
        ------
        OutputExistsError
            If it exists, or an interrupted run left a part of it, and neither `overwrite` nor
            `resume` says what to do.
        LockedError, StorageError
            As `cnnfeat.files.check_output` does.
        """
        paths = OutputPaths.of(path)
        begun = paths.partial.exists() and read_header(paths.journal) is not None
        check_output(
            path, overwrite=overwrite, resume=resume, unfinished=paths.partial if begun else None
        )

    @staticmethod
    def unfinished(path: Path) -> Header | None:
        """Read what an interrupted run was meant to make, or None where there is none."""
        return read_header(OutputPaths.of(path).journal)

    @staticmethod
    def finished_before(path: Path, plan: FilePlan) -> bool:
        """Whether `path` is complete already, by a run with the same settings.

        A crash right after the last step leaves a complete file and what stood beside it; that is
        then removed.

        Raises
        ------
        FeatureFileError
            If a file of that name can't be read.
        """
        from cnnfeat.features.reader import read_provenance

        paths = OutputPaths.of(path)
        header = read_header(paths.journal)
        if not paths.final.exists():
            return False
        with contextlib.closing(open_checked(paths.final)) as file:
            _, said = read_provenance(file.root, paths.final)
        leftovers = [item for item in paths.temporary if item.exists()]
        same_run = not leftovers or (header is not None and header.created == said.created)
        if said.settings.keys() != plan.settings.keys() and not leftovers:
            raise UsageError(
                f"{path} is complete, and made by another version of cnnfeat, which kept other "
                "settings: whether they are the same can't be said",
                hint="--overwrite makes it again",
            )
        same_rows = said.to_attributes().get("shard") == plan.attributes.get("shard")
        differ = differing_settings(said.settings, plan.settings, whole=said.is_whole)
        if any(differ) or not same_rows or not same_run:
            return False
        with locked(paths.final):  # also removes the lock of a process that died at the very end
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        return True

    def __enter__(self) -> FeatureWriter:
        self.check(self._path, overwrite=self._overwrite, resume=self._resume)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.paths.final))
            self.check(self._path, overwrite=self._overwrite, resume=self._resume)
            blocks = self._open(stack)
            self._unsynced = 0
            self._sync: Future[None] | None = None
            self._syncer = ThreadPoolExecutor(1, "cnnfeat-sync")
            stack.callback(self._syncer.shutdown, wait=True)
            self._keep_sound_blocks(blocks)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Wait for the last sync; what is done stays for a resume."""
        self._stack.close()

    def _open(self, stack: contextlib.ExitStack) -> list[tuple[Block, int]]:
        """Open journal and file, new or as they were left; return the journal's blocks."""
        disk, paths = self._disk, self.paths
        present = paths.partial.stat().st_blocks * 512 if paths.partial.exists() else 0
        _check_space(paths.final, self.plan, present_bytes=present)
        with storage_errors(paths.final):
            self._journal = Journal(paths.journal, disk=disk)
            stack.callback(self._journal.close)
            header, blocks = self._journal.read() if self._resume else (None, [])
            self._check_header(header)
            if header is None:
                stack.callback(self._drop_if_empty)
                header = Header(
                    dict(self.plan.settings),
                    self.plan.listed_arrays(),
                    _now(),
                    self._overwrite,
                    self.plan.source_state,
                )
                self._journal.begin(header)
                disk.remove(paths.partial)
            self._handle = disk.open(paths.partial, create=True)
            stack.callback(disk.close, self._handle)
            self._offsets = create_arrays(self._handle, self.plan, disk=disk)
            disk.allocate(self._handle, os.fstat(self._handle).st_size)
            disk.sync(self._handle)
            disk.sync_folder(paths.final.parent)
        said = {**self.plan.attributes, "created": header.created}
        self.plan = replace(self.plan, attributes=said)
        return blocks

    def _check_header(self, header: Header | None) -> None:
        """Refuse what can't be gone on with, or would replace a file nobody gave up."""
        final = self.paths.final
        if header is not None:
            header.check_same(final, self.plan.settings)
            if header.arrays != self.plan.listed_arrays():
                raise UsageError(
                    f"{final} was begun with other arrays than would be written now",
                    hint="start over with --overwrite",
                )
        if final.exists() and not self._overwrite and not (header and header.overwrite):
            if header is None:
                self._journal.remove()
            raise OutputExistsError(
                f"{final} is complete and holds other features",
                hint="--overwrite replaces it; -o writes elsewhere",
            )

    def _drop_if_empty(self) -> None:
        """Leave nothing behind where nothing was done."""
        if self._journal.is_empty:
            for path in self.paths.temporary:
                self._disk.remove(path)

    def _keep_sound_blocks(self, blocks: Sequence[tuple[Block, int]]) -> None:
        """Count in the blocks whose rows hold what the journal says, up to the first that don't."""
        if not blocks:
            return
        kept_end = self._journal.header_end
        total = sum(block.n_rows for block, _ in blocks)
        with self._progress.task("checking what is there", total=total, unit="rows") as task:
            for number, (block, end) in enumerate(blocks):
                if not self._holds(block):
                    _log.warning(
                        "block %d of %d doesn't hold what was written; going on from there",
                        number + 1,
                        len(blocks),
                    )
                    break
                self._states[block.split].add(block)
                kept_end = end
                task.advance(block.n_rows)
        with storage_errors(self.paths.journal):
            self._journal.cut(kept_end)
        _log.info("going on after %s of %s samples", f"{self.n_done:,}", f"{self.plan.n_rows:,}")

    def _holds(self, block: Block) -> bool:
        state = self._states.get(block.split)
        if state is None or block.start != state.position:
            return False
        return all(
            checksum(
                _read_exactly(
                    self._handle, block.n_rows * column.row_bytes, self._place(state, column)
                )
            )
            == expected
            for column, expected in zip(state.plan.columns, block.sums, strict=True)
        )

    def _place(self, state: SplitState, column: Column) -> int:
        """Where in the file a split's next row goes."""
        return self._offsets[state.plan.name, column.name] + state.n_rows * column.row_bytes

    def position(self, split: str) -> int:
        """The place in the source's split before which all samples of the plan are done."""
        return self._states[split].position

    def start(self, split: str) -> int:
        """The place of the first sample in the source's split."""
        return self._states[split].plan.start

    def n_rows(self, split: str) -> int:
        """How many rows are done: samples that weren't left out."""
        return self._states[split].n_rows

    def n_blocks(self, split: str) -> int:
        """How many blocks are done."""
        return len(self._states[split].stops)

    @property
    def n_done(self) -> int:
        """Samples done in all splits."""
        return sum(state.n_done for state in self._states.values())

    def overflows(self, split: str) -> dict[str, int]:
        """Values beyond the stored type's range, by column."""
        state = self._states[split]
        names = [column.name for column in state.plan.columns]
        return dict(zip(names, state.overflows, strict=False))

    def append(
        self, split: str, batch: Batch, arrays: Sequence[Array], *, overflowed: Sequence[int] = ()
    ) -> None:
        """Write one block: the rows of a batch, then its line in the journal.

        Parameters
        ----------
        split : str
            One of the plan's.
        batch : Batch
            The next samples of this split.
        arrays : sequence of ndarray
            `(len(batch), *row_shape)` each, in the order of the plan's layers.
        overflowed : sequence of int
            Values that became infinite before they came here, a layer each.

        Raises
        ------
        StorageError
            If the disk refuses. Blocks written before are kept.
        """
        plan = self._states[split].plan
        columns = _with_facts(plan, batch, arrays)
        more = (0,) * (len(columns) - len(overflowed))
        self.append_columns(split, batch, columns, overflowed=(*overflowed, *more))

    def append_columns(
        self, split: str, batch: Batch, arrays: Sequence[Array], *, overflowed: Sequence[int] = ()
    ) -> None:
        """Write one block of which every column is at hand.

        Parameters
        ----------
        split : str
            One of the plan's.
        batch : Batch
            The samples; its images and labels aren't looked at.
        arrays : sequence of ndarray
            In the order of all of the plan's columns.
        overflowed : sequence of int
            Values that became infinite before they came here, a column each.

        Raises
        ------
        StorageError
            As `append` does.
        """
        state = self._states[split]
        if batch.start != state.position:
            raise ValueError(f"batch starts at {batch.start}, {state.position} expected")
        sums, overflows = [], []
        before = overflowed or (0,) * len(arrays)
        for column, values, n_before in zip(state.plan.columns, arrays, before, strict=True):
            rows, overflow = fit_rows(values, column)
            if len(rows):
                with storage_errors(self.paths.final):
                    place = self._place(state, column)
                    self._disk.write(self._handle, byte_view(rows), offset=place)
            sums.append(checksum(rows))
            overflows.append(n_before + overflow)
        block = Block(split, batch.start, batch.stop, len(batch), tuple(sums), tuple(overflows))
        names = BlockNames(split, tuple(map(stored_text, batch.ids)), batch.skipped)
        with storage_errors(self.paths.journal):
            self._journal.append(block, names)
        state.add(block)
        self._sync_now_and_then(len(batch) * sum(c.row_bytes for c in state.plan.columns))

    def sync(self) -> None:
        """Bring all finished blocks to the medium: rows first, then the journal."""
        with storage_errors(self.paths.final):
            self._disk.sync(self._handle)
            self._journal.sync()
        if self.plan.size_bytes > CACHED_BYTES:
            self._disk.forget(self._handle)
        self._unsynced = 0

    def _sync_now_and_then(self, n_bytes: int) -> None:
        self._unsynced += n_bytes
        if self._sync is not None and self._sync.done():
            self._sync.result()
            self._sync = None
        if self._unsynced >= SYNC_BYTES and self._sync is None:
            self._sync = self._syncer.submit(self.sync)

    def finish(self) -> Mapping[str, tuple[SkippedSample, ...]]:
        """Complete the file and give it its final name; return the samples left out, by split.

        Raises
        ------
        DataError
            If the source gave fewer samples than it said, or all of a split were left out.
        StorageError
            If the disk refuses; the blocks are kept.
        """
        self._check_complete()
        kept = tuple(replace(state.plan, n_rows=state.n_rows) for state in self._states.values())
        plan = replace(self.plan, splits=kept)
        compacted = kept != self.plan.splits
        opened = self._compacted(plan) if compacted else contextlib.nullcontext(self._handle)
        with storage_errors(self.paths.final):
            with opened as handle:
                skipped = complete_file(
                    handle, plan, self._states, self._journal.names, disk=self._disk
                )
                self._disk.sync(handle)
            self._rename(compacted=compacted)
        return skipped

    def _check_complete(self) -> None:
        for name, state in self._states.items():
            if state.position != state.plan.stop:
                raise DataError(
                    f"split {name!r} ended after {state.n_done:,} of {state.plan.n_rows:,} samples"
                )
            if state.n_rows == 0 and not self.plan.is_shard:
                raise DataError(
                    f"all {state.plan.n_rows:,} samples of split {name!r} were left out"
                )

    @contextlib.contextmanager
    def _compacted(self, plan: FilePlan) -> Iterator[int]:
        """Yield a handle of a copy without the gaps that samples left out have made."""
        disk, path = self._disk, self.paths.compact
        _check_space(path, plan)
        handle = disk.open(path, create=True)
        try:
            disk.truncate(handle, 0)
            offsets = create_arrays(handle, plan, disk=disk)
            disk.allocate(handle, os.fstat(handle).st_size)
            for split in plan.splits:
                for column in split.columns:
                    key, size = (split.name, column.name), split.n_rows * column.row_bytes
                    for begin in range(0, size, _COPY_BYTES):
                        count = min(_COPY_BYTES, size - begin)
                        piece = os.pread(self._handle, count, self._offsets[key] + begin)
                        disk.write(handle, piece, offset=offsets[key] + begin)
            yield handle
        finally:
            disk.close(handle)

    def _rename(self, *, compacted: bool) -> None:
        paths, disk = self.paths, self._disk
        disk.replace(paths.compact if compacted else paths.partial, paths.final)
        disk.sync_folder(paths.final.parent)
        if compacted:
            disk.remove(paths.partial)
        disk.remove(paths.journal)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def needed_bytes(plan: FilePlan) -> int:
    """How long a file will be, about, and no longer."""
    return plan.size_bytes + plan.n_rows * _TEXT_BYTES_PER_ROW + _SLACK_BYTES


def _check_space(path: Path, plan: FilePlan, *, present_bytes: int = 0) -> None:
    check_space(path, needed_bytes(plan), present_bytes=present_bytes, smaller=_SMALLER)


def _with_facts(plan: SplitPlan, batch: Batch, arrays: Sequence[Array]) -> list[Array]:
    """Add the labels, and what the plan knows of the rows that are kept."""
    found = list(arrays)
    for name in [column.name for column in plan.columns if column.output is None]:
        if name == DIGEST and batch.digests is not None:
            found.append(batch.digests)
        elif name != LABEL:
            left_out = [sample.row for sample in batch.skipped]
            found.append(plan.beside[name][np.setdiff1d(range(batch.start, batch.stop), left_out)])
        elif batch.labels is not None:
            found.append(batch.labels)
        else:
            raise DataError(
                f"samples {batch.start} to {batch.stop - 1} of {plan.name!r} have no labels, "
                "those before have"
            )
    return found


def fit_rows(values: Array, column: Column) -> tuple[Array, int]:
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


def _read_exactly(handle: int, size: int, offset: int) -> Array:
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
