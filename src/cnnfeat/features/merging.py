"""Makes one set of a folder's shards, and one feature file of a set."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from cnnfeat.errors import FeatureFileError, Interrupted, MissingInputError, OutputExistsError
from cnnfeat.features import format as fmt
from cnnfeat.features.format import FilePlan, SplitPlan
from cnnfeat.features.inventory import (
    MANIFEST,
    Inventory,
    ShardEntry,
    check_manifest,
    in_a_row,
    read_inventory,
    write_inventory,
)
from cnnfeat.features.seal import checksum, text_checksum
from cnnfeat.features.sets import FeatureSet
from cnnfeat.features.shardfile import ShardFile
from cnnfeat.features.writer import FeatureWriter
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.provenance import Provenance
from cnnfeat.records import Batch
from cnnfeat.shards import ShardNumber, shard_files
from cnnfeat.temporary import remove_abandoned_folders

_LISTED = 5  # missing shards named in a message
_OWN = {"shard", "created", "h5py"}  # what a merged file says of itself

_log = logging.getLogger("cnnfeat")


def take_stock(folder: Path, *, of: int | None = None, progress: Progress = SILENT) -> Inventory:
    """Look through the shards of a folder, and see that they are one whole set.

    Parameters
    ----------
    folder : Path
        Where they are.
    of : int, optional
        Look at shards of a set of so many alone; else there may be no others.
    progress : Progress
        Told of every shard.

    Raises
    ------
    MissingInputError
        If there are none.
    FeatureFileError
        If one is missing, damaged, or was made with other settings than the first.
    """
    paths = all_there(folder, of=of)
    with ShardFile(paths[0]) as first:
        settings = first.provenance.settings
    with progress.task("looking through shards", total=len(paths), unit="shards") as task:
        shards = tuple(in_a_row(folder, _entries(paths, settings, task)))
    found = Inventory(_said_of_all(folder, shards), shards)
    for split in found.splits:
        if not found.n_rows(split):
            raise FeatureFileError(f"{folder}: all samples of split {split!r} were left out")
    return found


def all_there(folder: Path, *, of: int | None = None) -> list[Path]:
    """List the shards of a folder, in order; those of a set of `of` shards alone, if that is said.

    Raises
    ------
    MissingInputError, FeatureFileError
        If there are none, some are missing, or some are of another set.
    """
    by_size: dict[int, dict[int, Path]] = {}
    if folder.is_dir():
        for number, size, path in shard_files(folder):
            if of in (None, size):
                by_size.setdefault(size, {})[number] = path
    if not by_size:
        raise MissingInputError(
            f"{folder} is no folder with shards in it",
            hint="cnnfeat extract --shard 1/4 -o FOLDER makes the first of four",
        )
    if len(by_size) > 1:
        firsts = [next(iter(paths.values())).name for paths in by_size.values()]
        raise FeatureFileError(
            f"{folder} holds shards of several sets: {' and '.join(firsts)}",
            hint="move those of one of them to a folder of their own",
        )
    ((size, paths),) = by_size.items()
    if n_missing := size - len(paths):
        numbers = (number for number in range(1, size + 1) if number not in paths)
        missing = (ShardNumber(number, size) for number in numbers)
        some = list(itertools.islice(missing, _LISTED))
        names = ", ".join(one.file_name for one in some)
        raise FeatureFileError(
            f"{folder}: {n_missing:,} of {size:,} shards are missing: {names}"
            + (" ..." if n_missing > _LISTED else ""),
            hint=f"cnnfeat extract --shard {some[0]} --resume makes it, with the same options",
        )
    return [paths[number] for number in range(1, size + 1)]


def _said_of_all(folder: Path, shards: Sequence[ShardEntry]) -> Mapping[str, str]:
    """Say what a set was made with: as the first shard from which samples were left out, or all."""
    telling = next((shard for shard in shards if shard.n_left_out), shards[0])
    with ShardFile(folder / telling.name) as file:
        return file.provenance.settings


def _entries(paths: list[Path], settings: Mapping[str, str], task: Task) -> Iterator[ShardEntry]:
    columns: dict[str, tuple[str, ...]] = {}
    for number, path in enumerate(paths, start=1):
        with ShardFile(path) as file:
            file.check_place(number, len(paths))
            file.check_settings(settings, paths[0].name)
            file.check_columns(columns)
            yield ShardEntry.of(file)
        task.advance()


def seal_set(folder: Path, *, of: int | None = None, progress: Progress = SILENT) -> Inventory:
    """Write the manifest of a folder whose shards are all there, so that it is read as one file.

    Raises
    ------
    CnnfeatError
        As `take_stock` does.
    OutputExistsError
        If there is another program's manifest.json.
    StorageError
        If the disk refuses.
    """
    check_manifest(folder)
    found = take_stock(folder, of=of, progress=progress)
    write_inventory(folder, found.settings, found.shards)
    remove_abandoned_folders(folder)
    return found


def merge_shards(
    folder: Path,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the shards of a folder as the one feature file that a single run would have made.

    It is the same to the byte, but for `created`, the time at which it was begun.

    Parameters
    ----------
    folder : Path
        With all shards in it; sealed or not.
    out : Path
        The feature file. Its name appears when it is complete.
    overwrite : bool
        Whether an existing file may be replaced.
    resume : bool
        Whether to go on with an interrupted run.
    should_stop : callable, optional
        Asked before each block; if true, the run ends in order and can be resumed.
    progress : Progress
        Told of every block.

    Raises
    ------
    CnnfeatError
        As `take_stock` does.
    OutputExistsError
        If the output exists, or is one of the shards.
    StorageError, LockedError
        If the disk refuses, or another process writes the same file.
    Interrupted
        If `should_stop` said so.
    """
    if folder.is_dir() and out.exists():
        _check_apart(folder, out)
    FeatureWriter.check(out, overwrite=overwrite, resume=resume)
    sealed = (folder / MANIFEST).exists()
    stock = read_inventory(folder) if sealed else take_stock(folder, progress=progress)
    with FeatureSet(folder, stock) as shards:
        plan = merged_plan(shards)
        if resume and FeatureWriter.finished_before(out, plan):
            _log.info("%s is complete already", out)
            return
        with (
            FeatureWriter(
                out, plan, overwrite=overwrite, resume=resume, progress=progress
            ) as writer,
            progress.task("merging", total=plan.n_rows, unit="rows", done=writer.n_done) as task,
        ):
            for split in plan.splits:
                for n_rows in _copied(shards, split, writer):
                    task.advance(n_rows)
                    if should_stop is not None and should_stop():
                        writer.sync()
                        raise Interrupted(
                            f"stopped after {writer.n_done:,} of {plan.n_rows:,} rows, which are "
                            f"kept in {writer.paths.partial}",
                            hint="the same command with --resume goes on from there",
                        )
            writer.finish()


