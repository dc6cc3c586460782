"""Runs an extraction: plan, threads, file."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnfeat.brightness import opposites_warning, some_images
from cnnfeat.errors import DataError, Interrupted, UsageError
from cnnfeat.extraction.batch_size import LARGEST as LARGEST_BATCH
from cnnfeat.extraction.batch_size import default_batch_size, pick_batch_size
from cnnfeat.extraction.plan import Job, Prober, choose_splits
from cnnfeat.extraction.threads import Piece, Threads, Write
from cnnfeat.extraction.varying import AveragedProbe, settle_augment, with_copies
from cnnfeat.features import FeatureFile, FeatureWriter, FilePlan, Header, ShardFile
from cnnfeat.knobs import checked
from cnnfeat.options import ExtractOptions, check_fit, parse_augment
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import (
    Array,
    Batch,
    ExtractResult,
    LayerInfo,
    ProbeOutput,
    SkippedSample,
    Source,
)
from cnnfeat.shards import ShardNumber

_LISTED = 10  # skipped samples named in a warning

_log = logging.getLogger("cnnfeat")


def never() -> bool:
    """Go on."""
    return False


@dataclass(frozen=True, slots=True)
class Extraction:
    """A network and what is asked of it; the names of layers are looked up once, here.

    Raises
    ------
    LayerLookupError
        If a name means no layer, or several.
    ConfigError
        If an option can't be.
    """

    network: Prober
    options: ExtractOptions
    layers: tuple[LayerInfo, ...]

    @classmethod
    def of(cls, network: Prober, options: ExtractOptions) -> Extraction:
        """Check the options and look the layers up."""
        options = checked(options)
        return cls(network, options, network.find(options.layer))

    def foresee(self, source: Source) -> FilePlan:
        """Find out what a run would before its first batch, and write nothing.

        Raises
        ------
        UsageError, DataError, NetworkError
            As `extract` does.
        """
        options = self.options
        if options.batch_size == "auto":  # nothing is to be timed
            options = dataclasses.replace(options, batch_size=None)
        return dataclasses.replace(self, options=options).settle(source).plan()

    def run(
        self,
        source: Source,
        *,
        out: Path,
        shard: ShardNumber | None = None,
        overwrite: bool = False,
        resume: bool = False,
        should_stop: Callable[[], bool] | None = None,
        progress: Progress = SILENT,
    ) -> ExtractResult:
        """Write the activations of every image of a source into one feature file; see `extract`."""
        path = out if shard is None else shard.path_in(out)
        FeatureWriter.check(path, overwrite=overwrite, resume=resume)
        begun = FeatureWriter.unfinished(path) if resume else None
        job = self.settle(source, resumed=begun, shard=shard)
        warn_of_opposites(job)
        return run_job(
            job,
            out=path,
            overwrite=overwrite,
            resume=resume,
            should_stop=should_stop,
            progress=progress,
        )

    def settle(
        self, source: Source, *, resumed: Header | None = None, shard: ShardNumber | None = None
    ) -> Job:
        """Compile the probe for the source's images, and find the batch size.

        What comes of it serves all shards: `dataclasses.replace(job, shard=...)`.

        Parameters
        ----------
        source : Source
            The images.
        resumed : Header, optional
            Of the run that is gone on with: with its batch size, where that is timed.
        shard : ShardNumber, optional
            Which shard the job is for.

        Raises
        ------
        UsageError
            If the batch size is to be timed for a shard; for each it could come to another.
        UsageError, DataError, NetworkError
            As `extract` does.
        """
        options = settle_augment(self.options, self.network.card)
        if shard is not None and options.batch_size == "auto":
            raise UsageError(
                "--batch-size auto times a few sizes, and would find another for another shard",
                hint="give all shards the same --batch-size, or none",
            )
        check_fit(options.fit, options.resize or source.options.get("resize"))
        vary = self.network.augmentation(parse_augment(options.augment))
        source = with_copies(source, options, vary)
        splits = choose_splits(source, options.split)
        first = source.splits[splits[0]]
        size = options.batch_size
        if size is None:
            height, width = options.resize or first.image_shape[:2]
            size = default_batch_size((height, width, first.image_shape[2]))
        elif size == "auto" and resumed is not None:
            size = int(resumed.settings["batch size"])
        probe = self.network.probe(
            self.layers,
            options,
            image_shape=first.image_shape,
            image_dtype=first.dtype,
            batch_size=LARGEST_BATCH if size == "auto" else size,
        )
        if options.average:
            probe = AveragedProbe(probe, vary, options.average)
        if size == "auto":
            size = pick_batch_size(source, splits[0], probe=probe, on_error=options.on_error)
        return Job(self.network, source, probe, options, splits, size, shard)


def run_job(
    job: Job,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Write the activations of a job's images into the feature file `out`; see `extract`."""
    began = time.monotonic()
    plan = job.plan()
    _announce(plan, out)
    if resume:
        _check_source(job.source, out, plan)
        if FeatureWriter.finished_before(out, plan):
            _log.info("%s is complete already", out)
            return _result(out, job, began, n_computed=0)
    with FeatureWriter(out, plan, overwrite=overwrite, resume=resume, progress=progress) as writer:
        left = plan.n_rows - writer.n_done
        compute_into(writer, job, should_stop=should_stop or never, progress=progress)
        skipped = writer.finish()
        warn_of_rows(writer, skipped)
    return _result(out, job, began, n_computed=left)


