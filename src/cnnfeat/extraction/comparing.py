"""Tells the pictures of a source that have a row already from those that it has got since.

That a picture is as it was is proved by a digest of it as the network was given it, which every
extraction keeps beside its row: XXH3-64 of the pixels, as of the file's other checksums. It is of
pixels, not of files: so it serves folders, tars, tables and arrays alike, and also sees a picture
of which the source makes other pixels now, as of one of 16 bits among such of 8. Sizes and times of
files would cost nothing and prove nothing. The price is that pictures that have a row are read
again; they aren't computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, Interrupted
from cnnfeat.extraction.plan import Job
from cnnfeat.features import DIGEST, FeatureFile, FilePlan, stored_text
from cnnfeat.progress import Progress
from cnnfeat.records import Batch, SkippedSample

ANEW = "extract all anew, with --overwrite or into another file with -o"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A batch of the source as it is now, and which of its pictures have a row already."""

    start: int
    stop: int
    skipped: tuple[SkippedSample, ...]
    first: int  # the row of the first picture that has one
    n_kept: int  # pictures that have
    added: NDArray[np.intp]  # places in the batch of those that haven't

    @property
    def rows(self) -> slice:
        """The rows that are there."""
        return slice(self.first, self.first + self.n_kept)

    @property
    def places(self) -> NDArray[np.intp]:
        """Where its pictures stand in the source's split: those that aren't left out."""
        return np.setdiff1d(np.arange(self.start, self.stop), [one.row for one in self.skipped])


def compare(
    file: FeatureFile,
    job: Job,
    plan: FilePlan,
    *,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> dict[str, list[Stretch]]:
    """Read all pictures, and find those that have a row; by split, in the source's order.

    Raises
    ------
    DataError
        If one that has a row has changed, can't be read, is gone, or stands elsewhere; with its id.
    Interrupted
        If `should_stop` said so.
    """
    found: dict[str, list[Stretch]] = {}
    with progress.task("comparing pictures", total=plan.n_rows, unit="images") as task:
        for split in plan.splits:
            rows = _Rows(file, split.name, n_samples=split.n_rows, limit=job.options.limit)
            found[split.name] = []
            for batch in job.batches(split.name, start=0, stop=split.n_rows):
                if should_stop():
                    raise Interrupted("stopped before anything was written")
                found[split.name].append(rows.match(batch))
                task.advance(batch.stop - batch.start)
            rows.check_found()
    return found


class _Rows:
    """The rows of a split, found one after the other in the source."""

    def __init__(self, file: FeatureFile, split: str, *, n_samples: int, limit: int | None) -> None:
        self._file, self._split, self._limit = file, split, limit
        self._next = 0  # the row that is looked for
        self._left = n_samples - file.n_rows(split)  # so many pictures can have no row

    def match(self, batch: Batch) -> Stretch:
        """Tell a batch's new pictures from those that have the next rows."""
        first, stop = self._next, self._next + len(batch)
        names = self._file.ids(self._split, start=first, stop=stop)
        digests = self._file.read(self._split, DIGEST, start=first, stop=stop)
        added = []
        for place, (name, digest) in enumerate(zip(batch.ids, _digests(batch), strict=True)):
            row = self._next - first
            if row == len(names) or names[row] != stored_text(name):
                added.append(place)
            elif digests[row] != digest:
                raise self._error(f"{names[row]} has other pixels than it had")
            else:
                self._next += 1
        self._count(len(added), batch.skipped)
        kept = self._next - first
        places = np.array(added, np.intp)
        return Stretch(batch.start, batch.stop, batch.skipped, first, kept, places)

    def _count(self, n_added: int, skipped: Sequence[SkippedSample]) -> None:
        if not n_added and not skipped:
            return
        self._left -= n_added + len(skipped)
        reasons = {stored_text(one.id): one.reason for one in skipped}
        wanted = self._file.ids(self._split, start=self._next, stop=self._next + 1)
        for name in wanted:
            if name in reasons:
                raise self._error(f"{name} can't be read any more: {reasons[name]}")
        if self._left < 0:
            self.check_found(so_far=True)

    def check_found(self, *, so_far: bool = False) -> None:
        """Refuse a source that lacks a row's picture; `so_far` it may be that of a later row."""
        for name in self._file.ids(self._split, start=self._next, stop=self._next + 1):
            which = f"{name}, or one after it," if so_far else name
            gone = "isn't there any more, or not where it was in the order"
            if self._limit is not None:
                gone = (
                    f"isn't among the first {self._limit:,} any more, which are all that --limit "
                    f"takes: it is gone, or others stand before it now"
                )
            raise self._error(f"{which} {gone}")

    def _error(self, what: str) -> DataError:
        return DataError(
            f"{self._file.path} can't be added to: of the source's split {self._split!r}, {what}",
            hint=ANEW,
        )


def _digests(batch: Batch) -> list[int]:
    return [] if batch.digests is None else batch.digests.tolist()
