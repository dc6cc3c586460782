"""Runs an extraction: plan, pipeline, file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cnnfeat.errors import DataError, Interrupted
from cnnfeat.extraction.batch_size import pick_batch_size
from cnnfeat.extraction.pipeline import Job, Pipeline
from cnnfeat.extraction.planning import check_options, choose_splits, make_plan
from cnnfeat.features import (
    Disk,
    FeatureFile,
    FeatureWriter,
    FilePlan,
)
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import (
    Array,
    Batch,
    ExtractResult,
    OnError,
    Probe,
    Provenance,
    SkippedSample,
    Source,
)

_LISTED = 10  # skipped samples named in a warning

_log = logging.getLogger("cnnfeat")


def _never() -> bool:
    return False


def extract(
    source: Source,
    probe: Probe,
    *,
    out: Path,
    provenance: Provenance,
    splits: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int | Literal["auto"] = 512,
    dtype: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    should_stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
    disk: Disk | None = None,
) -> ExtractResult:
    """Write the activations of every image of a source into one feature file.

    Parameters
    ----------
    source : Source
        The images.
    probe : Probe
        What computes the activations.
    out : Path
        The feature file. Its name appears when it is complete.
    provenance : Provenance
        Stored in the file.
    splits : sequence of str
        Which of the source's; all if empty.
    limit : int, optional
        Only the first so many samples of each split.
    batch_size : int or "auto"
        Images at a time; "auto" tries a few sizes and takes the fastest.
    dtype : "float32" or "float16"
        How floating-point activations are stored.
    overwrite : bool
        Whether an existing file may be replaced; it stays until the new one is complete.
    resume : bool
        Whether to go on with an interrupted run. Its blocks are checked; with no such run, this
        one begins anew.
    on_error : "raise" or "skip"
        Whether one bad image ends the run, or is left out and listed in the file.
    should_stop : callable, optional
        Asked before each batch; if true, the run ends in order and can be resumed.
    progress : Progress
        Told of every batch.
    disk : Disk, optional
        What makes the system calls that write.

    Raises
    ------
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
    began = time.monotonic()
    check_options(limit=limit, batch_size=batch_size, dtype=dtype, on_error=on_error)
    chosen = choose_splits(source, splits)
    FeatureWriter.check(out, overwrite=overwrite, resume=resume)
    size = _batch_size(
        source, chosen[0], batch_size, probe=probe, on_error=on_error, out=out, resume=resume
    )
    plan = make_plan(
        source,
        probe,
        provenance=provenance,
        splits=chosen,
        limit=limit,
        batch_size=size,
        dtype=dtype,
        on_error=on_error,
    )
    _announce(plan, out)
    if resume:
        _check_source(source, out, plan)
        if FeatureWriter.finished_before(out, plan):
            _log.info("%s is complete already", out)
            return _result(out, probe, began)
    with FeatureWriter(
        out, plan, overwrite=overwrite, resume=resume, disk=disk, progress=progress
    ) as writer:
        _run(
            writer,
            source,
            probe,
            batch_size=size,
            on_error=on_error,
            should_stop=should_stop or _never,
            progress=progress,
        )
        skipped = writer.finish()
        _warn(writer, skipped)
    return _result(out, probe, began)


def _announce(plan: FilePlan, out: Path) -> None:
    for split in plan.splits:
        arrays = ", ".join(
            f"{column.name} {(split.n_rows, *column.row_shape)} {np.dtype(column.dtype).name}"
            for column in split.columns
        )
        _log.info("%s: %s", split.name, arrays)
    _log.info("%s will take about %s bytes", out, f"{plan.size_bytes:,}")


def _batch_size(
    source: Source,
    split: str,
    given: int | str,
    *,
    probe: Probe,
    on_error: OnError,
    out: Path,
    resume: bool,
) -> int:
    if isinstance(given, int):
        return given
    header = FeatureWriter.unfinished(out) if resume else None
    if header is not None:
        return int(header.settings["batch size"])
    return pick_batch_size(source, split, probe=probe, on_error=on_error)


def _check_source(source: Source, out: Path, plan: FilePlan) -> None:
    header = FeatureWriter.unfinished(out)
    if header is None or header.settings.get("data") != plan.settings["data"]:
        return
    change = source.changed_since(header.source_state)
    if change is not None:
        raise DataError(
            f"{source.name}: {change} since {out} was begun",
            hint="start over with --overwrite",
        )


def _run(
    writer: FeatureWriter,
    source: Source,
    probe: Probe,
    *,
    batch_size: int,
    on_error: OnError,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> None:
    plan = writer.plan
    row_bytes = max(split.size_bytes // split.n_rows for split in plan.splits)
    with (
        progress.task("extracting", total=plan.n_rows, unit="images") as task,
        Pipeline(probe, batch_bytes=batch_size * row_bytes) as pipeline,
    ):
        task.advance(writer.n_done)

        def write(split: str, batch: Batch, arrays: tuple[Array, ...]) -> None:
            writer.append(split, batch, arrays)
            task.advance(batch.stop - batch.start)

        jobs = _jobs(writer, source, probe, batch_size=batch_size, on_error=on_error)
        if not pipeline.run(jobs, write, should_stop=should_stop):
            raise _interrupted(writer)


def _jobs(
    writer: FeatureWriter, source: Source, probe: Probe, *, batch_size: int, on_error: OnError
) -> Iterator[Job]:
    """Yield what is not done yet, split by split."""
    left = {split.name: writer.position(split.name) for split in writer.plan.splits}
    for split in writer.plan.splits:
        if left[split.name] == split.n_rows:
            continue
        for batch in source.batches(
            split.name,
            batch_size=batch_size,
            start=left[split.name],
            stop=split.n_rows,
            target=probe.target,
            on_error=on_error,
        ):
            yield split.name, batch


def _interrupted(writer: FeatureWriter) -> Interrupted:
    if not writer.n_done:
        return Interrupted("stopped before the first block was written")
    writer.sync()
    return Interrupted(
        f"stopped after {writer.n_done:,} of {writer.plan.n_rows:,} samples, "
        f"which are kept in {writer.paths.partial}",
        hint="the same command with --resume goes on from there",
    )


def _warn(writer: FeatureWriter, skipped: Mapping[str, tuple[SkippedSample, ...]]) -> None:
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


def _result(out: Path, probe: Probe, began: float) -> ExtractResult:
    with FeatureFile(out) as file:
        return ExtractResult(
            path=str(out),
            rows={split: file.n_rows(split) for split in file.splits},
            layers=probe.outputs,
            size_bytes=out.stat().st_size,
            elapsed_s=time.monotonic() - began,
            skipped={split: file.skipped(split) for split in file.splits if file.skipped(split)},
        )
