"""Adds layers to features that are there: these are copied, and only the new ones computed."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import DataError, FeatureFileError, UsageError
from cnnfeat.extraction.plan import Job
from cnnfeat.extraction.run import Extraction, compute_into, never, result_of, warn_of_rows
from cnnfeat.extraction.threads import Write
from cnnfeat.features import (
    FeatureFile,
    FeatureWriter,
    PlannedFile,
    ShardFile,
    storage_errors,
    stored_text,
    verify_opened,
)
from cnnfeat.features.merging import all_there, seal_set
from cnnfeat.features.writer import OutputPaths
from cnnfeat.files import sync
from cnnfeat.progress import SILENT, Progress
from cnnfeat.provenance import differing_settings
from cnnfeat.records import (
    Array,
    Batch,
    ExtractResult,
    LayerInfo,
    Probe,
    ProbeOutput,
    Source,
)
from cnnfeat.shards import ShardNumber

_STAGING = ".adding"  # where a set's new shards wait until all are there
_OTHER = "give the same again, or extract into another file with -o"

_log = logging.getLogger("cnnfeat")


def add_layers(
    extraction: Extraction,
    source: Source,
    *,
    out: Path,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> ExtractResult:
    """Add layers to a feature file or a set, for the rows that it has.

    What stands there is checked and copied, and not computed again. The file that was there stays
    until the new one is whole; of a set, all shards until the last new one is. What an interrupted
    run has left is gone on with.

    Parameters
    ----------
    extraction : Extraction
        The network, and the layers that the file shall have besides its own.
    source : Source
        The images whose features are there.
    out : Path
        The feature file, or the folder of shards.
    should_stop : callable, optional
        Asked before each batch; if true, the run ends in order and can be taken up again.
    progress : Progress
        Told of every batch.

    Raises
    ------
    UsageError
        If what is there was made with other settings; with the first of them.
    DataError
        If it is damaged, or has other rows than the source.
    CnnfeatError
        As `extract` does.
    """
    began = time.monotonic()
    paths = all_there(out) if out.is_dir() else [out]
    read = ShardFile if out.is_dir() else PlannedFile
    with read(paths[-1]) as like:  # of a set's shards the last is the last to be replaced
        had = _outputs(like)
        named = [info for info in extraction.layers if not _is_there(info, had)]
        job = _wider(extraction, source, like, had, named)
        shard = like.provenance.shard
        _check_settings(like.path, like.provenance.settings, job.plan().settings)
    if not named:
        _log.info("%s has these layers already", out)
        if out.is_dir():  # an interrupted run may have come no further
            seal_set(out, progress=progress)
        return _result(out, had, began)
    run = _Adding(job, len(had), should_stop or never, progress)
    if out.is_dir():
        run.to_set(out, paths)
    else:
        number = None if shard is None else ShardNumber(shard.number, shard.of)
        run.to_file(out, out, dataclasses.replace(job, shard=number))
    return _result(out, job.probe.outputs, began)


def _outputs(file: PlannedFile) -> tuple[ProbeOutput, ...]:
    columns = file.planned_columns(file.held[0])
    return tuple(column.output for column in columns if column.output is not None)


def _is_there(info: LayerInfo, had: Sequence[ProbeOutput]) -> bool:
    return any(info.tensor.name == output.tensor for output in had)


def _wider(
    extraction: Extraction,
    source: Source,
    like: PlannedFile,
    had: tuple[ProbeOutput, ...],
    named: Sequence[LayerInfo],
) -> Job:
    """Settle a job of the layers that are there and those that are named, which it computes.

    Where none is, what is there is settled: it is to have been made so.

    Raises
    ------
    UsageError
        If its other settings aren't those of the layers that are there.
    """
    said, options = like.provenance, extraction.options
    batch_size = said.settings.get("batch size", "")
    if options.batch_size == "auto" and batch_size.isdecimal():
        options = dataclasses.replace(options, batch_size=int(batch_size))
    layers = tuple(named) or extraction.layers
    job = dataclasses.replace(extraction, options=options, layers=layers).settle(source)
    before = said.options.get("extract", {}).get("layer")
    asked = (*(before if isinstance(before, list) else ()), *options.layer)
    probe = _Wider(
        job.probe,
        (*had, *job.probe.outputs) if named else had,
        {**(said.network_unsteady or {}), **job.probe.unsteady},
    )
    options = dataclasses.replace(options, layer=tuple(dict.fromkeys(map(str, asked))))
    return dataclasses.replace(job, probe=probe, options=options)


def _check_settings(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to add to what was made with other settings; the layers are to be others."""
    for name, one, other in differing_settings(found, wanted):
        if name != "layer":
            raise UsageError(
                f"{path} was made with another {name}: {one}, and now it is {other}", hint=_OTHER
            )


def _result(out: Path, outputs: tuple[ProbeOutput, ...], began: float) -> ExtractResult:
    with FeatureFile(out) as file:
        return result_of(file, outputs, began)