def extract(
    network: Prober,
    source: Source,
    options: ExtractOptions,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    shard: ShardNumber | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Write the activations of named layers for every image of a source into one feature file.

    Parameters
    ----------
    network : Prober
        From `cnnfeat.network.load_network`.
    source : Source
        From `cnnfeat.data.open_source`.
    options : ExtractOptions
        Which layers of which images, how they are computed and stored.
    out : Path
        The feature file. Its name appears when it is complete.
    overwrite : bool
        Whether an existing file may be replaced; it stays until the new one is complete.
    resume : bool
        Whether to go on with an interrupted run. Its blocks are checked; with no such run, this
        one begins anew.
    shard : ShardNumber, optional
        Compute its rows alone; `out` is then the folder of the set, and is made if needed.
    should_stop : callable, optional
        Asked before each batch; if true, the run ends in order and can be resumed.
    progress : Progress
        Told of every batch.

    Raises
    ------
    LayerLookupError
        If a name means no layer, or several.
    UsageError, OutputExistsError
        If an option can't be, the output exists, or a resumed run has other settings.
    DataError, ImageError
        If the source can't be read, or has changed since the run to be resumed.
    NetworkError
        If images or activations don't have the expected shape.
    StorageError, LockedError
        If the disk refuses, or another process writes the same file.
    Interrupted
        If `should_stop` said so.
    """
    return Extraction.of(network, options).run(
        source,
        out=out,
        overwrite=overwrite,
        resume=resume,
        shard=shard,
        should_stop=should_stop,
        progress=progress,
    )


def _announce(plan: FilePlan, out: Path) -> None:
    for split in plan.splits:
        arrays = ", ".join(
            f"{column.name} {(split.n_rows, *column.row_shape)} {np.dtype(column.dtype).name}"
            for column in split.columns
        )
        _log.info("%s: %s", split.name, arrays)
    _log.info("%s will take about %s bytes", out, f"{plan.size_bytes:,}")


def warn_of_opposites(job: Job) -> None:
    """Say that images are dark on light where the network was trained on the opposite."""
    known = None if job.network.card is None else job.network.card.pixels
    if known is None:
        return
    images = some_images(job.source, job.splits[0], job.probe.target)
    inverted = bool(job.source.options.get("invert"))
    if warning := opposites_warning(images, known, inverted=inverted):
        _log.warning("%s", warning)


def _check_source(source: Source, out: Path, plan: FilePlan) -> None:
    header = FeatureWriter.unfinished(out)
    if header is None or header.settings.get("data") != plan.settings["data"] or plan.is_shard:
        return
    change = source.changed_since(header.source_state)
    if change is not None:
        raise DataError(
            f"{source.name}: {change} since {out} was begun",
            hint="start over with --overwrite",
        )


def compute_into(
    writer: FeatureWriter,
    job: Job,
    *,
    pieces: Iterator[Piece] | None = None,
    append: Write | None = None,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> None:
    """Compute what a file in the making lacks: `pieces`, by default all of it.

    Each batch and its activations go to `append`, by default the file's own.

    Raises
    ------
    Interrupted
        If `should_stop` said so.
    """
    plan, put = writer.plan, append or writer.append
    row_bytes = max(split.size_bytes // split.n_rows for split in plan.splits)
    with (
        progress.task("extracting", total=plan.n_rows, unit="images", done=writer.n_done) as task,
        Threads(
            job.probe,
            batch_bytes=job.batch_size * row_bytes,
            on_error=job.options.on_error,
        ) as threads,
    ):

        def write(split: str, batch: Batch, arrays: tuple[Array, ...]) -> None:
            put(split, batch, arrays)
            task.advance(batch.stop - batch.start)

        if not threads.run(pieces or _left(writer, job), write, should_stop=should_stop):
            raise _interrupted(writer)


def _left(writer: FeatureWriter, job: Job) -> Iterator[Piece]:
    """Yield what is not done yet, split by split."""
    left = {split.name: writer.position(split.name) for split in writer.plan.splits}
    for split in writer.plan.splits:
        for batch in job.batches(split.name, start=left[split.name], stop=split.stop):
            yield Piece(split.name, batch)


def _interrupted(writer: FeatureWriter) -> Interrupted:
    if not writer.n_done:
        return Interrupted("stopped before the first block was written")
    writer.sync()
    return Interrupted(
        f"stopped after {writer.n_done:,} of {writer.plan.n_rows:,} samples, "
        f"which are kept in {writer.paths.partial}",
        hint="`cnnfeat extract` goes on from there with --resume; `cnnfeat run` does so by itself",
    )


def warn_of_rows(writer: FeatureWriter, skipped: Mapping[str, tuple[SkippedSample, ...]]) -> None:
    """Tell which samples were left out, and what became infinite."""
    for name, samples in skipped.items():
        for sample in samples[:_LISTED]:
            _log.warning("left out %s: %s", sample.id, sample.reason)
        if len(samples) > _LISTED:
            _log.warning("left out %d more of %r", len(samples) - _LISTED, name)
    for split in writer.plan.splits:
        for column, count in writer.overflows(split.name).items():
            if count:
                _log.warning(
                    "%d values of %s/%s are beyond float16 and were stored as infinite; "
                    "--dtype float32 holds them",
                    count,
                    split.name,
                    column,
                )


def _result(out: Path, job: Job, began: float, *, n_computed: int) -> ExtractResult:
    with FeatureFile(out) if job.shard is None else ShardFile(out) as file:
        found = result_of(file, job.probe.outputs, began)
        return dataclasses.replace(found, n_computed=n_computed)


def result_of(file: FeatureFile, outputs: tuple[ProbeOutput, ...], began: float) -> ExtractResult:
    """Say what a run, which began at a time of the monotonic clock, has left."""
    return ExtractResult(
        path=str(file.path),
        rows={split: file.n_rows(split) for split in file.splits},
        layers=outputs,
        size_bytes=file.size_bytes,
        elapsed_s=time.monotonic() - began,
        skipped={split: file.skipped(split) for split in file.held if file.skipped(split)},
        labelled=any(file.labels(split) is not None for split in file.splits),
    )
