"""Opens a feature file for writing: new, or where an interrupted run left it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cnnfeat.errors import OutputExistsError, UsageError
from cnnfeat.features.checksum import checksum
from cnnfeat.features.disk import Disk, OutputLock, storage_errors
from cnnfeat.features.format import FilePlan, describe
from cnnfeat.features.journal import Block, Header, Journal, read_header
from cnnfeat.features.layout import create_arrays
from cnnfeat.features.output import (
    OutputPaths,
    check_output,
    check_same,
    check_space,
    locked_error,
)
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.writer import FeatureWriter, read_exactly
from cnnfeat.progress import SILENT, Progress

_HOLDER_WAIT_S = 0.5

_log = logging.getLogger("cnnfeat")


@contextlib.contextmanager
def open_writer(
    path: Path,
    plan: FilePlan,
    *,
    overwrite: bool = False,
    resume: bool = False,
    disk: Disk | None = None,
    progress: Progress = SILENT,
) -> Iterator[FeatureWriter]:
    """Make ready to write a feature file.

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

    Raises
    ------
    OutputExistsError
        If there is a file and neither `overwrite` nor `resume`.
    UsageError
        If the interrupted run had other settings.
    LockedError
        If another process writes the same file.
    StorageError
        If there is not enough space, or the disk refuses.
    """
    paths = OutputPaths.of(path)
    check_output(path, overwrite=overwrite, resume=resume)
    with _locked(paths), contextlib.ExitStack() as stack:
        check_output(path, overwrite=overwrite, resume=resume)
        writer, blocks = _open(
            paths, plan, disk=disk or Disk(), overwrite=overwrite, resume=resume, stack=stack
        )
        stack.callback(writer.close)
        _keep_sound_blocks(writer, blocks, progress)
        yield writer


def _open(
    paths: OutputPaths,
    plan: FilePlan,
    *,
    disk: Disk,
    overwrite: bool,
    resume: bool,
    stack: contextlib.ExitStack,
) -> tuple[FeatureWriter, list[tuple[Block, int]]]:
    _check_space(paths, plan)
    with storage_errors(paths.final):
        journal = Journal(paths.journal, disk=disk)
        stack.callback(journal.close)
        header, blocks = journal.read() if resume else (None, [])
        _check_header(paths, header, plan, journal=journal, overwrite=overwrite)
        if header is None:
            stack.callback(_drop_if_empty, paths, journal, disk)
            header = Header(
                dict(plan.settings), describe(plan), _now(), overwrite, plan.source_state
            )
            journal.begin(header)
            disk.remove(paths.partial)
        handle = disk.open(paths.partial, create=True)
        stack.callback(disk.close, handle)
        offsets = create_arrays(handle, plan, disk=disk)
        disk.allocate(handle, os.fstat(handle).st_size)
        disk.sync(handle)
        disk.sync_folder(paths.final.parent)
    plan = replace(plan, attributes={**plan.attributes, "created": header.created})
    writer = FeatureWriter(paths, plan, disk=disk, handle=handle, journal=journal, offsets=offsets)
    return writer, blocks


def _check_header(
    paths: OutputPaths, header: Header | None, plan: FilePlan, *, journal: Journal, overwrite: bool
) -> None:
    """Refuse what can't be gone on with, or would replace a file nobody gave up."""
    if header is not None:
        check_same(paths.final, header.settings, plan.settings)
        if header.arrays != describe(plan):
            raise UsageError(
                f"{paths.final} was begun with other arrays than would be written now",
                hint="start over with --overwrite",
            )
    if paths.final.exists() and not overwrite and not (header and header.overwrite):
        if header is None:
            journal.remove()
        raise OutputExistsError(
            f"{paths.final} is complete and holds other features",
            hint="--overwrite replaces it; -o writes elsewhere",
        )


def _check_space(paths: OutputPaths, plan: FilePlan) -> None:
    present = paths.partial.stat().st_blocks * 512 if paths.partial.exists() else 0
    check_space(paths.final, size_bytes=plan.size_bytes, n_rows=plan.n_rows, present_bytes=present)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _keep_sound_blocks(
    writer: FeatureWriter, blocks: list[tuple[Block, int]], progress: Progress
) -> None:
    """Count in the blocks whose rows hold what the journal says, up to the first that don't."""
    if not blocks:
        return
    kept_end = writer.journal.header_end
    total = sum(block.n_rows for block, _ in blocks)
    with progress.task("checking what is there", total=total, unit="rows") as task:
        for number, (block, end) in enumerate(blocks):
            if not _holds(writer, block):
                _log.warning(
                    "block %d of %d doesn't hold what was written; going on from there",
                    number + 1,
                    len(blocks),
                )
                break
            writer.states[block.split].add(block)
            kept_end = end
            task.advance(block.n_rows)
    with storage_errors(writer.paths.journal):
        writer.journal.cut(kept_end)
    _log.info("going on after %s of %s samples", f"{writer.n_done:,}", f"{writer.plan.n_rows:,}")


def _holds(writer: FeatureWriter, block: Block) -> bool:
    state = writer.states.get(block.split)
    if state is None or block.start != state.position:
        return False
    for column, expected in zip(state.plan.columns, block.sums, strict=True):
        place = writer.offsets[block.split, column.name] + state.n_rows * column.row_bytes
        if (
            checksum(read_exactly(writer.handle, block.n_rows * column.row_bytes, place))
            != expected
        ):
            return False
    return True


@contextlib.contextmanager
def _locked(paths: OutputPaths) -> Iterator[None]:
    lock = OutputLock(paths.lock)
    with storage_errors(paths.lock):
        free = lock.acquire()
    if not free:
        raise locked_error(paths, _holder(lock))
    try:
        yield
    finally:
        lock.release()


def _holder(lock: OutputLock) -> str:
    """Name the process; it may be about to write its number."""
    end = time.monotonic() + _HOLDER_WAIT_S
    while time.monotonic() < end:
        pid = lock.holder()
        if pid is not None:
            return str(pid)
        time.sleep(0.01)
    return "unknown"


def _drop_if_empty(paths: OutputPaths, journal: Journal, disk: Disk) -> None:
    """Leave nothing behind where nothing was done."""
    if journal.is_empty:
        for path in (paths.partial, paths.compact, paths.journal):
            disk.remove(path)


def finished_before(path: Path, plan: FilePlan) -> bool:
    """Whether `path` is complete already, by a run with the same settings.

    A crash right after the last step leaves a complete file and what stood beside it; that is
    then removed.

    Raises
    ------
    FeatureFileError
        If a file of that name can't be read.
    """
    paths = OutputPaths.of(path)
    header = read_header(paths.journal)
    if not paths.final.exists():
        return False
    with FeatureFile(paths.final) as file:
        settings = json.loads(str(file.attributes.get("settings", "{}")))
        created = file.attributes.get("created")
    leftovers = [item for item in (paths.partial, paths.compact, paths.journal) if item.exists()]
    same_run = not leftovers or (header is not None and header.created == created)
    if settings != plan.settings or not same_run:
        return False
    with _locked(paths):  # also removes the lock file of a process that died at the very end
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
    return True