class _Wider:
    """A probe that tells of more outputs than it computes: those that are there."""

    def __init__(
        self,
        computed: Probe,
        outputs: tuple[ProbeOutput, ...],
        unsteady: Mapping[str, Sequence[str]],
    ) -> None:
        self.computed = computed
        self.outputs, self.unsteady = outputs, unsteady
        self.preprocessing = computed.preprocessing
        self.target, self.device = computed.target, computed.device

    @property
    def engine(self) -> str:
        """What runs the network."""
        return self.computed.engine

    def __call__(self, images: Array) -> tuple[Array, ...]:
        """Compute what isn't there."""
        return self.computed(images)


@dataclass(frozen=True, slots=True)
class _Adding:
    """Layers under way: how they come into one file after the other."""

    job: Job
    n_had: int  # layers that are there
    should_stop: Callable[[], bool]
    progress: Progress

    def to_set(self, folder: Path, paths: Sequence[Path]) -> None:
        """Write all shards anew beside those that are there, then put them in their places."""
        staging = folder / _STAGING
        for number, path in enumerate(paths, start=1):
            job = dataclasses.replace(self.job, shard=ShardNumber(number, len(paths)))
            with ShardFile(path) as file:
                if file.provenance.settings == job.plan().settings:
                    continue  # put in its place by a run that was interrupted then
            self.to_file(path, staging / path.name, job)
        with storage_errors(folder):
            for path in paths:
                if (staging / path.name).exists():
                    (staging / path.name).replace(path)
            sync(folder)
            with contextlib.suppress(OSError):
                staging.rmdir()  # there is none where all were in their places
        seal_set(folder, progress=self.progress)

    def to_file(self, path: Path, out: Path, job: Job) -> None:
        """Write one file anew, its own layers copied."""
        plan = job.plan()
        with PlannedFile(path) if job.shard is None else ShardFile(path) as file:
            _check_settings(path, file.provenance.settings, plan.settings)
            if out != path and FeatureWriter.finished_before(out, plan):
                return
            _check_begun(out, plan.settings)
            _check_sound(file, self.progress)
            with FeatureWriter(
                out, plan, overwrite=True, resume=True, progress=self.progress
            ) as writer:
                compute_into(
                    writer,
                    dataclasses.replace(job, probe=self._computed),
                    append=self._append(writer, file),
                    should_stop=self.should_stop,
                    progress=self.progress,
                )
                warn_of_rows(writer, writer.finish())

    @property
    def _computed(self) -> Probe:
        probe = self.job.probe
        return probe.computed if isinstance(probe, _Wider) else probe

    def _append(self, writer: FeatureWriter, file: PlannedFile) -> Write:
        """Put the rows of layers that are there before those that were computed."""
        names = {
            split.name: [column.name for column in split.columns[: self.n_had]]
            for split in writer.plan.splits
        }

        left_out = {split: [one.row for one in file.skipped(split)] for split in names}

        def append(split: str, batch: Batch, arrays: tuple[Array, ...]) -> None:
            start = writer.n_rows(split)
            gone = [bisect.bisect_left(left_out[split], row) for row in (batch.start, batch.stop)]
            stop = start + (batch.stop - batch.start) - (gone[1] - gone[0])
            _check_ids(file, split, batch, start=start, stop=stop)
            before = [file.read(split, name, start=start, stop=stop) for name in names[split]]
            # The file says of all rows how many values there are infinite: said with the first.
            first = batch.start == writer.start(split)
            over = [file.overflows(split, name) if first else 0 for name in names[split]]
            writer.append(split, batch, (*before, *arrays), overflowed=over)

        return append


def _check_begun(out: Path, wanted: Mapping[str, str]) -> None:
    """Refuse to go on with another addition that was interrupted."""
    begun = FeatureWriter.unfinished(out)
    if begun is not None:
        try:
            begun.check_same(out, wanted)
        except UsageError as error:
            journal = OutputPaths.of(out).journal
            raise UsageError(
                error.message, hint=f"add those layers first, or delete {journal}"
            ) from error


def _check_sound(file: FeatureFile, progress: Progress) -> None:
    """Refuse to copy what is damaged: its checksums would be made anew."""
    damages = verify_opened(file, progress=progress).damages
    if damages:
        raise FeatureFileError(
            damages[0].message, hint="make the file again with cnnfeat extract --overwrite"
        )


def _check_ids(file: PlannedFile, split: str, batch: Batch, *, start: int, stop: int) -> None:
    """Refuse a batch that has other samples now, or of which others are left out."""
    there = file.ids(split, start=start, stop=stop)
    now = [stored_text(name) for name in batch.ids]
    if there != now:
        pairs = itertools.zip_longest(there, now, fillvalue="nothing")
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise DataError(
            f"{file.path} has {one} in split {split!r} where the source has {other}",
            hint="extract all layers anew, with --overwrite",
        )
