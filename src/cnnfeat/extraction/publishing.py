"""Writes one shard, whoever else may be writing it too: the first that is whole stays."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.address import Address
from cnnfeat.errors import DataError, OutputExistsError
from cnnfeat.extraction.plan import Job
from cnnfeat.extraction.run import run_job
from cnnfeat.features import ShardEntry, ShardFile, storage_errors
from cnnfeat.files import locked, sync
from cnnfeat.progress import SILENT, Progress
from cnnfeat.provenance import differing_settings
from cnnfeat.records import SkippedSample
from cnnfeat.shards import ShardNumber
from cnnfeat.store import put_object, stat_object
from cnnfeat.temporary import temporary_folder
from cnnfeat.transfer import incoming, name_of

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard that is in its place."""

    entry: ShardEntry  # what a manifest says of it
    skipped: Mapping[str, tuple[SkippedSample, ...]]  # by split, those that were left out

    @classmethod
    def of(cls, file: ShardFile) -> WrittenShard:
        """Describe one that is open."""
        return cls(ShardEntry.of(file), {split: file.skipped(split) for split in file.held})


def write_shard(
    job: Job,
    shard: ShardNumber,
    folder: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> WrittenShard:
    """Write one shard of an extraction into a folder, unless it is there.

    Any number of processes, on any machines that see the folder, may write the same shard at the
    same time. Each writes under a name of its own; the first that is done gives its file the
    shard's name, the others find the same rows there and drop theirs.

    Parameters
    ----------
    job : Job
        From `Extraction.settle`; it serves all shards.
    shard : ShardNumber
        Which one.
    folder : Path
        Where all of them go; made if needed.
    should_stop : callable, optional
        Asked before each batch; if true, what is done of the shard is dropped.
    progress : Progress
        Told of every batch.

    Returns
    -------
    WrittenShard
        What a manifest says of the shard, and what was left out.

    Raises
    ------
    OutputExistsError
        If a shard of that name was made with other settings.
    DataError
        If another process wrote other rows meanwhile.
    CnnfeatError
        As `extract` does.
    """
    job = dataclasses.replace(job, shard=shard)
    final = shard.path_in(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if final.exists():
        return _kept(final, job)
    with storage_errors(final), temporary_folder(beside=final) as own:
        made = own / final.name
        run_job(job, out=made, should_stop=should_stop, progress=progress)
        publish(made, final)
    with ShardFile(final) as file:
        return WrittenShard.of(file)


def put_shard(job: Job, shard: ShardNumber, folder: Address) -> WrittenShard:
    """Write one shard of an extraction into a folder of a store, unless it is there.

    It is written on this machine, and put there when it is whole. Otherwise as `write_shard`.
    """
    job = dataclasses.replace(job, shard=shard)
    final = folder / shard.file_name
    if stat_object(final) is not None:
        with incoming(final) as copy:
            return _kept(copy, job)
    with temporary_folder() as own:
        made = own / final.name
        run_job(job, out=made)
        try:
            put_object(made, final, overwrite=False)
        except OutputExistsError:
            with incoming(final) as copy:
                _check_same(made, copy)
                return _kept(copy, job)
        with ShardFile(made) as file:
            return WrittenShard.of(file)


def _kept(final: Path, job: Job) -> WrittenShard:
    plan, name = job.plan(), name_of(final)
    with ShardFile(final) as file:
        said = file.provenance
        whole = not file.n_left_out
        for setting, one, other in differing_settings(said.settings, plan.settings, whole=whole):
            raise OutputExistsError(
                f"{name} is complete, and was made with another {setting}: {one}, not {other}",
                hint="write to another folder with -o, or delete this one",
            )
        if said.to_attributes().get("shard") != plan.attributes.get("shard"):
            raise OutputExistsError(
                f"{name} is complete, and holds shard {file.place.number}/{file.place.of}",
                hint="give it the name it had, or delete it",
            )
        file.check_columns(plan.columns)
        _log.info("%s is complete already", name)
        return WrittenShard.of(file)


def publish(made: Path, final: Path) -> bool:
    """Give a finished shard its name, unless it is there by now; say whether.

    Raises
    ------
    DataError
        If it is there with other rows.
    StorageError
        If the disk refuses.
    """
    with storage_errors(final):
        try:
            os.link(made, final)  # unlike a rename, never over another's
        except FileExistsError:
            _check_same(made, final)
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _publish_without_links(made, final)
        sync(final.parent)
    return True


def _publish_without_links(made: Path, final: Path) -> bool:
    with locked(final):
        if final.exists():
            _check_same(made, final)
            return False
        made.replace(final)
        sync(final.parent)
    return True


def _check_same(made: Path, final: Path) -> None:
    name = name_of(final)
    with ShardFile(made) as own, ShardFile(final) as other:
        sums = own.content_checksum(), other.content_checksum()
        other.check_settings(own.provenance.settings, "when it was written again")
    if sums[0] != sums[1]:
        raise DataError(
            f"{name} was written twice, with other rows: checksum {sums[1]}, then {sums[0]}",
            hint="rows are the same on processors of one make with as many threads; let all "
            "machines be alike, and start over in another folder",
        )
    _log.info("%s was written twice, with the same rows; the first is kept", name)