def _check_apart(folder: Path, out: Path) -> None:
    """Refuse to write over what is read."""
    inside = [folder / MANIFEST, *(path for _, _, path in shard_files(folder))]
    if any(path.exists() and path.samefile(out) for path in inside):
        raise OutputExistsError(
            f"{out} is a part of the set that is to be merged", hint="name another file with -o"
        )


def merged_plan(shards: FeatureSet) -> FilePlan:
    """Lay down the file that a single run would have made."""
    found = shards.inventory
    names = {item.name for item in fields(Provenance)} - _OWN
    return FilePlan(
        splits=tuple(
            SplitPlan(split, found.n_rows(split), shards.planned_columns(split))
            for split in found.splits
        ),
        classes=shards.classes,
        attributes={name: value for name, value in shards.attributes.items() if name in names},
        settings=found.settings,
    )


def _copied(shards: FeatureSet, split: SplitPlan, writer: FeatureWriter) -> Iterator[int]:
    """Copy the blocks of a split that aren't there yet; yield the rows of each."""
    left_out = writer.n_blocks(split.name)  # done by an interrupted run
    for number, entry in enumerate(shards.inventory.shards):
        n_blocks = entry.blocks.get(split.name, 0)
        if left_out >= n_blocks:
            left_out -= n_blocks
            continue
        with shards.shard(number) as shard:
            for block in range(left_out, n_blocks):
                yield _copy_block(shard, split, block, writer)
        left_out = 0


def _copy_block(shard: ShardFile, split: SplitPlan, block: int, writer: FeatureWriter) -> int:
    name, sums = split.name, shard.sums(split.name)
    start, stop = int(sums.stops[block - 1]) if block else 0, int(sums.stops[block])
    arrays = []
    for column in split.columns:
        rows = shard.read(name, column.name, start=start, stop=stop)
        if checksum(rows) != int(sums.of(column.name)[block]):
            raise shard.damaged(name, column.name, block)
        arrays.append(rows)
    ids = tuple(shard.ids(name, start=start, stop=stop))
    if text_checksum(ids) != int(sums.of(fmt.ID)[block]):
        raise shard.damaged(name, fmt.ID, block)
    # Rows are counted here, not samples. Where those left out stand is in what is said of each.
    begin = writer.position(name)
    whole = Batch(
        np.empty(0), None, ids, begin, begin + len(ids), () if block else shard.skipped(name)
    )
    over = [0 if block else shard.overflows(name, column.name) for column in split.columns]
    writer.append_columns(name, whole, arrays, overflowed=over)
    return len(ids)
