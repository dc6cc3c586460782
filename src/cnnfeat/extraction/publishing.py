"""Writes one shard, whoever else may be writing it too: the first that is whole stays."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from cnnfeat.errors import DataError, OutputExistsError
from cnnfeat.extraction.plan import Job
from cnnfeat.extraction.run import run_job
from cnnfeat.features import ShardEntry, ShardFile, storage_errors
from cnnfeat.files import locked, sync
from cnnfeat.progress import SILENT, Progress
from cnnfeat.provenance import differing_settings
from cnnfeat.shards import ShardNumber
from cnnfeat.temporary import temporary_folder

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_log = logging.getLogger("cnnfeat")


def write_shard(
    job: Job,
    shard: ShardNumber,
    folder: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ShardEntry:
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
    ShardEntry
        What a manifest says of the shard.

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
        return ShardEntry.of(file)


def _kept(final: Path, job: Job) -> ShardEntry:
    plan = job.plan()
    with ShardFile(final) as file:
        said = file.provenance
        whole = not file.n_left_out
        for name, one, other in differing_settings(said.settings, plan.settings, whole=whole):
            raise OutputExistsError(
                f"{final} is complete, and was made with another {name}: {one}, not {other}",
                hint="write to another folder with -o, or delete this one",
            )
        if said.to_attributes().get("shard") != plan.attributes.get("shard"):
            raise OutputExistsError(
                f"{final} is complete, and holds shard {file.place.number}/{file.place.of}",
                hint="give it the name it had, or delete it",
            )
        file.check_columns(plan.columns)
        _log.info("%s is complete already", final)
        return ShardEntry.of(file)


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
    with ShardFile(made) as own, ShardFile(final) as other:
        sums = own.content_checksum(), other.content_checksum()
        other.check_settings(own.provenance.settings, "when it was written again")
    if sums[0] != sums[1]:
        raise DataError(
            f"{final} was written twice, with other rows: checksum {sums[1]}, then {sums[0]}",
            hint="rows are the same on processors of one make with as many threads; let all "
            "machines be alike, and start over in another folder",
        )
    _log.info("%s was written twice, with the same rows; the first is kept", final)
