"""Adds layers to features that are there, for the rows that they have."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import DataError
from cnnfeat.extraction.existing import (
    STAGING,
    Existing,
    check_begun,
    check_in_place,
    check_settings,
    check_sound,
    foresee_shards,
)
from cnnfeat.extraction.plan import Job
from cnnfeat.extraction.run import Extraction, compute_into, warn_of_rows
from cnnfeat.extraction.threads import Write
from cnnfeat.features import FeatureWriter, PlannedFile, ShardFile, storage_errors, stored_text
from cnnfeat.features.merging import seal_set
from cnnfeat.files import sync
from cnnfeat.progress import Progress
from cnnfeat.records import Array, Batch, LayerInfo, Probe, ProbeOutput, Source
from cnnfeat.shards import ShardNumber

_LAYER = frozenset({"layer"})  # the setting that may be another


def add_layers(
    extraction: Extraction,
    source: Source,
    there: Existing,
    new: Sequence[LayerInfo],
    *,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> tuple[ProbeOutput, ...]:
    """Compute layers that aren't there, of the images that it was made of; return all there are.

    Raises
    ------
    CnnfeatError
        As `add_to` does.
    """
    job = _wider(extraction, source, there, new)
    there.check_settings(job.plan().settings, but=_LAYER)
    run = _Widening(job, len(there.outputs), should_stop, progress)
    if there.path.is_dir():
        run.to_set(there.path, there.paths)
    else:
        shard = there.said.shard
        number = None if shard is None else ShardNumber(shard.number, shard.of)
        run.to_file(there.path, there.path, dataclasses.replace(job, shard=number))
    return job.probe.outputs


def check_made_so(
    extraction: Extraction, source: Source, there: Existing
) -> tuple[ProbeOutput, ...]:
    """See that layers that are there were made with an extraction's settings; return all there are.

    Raises
    ------
    UsageError
        With the first that is another.
    """
    options = there.options_like(extraction)
    job = dataclasses.replace(extraction, options=options).settle(source)
    there.check_settings(job.plan().settings, but=_LAYER)
    return there.outputs


def _wider(
    extraction: Extraction, source: Source, there: Existing, new: Sequence[LayerInfo]
) -> Job:
    """Settle a job of the layers that are there and of new ones, which it computes."""
    options = there.options_like(extraction)
    job = dataclasses.replace(extraction, options=options, layers=tuple(new)).settle(source)
    unsteady = {**(there.said.network_unsteady or {}), **job.probe.unsteady}
    probe = _Wider(job.probe, (*there.outputs, *job.probe.outputs), unsteady)
    asked = dict.fromkeys((*there.layers, *options.layer))
    options = dataclasses.replace(job.options, layer=tuple(asked))
    return dataclasses.replace(job, probe=probe, options=options)


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
class _Widening:
    """Layers under way: how they come into one file after the other."""

    job: Job
    n_had: int  # layers that are there
    should_stop: Callable[[], bool]
    progress: Progress

    def to_set(self, folder: Path, paths: Sequence[Path]) -> None:
        """Write all shards anew beside those that are there, then put them in their places."""
        staging = folder / STAGING
        foresee_shards(staging, self.job.plan(), n_shards=len(paths))
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
            check_settings(path, file.provenance, plan.settings, but=_LAYER)
            if out != path and FeatureWriter.finished_before(out, plan):
                return
            resume = check_begun(out, plan.settings)
            check_sound(file, self.progress)
            with FeatureWriter(
                out, plan, overwrite=True, resume=resume, progress=self.progress
            ) as writer:
                check_in_place(file)
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
