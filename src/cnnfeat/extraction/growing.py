"""Adds the rows of pictures that a source has got, to a feature file or a set of those that it had.

All pictures are compared before the first is computed: where one has changed, nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import DataError, UsageError
from cnnfeat.extraction.comparing import ANEW, Stretch, compare
from cnnfeat.extraction.existing import (
    DATA,
    STAGING,
    Existing,
    check_begun,
    check_in_place,
    check_sound,
    foresee_shards,
    replace_shards,
)
from cnnfeat.extraction.plan import Job
from cnnfeat.extraction.run import compute_into, warn_of_rows
from cnnfeat.extraction.threads import Piece, Write
from cnnfeat.features import DIGEST, FeatureFile, FeatureWriter, FilePlan, PlannedFile
from cnnfeat.features.merging import seal_set
from cnnfeat.features.sets import FeatureSet
from cnnfeat.features.writer import fit_rows
from cnnfeat.progress import Progress
from cnnfeat.records import Array, Batch, LayerInfo, ProbeOutput, Source
from cnnfeat.shards import ShardNumber

if TYPE_CHECKING:
    from cnnfeat.extraction.run import Extraction

_NO_DIGESTS = (
    "nothing in it proves that its images are as they were: it is of a cnnfeat that kept no "
    f"digests of them; {ANEW}"
)

_log = logging.getLogger("cnnfeat")


def add_pictures(
    extraction: Extraction,
    source: Source,
    there: Existing,
    new: Sequence[LayerInfo],
    *,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> tuple[ProbeOutput, ...]:
    """Compute the rows of pictures that have none, in all layers that are there; return these.

    Raises
    ------
    CnnfeatError
        As `add_to` does.
    """
    _check_one_thing(there, new)
    layers = there.layers or tuple(output.layer for output in there.outputs)
    options = dataclasses.replace(there.options_like(extraction), layer=layers)
    found = extraction.network.find(layers)
    job = dataclasses.replace(extraction, options=options, layers=found).settle(source)
    plan = job.plan()
    _check_undivided(there, source)
    there.check_settings(plan.settings, but=DATA)
    with _opened(there, progress) as file:
        if not all(DIGEST in file.columns(split) for split in file.splits):
            there.check_settings(plan.settings, but=frozenset(), hint=_NO_DIGESTS)
        _check_layers(file, plan)
        check_sound(file, progress)
        stretches = compare(file, job, plan, should_stop=should_stop, progress=progress)
        growth = Growth.of(file, job, stretches)
        _log.info("%s: %s", there.path, growth)
        if isinstance(file, FeatureSet):
            n_shards = growth.to_set(should_stop=should_stop, progress=progress)
        else:
            growth.to_file(there.path, job, should_stop=should_stop, progress=progress)
    if there.path.is_dir():
        replace_shards(there.path, n_shards, progress=progress)
    return job.probe.outputs


def _check_one_thing(there: Existing, new: Sequence[LayerInfo]) -> None:
    """Refuse to add layers and pictures at once, and pictures to one of several shards."""
    if new:
        raise UsageError(
            f"{there.path} has no layer {new[0].name}, and was made of other images than the "
            "source has now",
            hint="add the images first, by --add without --layer; then the layer",
        )
    if there.said.shard is not None and not there.path.is_dir():
        raise UsageError(
            f"{there.path} is a shard, and was made of other images than the source has now",
            hint="name the folder of its set with -o: images are added to all shards together",
        )


def _check_undivided(there: Existing, source: Source) -> None:
    """Refuse to add to what says of each row whether the network has seen it."""
    if there.said.division is not None and source.division is None:
        raise UsageError(
            f"{there.path} is divided as its network's training was, and {source.name} has other "
            "images now: what the network has seen of these isn't known",
            hint=f"train the network anew, or {ANEW}",
        )


@contextlib.contextmanager
def _opened(there: Existing, progress: Progress) -> Iterator[PlannedFile | FeatureSet]:
    """Open what is there. A set is sealed before: then its manifest says which shards are its."""
    if there.path.is_dir():
        inventory = seal_set(there.path, progress=progress)
        with FeatureSet(there.path, inventory) as shards:
            yield shards
    else:
        with PlannedFile(there.path) as file:
            yield file


@dataclass(frozen=True, slots=True)
class Growth:
    """What is written: the rows that are there, and those of new pictures, in the source's order.

    A batch without a new picture is copied; of another only the new ones are computed, together. So
    a batch of new pictures alone has the bytes that a run over all would give it.
    """

    file: FeatureFile
    job: Job
    stretches: Mapping[str, Sequence[Stretch]]
    overflows: Mapping[tuple[str, str], int]  # values that are infinite in rows that are there

    @classmethod
    def of(cls, file: FeatureFile, job: Job, stretches: Mapping[str, Sequence[Stretch]]) -> Growth:
        """Prepare to write."""
        overflows = {
            (split, name): file.overflows(split, name)
            for split, name in itertools.product(file.splits, file.layers)
        }
        return cls(file, job, stretches, overflows)

    def __str__(self) -> str:
        new = {split: sum(len(one.added) for one in all_) for split, all_ in self.stretches.items()}
        return ", ".join(f"{n:,} new images in {split}" for split, n in new.items())

    def to_set(self, *, should_stop: Callable[[], bool], progress: Progress) -> int:
        """Write new shards of all rows where they wait until all are there; return how many."""
        plan, staging = self.job.plan(), self.file.path / STAGING
        n_shards = _renumbered(self.file, plan, batch_size=self.job.batch_size)
        foresee_shards(staging, plan, n_shards=n_shards)
        for number in range(1, n_shards + 1):
            shard = ShardNumber(number, n_shards)
            job = dataclasses.replace(self.job, shard=shard)
            out = staging / shard.file_name
            self.to_file(out, job, should_stop=should_stop, progress=progress)
        return n_shards

    def to_file(
        self, out: Path, job: Job, *, should_stop: Callable[[], bool], progress: Progress
    ) -> None:
        """Write one file; what an interrupted run has left is gone on with."""
        plan = job.plan()
        if out != self.file.path and FeatureWriter.finished_before(out, plan):
            return
        resume = check_begun(out, plan.settings)
        with FeatureWriter(out, plan, overwrite=True, resume=resume, progress=progress) as writer:
            check_in_place(self.file)
            compute_into(
                writer,
                job,
                pieces=self._pieces(writer),
                append=self._append(writer),
                should_stop=should_stop,
                progress=progress,
            )
            warn_of_rows(writer, writer.finish())

    def _pieces(self, writer: FeatureWriter) -> Iterator[Piece]:
        """Yield what isn't written yet; images are read of batches alone that have new ones."""
        left = {split.name: writer.position(split.name) for split in writer.plan.splits}
        for split in writer.plan.splits:
            stretches = (
                one
                for one in self.stretches[split.name]
                if left[split.name] <= one.start < split.stop
            )
            for some_added, run in itertools.groupby(stretches, lambda one: len(one.added) > 0):
                read = self._read if some_added else self._kept
                yield from read(split.name, list(run))

    def _read(self, split: str, run: Sequence[Stretch]) -> Iterator[Piece]:
        batches = self.job.batches(split, start=run[0].start, stop=run[-1].stop)
        for one, batch in itertools.zip_longest(run, batches):
            same = one is not None and batch is not None
            if not same or (one.start, one.stop, one.skipped) != (
                batch.start,
                batch.stop,
                batch.skipped,
            ):
                raise self._changed(split)
            yield Piece(split, batch, one.added)

    def _kept(self, split: str, run: Sequence[Stretch]) -> Iterator[Piece]:
        labels = self.job.source.labels(split)
        for one in run:
            start, stop = one.rows.start, one.rows.stop
            batch = Batch(
                images=np.empty(0),
                labels=None if labels is None else labels[one.places],
                ids=tuple(self.file.ids(split, start=start, stop=stop)),
                start=one.start,
                stop=one.stop,
                skipped=one.skipped,
                digests=self.file.read(split, DIGEST, start=start, stop=stop).astype(np.uint64),
            )
            yield Piece(split, batch, one.added)

    def _changed(self, split: str) -> DataError:
        return DataError(
            f"{self.job.source.name}: pictures of split {split!r} change while they are read",
            hint="the same command compares all of them again",
        )

    def _append(self, writer: FeatureWriter) -> Write:
        """Put the rows that are there between those that were computed."""
        columns = {
            split.name: [column for column in split.columns if column.output is not None]
            for split in writer.plan.splits
        }
        at = {
            split.name: {one.start: one for one in self.stretches[split.name]}
            for split in writer.plan.splits
        }

        def append(split: str, batch: Batch, arrays: tuple[Array, ...]) -> None:
            one = at[split][batch.start]
            if one.n_kept and not self._is_as_it_was(split, batch, one):
                raise self._changed(split)
            rows, over = [], []
            for column, computed in zip(columns[split], arrays, strict=True):
                fitted, n = fit_rows(computed, column)
                whole = np.empty((len(batch), *column.row_shape), column.dtype)
                is_kept = np.ones(len(batch), bool)
                is_kept[one.added[: len(fitted)]] = False
                whole[~is_kept] = fitted
                whole[is_kept] = self.file.read(
                    split, column.name, start=one.rows.start, stop=one.rows.stop
                )
                rows.append(whole)
                # Of the rows that are there it is known of all of them together: told at the start.
                before = 0 if batch.start else self.overflows.get((split, column.name), 0)
                over.append(n + before)
            writer.append(split, batch, rows, overflowed=over)

        return append

    def _is_as_it_was(self, split: str, batch: Batch, one: Stretch) -> bool:
        """Whether a batch that was read once more has the rows that are there; in every bit."""
        if len(batch) != one.n_kept + len(one.added) or batch.digests is None:
            return False
        digests = self.file.read(split, DIGEST, start=one.rows.start, stop=one.rows.stop)
        return np.array_equal(np.delete(batch.digests, one.added), digests)


