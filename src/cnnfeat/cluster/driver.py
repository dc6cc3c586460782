"""Runs an extraction on a cluster: settles it here, has its shards computed, and seals the set."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.address import Address
from cnnfeat.cluster.checking import ALIKE, check_workers, differing, versions_that_count
from cnnfeat.cluster.connection import check_place, connected
from cnnfeat.cluster.destination import destination
from cnnfeat.cluster.handing import Handing
from cnnfeat.cluster.worker import Done, Work, compute
from cnnfeat.cluster.written import WrittenShards
from cnnfeat.errors import DataError, Interrupted, UsageError
from cnnfeat.knobs import checked
from cnnfeat.options import DataOptions, EngineName, ExtractOptions, ReadOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import ExtractResult, Probe, Source
from cnnfeat.shards import ShardNumber

if TYPE_CHECKING:
    from distributed import Client, Future

    from cnnfeat.cluster.connection import Worker
    from cnnfeat.extraction import Job
    from cnnfeat.extraction.publishing import WrittenShard

_SHARD_ROWS = 50_000  # where nothing is said: minutes of work, and files that can be handled
_log = logging.getLogger("cnnfeat")


def _no_start() -> None:
    """Leave it to what opens the network."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Who computes an extraction, and in how many pieces.

    Raises
    ------
    UsageError
        If that can't be.
    """

    where: str  # a scheduler's address, "local", or "local:N"
    shards: int | None = None
    shard_rows: int | None = None  # how many images one has at most, about

    def __post_init__(self) -> None:
        check_place(self.where)
        if self.shards is not None and self.shard_rows is not None:
            raise UsageError("--shards and --shard-rows say the same: give one of them")
        for flag, number in (("--shards", self.shards), ("--shard-rows", self.shard_rows)):
            if number is not None and number < 1:
                raise UsageError(f"{flag} must be at least 1, not {number}")

    def n_shards(self, n_samples: Mapping[str, int], *, batch_size: int) -> int:
        """Say how many there are of so many samples of each split."""
        if self.shards is not None:
            return self.shards
        rows = _SHARD_ROWS if self.shard_rows is None else self.shard_rows
        most = -(-max(n_samples.values()) // batch_size)  # none without a batch
        return min(most, -(-sum(n_samples.values()) // rows))


def extract_on_cluster(
    network: str | os.PathLike[str],
    data: DataOptions,
    options: ExtractOptions,
    *,
    cluster: ClusterOptions,
    out: Path | Address,
    read: ReadOptions,
    trust: bool = False,
    start: Callable[[], None] = _no_start,
    opened: Callable[[Source], None],
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]],
    progress: Progress = SILENT,
) -> ExtractResult:
    """Write a feature set, its shards computed by the workers of a Dask cluster.

    What is there of it already is kept. Workers need to see the network, the images and the folder
    under the names that they have here.

    Parameters
    ----------
    network : str or Path
        A file or folder, or a name of Keras' own networks.
    data : DataOptions
        The images.
    options : ExtractOptions
        Which layers of them, how they are computed and stored.
    cluster : ClusterOptions
        Who computes it.
    out : Path or Address
        The folder of the set, which all workers see, or one in a store.
    read : ReadOptions
        How the network is read.
    trust : bool
        Run a network that does more than compute.
    start : callable
        Starts TensorFlow in this process, once there is a cluster.
    opened, stopping, progress
        As in `cnnfeat.extract`.

    Raises
    ------
    UsageError
        If options can't be.
    OutputExistsError
        If the folder holds shards of something else.
    LockedError
        If another process of this machine hands out the same set.
    StorageError
        If no scheduler answers or it is lost, a worker has other versions of packages, or a disk or
        a store refuses.
    DataError
        If a worker finds another network or other images, or none.
    Interrupted
        If asked to stop: what is done is kept.
    CnnfeatError
        As `cnnfeat.extract` does, with the shard that it happened in.
    """
    began, place = time.monotonic(), destination(out)
    with place.held(), connected(cluster.where) as client:
        start()
        with _settled(network, data, options, read=read, trust=trust, opened=opened) as settled:
            job, found = settled
            plan = job.plan()
            n_samples = {split.name: split.n_rows for split in plan.splits}
            n_shards = cluster.n_shards(n_samples, batch_size=job.batch_size)
            work = Work(
                run=uuid.uuid4().hex,
                network=_absolute(os.fspath(network)),
                read=read,
                trust=trust,
                data=found,
                options=job.options,
                folder=str(out.absolute() if isinstance(out, Path) else out),
                n_shards=n_shards,
                versions=versions_that_count(job.options.engine),
            )
            division = _Division(n_samples, job.batch_size, n_shards)
            division.size(1)  # refuses too many
            place.check(n_shards)
        settings = check_workers(client, work, plan.settings)
        with WrittenShards.kept(n_shards) as shards:
            with stopping() as should_stop:
                _compute(
                    client,
                    work,
                    settings,
                    division,
                    shards=shards,
                    should_stop=should_stop,
                    progress=progress,
                )
            place.seal(settings, shards)
            return ExtractResult(
                path=str(place),
                rows=dict(shards.rows),
                layers=job.probe.outputs,
                size_bytes=shards.size_bytes,
                elapsed_s=time.monotonic() - began,
                skipped=shards.skipped(),
            )


@contextlib.contextmanager
def _settled(
    network: str | os.PathLike[str],
    data: DataOptions,
    options: ExtractOptions,
    *,
    read: ReadOptions,
    trust: bool,
    opened: Callable[[Source], None],
) -> Iterator[tuple[Job, DataOptions]]:
    """Find out here what all workers are told: batch size and engine, where that was left open."""
    from cnnfeat.extraction import Extraction
    from cnnfeat.network.starting import load_tensorflow
    from cnnfeat.pipeline import open_images

    load_tensorflow(device=checked(options).device)
    from cnnfeat.network import open_network

    prober = open_network(network, read, trust=trust)
    extraction = Extraction.of(prober, options)
    with open_images(checked(data), prober.card) as images:
        opened(images)
        job = extraction.settle(images)
        options = dataclasses.replace(
            job.options, batch_size=job.batch_size, engine=_engine(job.probe)
        )
        yield dataclasses.replace(job, options=options), _placed(data, images)


def _engine(probe: Probe) -> EngineName:
    """Give the option's value for what a probe computes with: "tensorflow 2.21.0"."""
    return "openvino" if probe.engine.startswith("openvino") else "tensorflow"


