"""The last steps: leave no gap where samples were left out, write names and sums, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cnnfeat.errors import DataError
from cnnfeat.features.checksum import text_checksum
from cnnfeat.features.disk import storage_errors
from cnnfeat.features.format import FilePlan, SplitPlan
from cnnfeat.features.layout import FileTail, SplitTail, create_arrays, open_ids, open_tail
from cnnfeat.features.output import check_space
from cnnfeat.features.seal import write_seal
from cnnfeat.features.writer import FeatureWriter
from cnnfeat.records import SkippedSample

_COPY_BYTES = 8 << 20


@dataclass(slots=True)
class _Names:
    """What the journal's texts of one split come to."""

    n_rows: int = 0
    sums: list[int] = field(default_factory=list)  # a block each
    skipped: list[SkippedSample] = field(default_factory=list)


def finish(writer: FeatureWriter) -> Mapping[str, tuple[SkippedSample, ...]]:
    """Complete the file and give it its final name; return the samples left out, by split.

    Raises
    ------
    DataError
        If the source gave fewer samples than it said, or all of a split were left out.
    StorageError
        If the disk refuses; the blocks are kept.
    """
    _check_complete(writer)
    plan = _kept(writer)
    with storage_errors(writer.paths.final), _final_file(writer, plan) as handle:
        skipped = _write_tail(writer, plan, handle)
        writer.disk.sync(handle)
    _rename(writer, compacted=plan is not writer.plan)
    return skipped


def _check_complete(writer: FeatureWriter) -> None:
    for name, state in writer.states.items():
        if state.position != state.plan.n_rows:
            raise DataError(
                f"split {name!r} ended after {state.position:,} of {state.plan.n_rows:,} samples"
            )
        if state.n_rows == 0:
            raise DataError(f"all {state.plan.n_rows:,} samples of split {name!r} were left out")


def _kept(writer: FeatureWriter) -> FilePlan:
    """The plan with the rows that are there: the very same one if none was left out."""
    kept = tuple(replace(state.plan, n_rows=state.n_rows) for state in writer.states.values())
    return writer.plan if kept == writer.plan.splits else replace(writer.plan, splits=kept)


@contextlib.contextmanager
def _final_file(writer: FeatureWriter, plan: FilePlan) -> Iterator[int]:
    """Yield a handle of the file to complete: what was written, or a shorter copy of it."""
    if plan is writer.plan:
        yield writer.handle
        return
    check_space(writer.paths.compact, size_bytes=plan.size_bytes, n_rows=plan.n_rows)
    handle = writer.disk.open(writer.paths.compact, create=True)
    try:
        writer.disk.truncate(handle, 0)
        offsets = create_arrays(handle, plan, disk=writer.disk)
        writer.disk.allocate(handle, os.fstat(handle).st_size)
        for split in plan.splits:
            _copy_rows(writer, split, handle, offsets)
        yield handle
    finally:
        writer.disk.close(handle)


def _copy_rows(
    writer: FeatureWriter, split: SplitPlan, handle: int, offsets: Mapping[tuple[str, str], int]
) -> None:
    for column in split.columns:
        source = writer.offsets[split.name, column.name]
        target = offsets[split.name, column.name]
        size = split.n_rows * column.row_bytes
        for begin in range(0, size, _COPY_BYTES):
            piece = os.pread(writer.handle, min(_COPY_BYTES, size - begin), source + begin)
            writer.disk.write(handle, piece, offset=target + begin)


def _write_tail(
    writer: FeatureWriter, plan: FilePlan, handle: int
) -> Mapping[str, tuple[SkippedSample, ...]]:
    tails = {
        name: SplitTail(state.stops, state.sums, state.overflows)
        for name, state in writer.states.items()
    }
    names = _count_names(writer)
    with open_tail(handle, plan, disk=writer.disk) as tail:
        tail.write_head()
        for split in plan.splits:
            tail.write_split(split, tails[split.name])
            _write_names(tail, split, tails[split.name], names[split.name])
        arrays = tail.complete()
    end = os.fstat(handle).st_size
    with open_ids(handle, disk=writer.disk) as ids:
        for block in writer.journal.names():
            ids.append(block.split, block.ids)
    write_seal(handle, end, arrays, disk=writer.disk)
    return {name: tuple(item.skipped) for name, item in names.items()}


def _count_names(writer: FeatureWriter) -> dict[str, _Names]:
    names = {name: _Names() for name in writer.states}
    for block in writer.journal.names():
        split = names[block.split]
        split.n_rows += len(block.ids)
        split.sums.append(text_checksum(block.ids))
        split.skipped.extend(block.skipped)
    return names


def _write_names(tail: FileTail, split: SplitPlan, sums: SplitTail, names: _Names) -> None:
    if names.n_rows != split.n_rows:
        raise DataError(f"split {split.name!r} has {split.n_rows:,} rows and {names.n_rows:,} ids")
    tail.write_sums(split, sums, names.sums)
    if names.skipped:
        tail.write_skipped(split, names.skipped)


def _rename(writer: FeatureWriter, *, compacted: bool) -> None:
    paths, disk = writer.paths, writer.disk
    with storage_errors(paths.final):
        disk.replace(paths.compact if compacted else paths.partial, paths.final)
        disk.sync_folder(paths.final.parent)
        if compacted:
            disk.remove(paths.partial)
        disk.remove(paths.journal)