def _check_layers(file: PlannedFile | FeatureSet, plan: FilePlan) -> None:
    """Refuse to add rows of other shapes or types."""
    for split in plan.splits:
        there, now = (
            [(c.name, c.row_shape, c.dtype) for c in columns if c.output is not None]
            for columns in (file.planned_columns(split.name), split.columns)
        )
        if there != now:
            pairs = itertools.zip_longest(there, now)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise UsageError(
                f"{file.path} holds {_words(one)} in split {split.name!r}, and of the source as it "
                f"is now that would be {_words(other)}",
                hint=ANEW,
            )


def _words(column: tuple[str, tuple[int, ...], str] | None) -> str:
    if column is None:
        return "nothing"
    name, shape, dtype = column
    return f"{name} {shape} {np.dtype(dtype).name}"


def _renumbered(file: FeatureFile, plan: FilePlan, *, batch_size: int) -> int:
    """How many shards a grown set gets, about as long as those that it has.

    It is another number than before: then no new shard has the name of one that is there, and the
    set that is there is whole until the manifest lists the new ones.

    Raises
    ------
    UsageError
        If all fits into one batch.
    """
    before, rows = file.n_pieces, sum(file.n_rows(split) for split in file.splits)
    most = max(-(-split.n_rows // batch_size) for split in plan.splits)
    wanted = min(most, max(before + 1, -(-before * plan.n_rows // rows)))
    if wanted == before == 1:
        raise UsageError(
            f"{file.path} is one shard, and with all images it would still be: they fit one batch",
            hint="cnnfeat merge FOLDER -o FILE makes a file of it, which images are added to",
        )
    return wanted if wanted != before else before - 1