def _placed(data: DataOptions, images: Source) -> DataOptions:
    """Say where images lie so that a process in another folder finds them."""
    return dataclasses.replace(
        data,
        source=None if data.source is None else images.name,
        dir=data.dir and str(Path(data.dir).absolute()),
        labels=data.labels and _absolute(data.labels),
    )


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path


@dataclass(frozen=True, slots=True)
class _Division:
    """Which shards there are."""

    n_samples: Mapping[str, int]  # by split
    batch_size: int
    n_shards: int

    @property
    def total(self) -> int:
        return sum(self.n_samples.values())

    def size(self, number: int) -> int:
        """Count the samples of a shard, of all splits."""
        shard = ShardNumber(number, self.n_shards)
        samples = shard.rows(self.n_samples, batch_size=self.batch_size).samples
        return sum(stop - start for start, stop in samples.values())


def _compute(
    client: Client,
    work: Work,
    settings: Mapping[str, str],
    division: _Division,
    *,
    shards: WrittenShards,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> None:
    """Have all shards computed, and tell how far that is."""
    numbers = range(1, work.n_shards + 1)

    def submit(number: int, workers: tuple[Worker, ...]) -> Future:
        resources = next((one.resources for one in workers if one.has_gpu), None)
        return client.submit(compute, work, number, settings, pure=False, resources=resources)

    handing: Handing[Done] = Handing(client, submit, noun=lambda number: f"shard {number}")
    n_done = 0
    with progress.task("extracting", total=division.total, unit="images") as task:
        for number, done in handing.results(numbers, should_stop=should_stop):
            shards.add(number, _written(done, work, settings))
            n_done += 1
            task.advance(division.size(number), note=f"{n_done:,} of {work.n_shards:,} shards")
    if n_done < work.n_shards:
        raise Interrupted(
            f"stopped after {n_done:,} of {work.n_shards:,} shards, kept in {work.folder}",
            hint="the same command goes on from there",
        )


def _written(done: Done, work: Work, settings: Mapping[str, str]) -> WrittenShard:
    """Log what was logged with a shard; raise what went wrong with it."""
    shard = f"shard {ShardNumber(done.number, work.n_shards)}"
    for level, words in done.words:
        _log.log(level, "%s: %s", shard, words)
    if done.settings is not None:
        raise DataError(
            f"{shard}: worker {done.worker}: {differing(done.settings, settings)}", hint=ALIKE
        )
    if done.failure is not None:
        raise done.failure.error(where=shard)
    assert done.written is not None
    return done.written
