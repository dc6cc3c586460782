"""A source with augmented copies of what a machine trains on, behind the pictures themselves.

All rows of the training split come first, as they are; then the first copy of each, the second, and
so on. A copy has its row's label and part, and is of its group: so it is never on another side of a
division than the picture that it was made of. It is varied by its picture's id and its number: so
it is the same wherever the picture stands, as when others have come before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnfeat.divided import training_split
from cnnfeat.records import (
    Array,
    Batch,
    Fingerprint,
    Groups,
    ImageTarget,
    Json,
    Labels,
    OnError,
    Parts,
    RowNumbers,
    Source,
    SplitInfo,
    shown_source,
)

T = TypeVar("T", bound=np.generic)


class Vary(Protocol):
    """Varies images, each by its number and the turn: `network.augmentation.Augmentation`."""

    def __call__(self, images: Array, *, turn: int, rows: RowNumbers) -> Array: ...


class CopiedSource:
    """Another source, whose training split has copies of each row.

    Parameters
    ----------
    source : Source
        Stays open as long as this one; leaving this one's context closes it.
    n_copies : int
        Of each row, besides itself.
    vary : Vary
        Makes copy number k of a row as turn k; rows are numbered by their ids.
    limit : int, optional
        Only the first so many rows of each split, with their copies.
    """

    def __init__(
        self, source: Source, n_copies: int, vary: Vary, *, limit: int | None = None
    ) -> None:
        self.name, self.kind, self.labels_from = source.name, source.kind, source.labels_from
        self.options: Mapping[str, Json] = source.options
        self.classes, self.division = source.classes, source.division
        self._source, self._vary = source, vary
        self._copied = training_split(source)
        self._n_own = {
            name: info.n_samples if limit is None else min(limit, info.n_samples)
            for name, info in source.splits.items()
        }
        self._times = {name: 1 + n_copies * (name == self._copied) for name in source.splits}
        self.splits: Mapping[str, SplitInfo] = {
            name: replace(info, n_samples=self._n_own[name] * self._times[name])
            for name, info in source.splits.items()
        }

    def fingerprint(self) -> Fingerprint:
        """See `records.Source`: that of the other source; how it is copied is an option."""
        return self._source.fingerprint()

    def state(self) -> bytes:
        """See `records.Source`."""
        return self._source.state()

    def changed_since(self, state: bytes) -> str | None:
        """See `records.Source`."""
        return self._source.changed_since(state)

    def channels(self, split: str) -> int:
        """See `records.Source`."""
        return self._source.channels(split)

    def labels(self, split: str) -> Labels | None:
        """See `records.Source`."""
        found = self._source.labels(split)
        return None if found is None else self._repeated(split, found)

    def parts(self, split: str) -> Parts | None:
        """See `records.Source`."""
        found = self._source.parts(split)
        return None if found is None else self._repeated(split, found)

    def groups(self, split: str) -> Groups | None:
        """See `records.Source`: a row and its copies are of one group, the source's own if any."""
        known = {name: self._source.groups(name) for name in self.splits}
        highest = [int(own.max(initial=-1)) for own in known.values() if own is not None]
        free, groups = 1 + max(highest, default=-1), dict[str, Groups]()
        for name, own in known.items():
            n_rows = self._source.splits[name].n_samples
            groups[name] = free + np.arange(n_rows) if own is None else own
            free += n_rows if own is None else 0
        return self._repeated(split, groups[split])

    def _repeated(self, split: str, values: NDArray[T]) -> NDArray[T]:
        return np.tile(values[: self._n_own[split]], self._times[split])

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        rows: RowNumbers | None = None,
        target: ImageTarget | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Batch]:
        """See `records.Source`. A batch ends where a copy does, too."""
        n_rows = self.splits[split].n_samples if rows is None else len(rows)
        stop = n_rows if stop is None else min(stop, n_rows)
        for copy in range(self._times[split]):
            ends = np.array([copy, copy + 1]) * self._n_own[split]
            begin, end = (ends if rows is None else np.searchsorted(rows, ends)).tolist()
            own = None if rows is None else rows[begin:end] - ends[0]
            first, last = max(start, begin), min(stop, end)
            for low, high in _cut(first, last, batch_size, before=begin):
                for batch in self._source.batches(
                    split,
                    batch_size=batch_size,
                    start=low - begin,
                    stop=high - begin,
                    rows=own,
                    target=target,
                    on_error=on_error,
                ):
                    yield self._as_copy(batch, copy, before=begin)

    def _as_copy(self, batch: Batch, copy: int, *, before: int) -> Batch:
        """Vary the images of a batch, unless they are the rows themselves; count it among all."""
        images, mark = batch.images, f"~{copy}" if copy else ""
        if copy and len(batch):
            images = self._vary(images, turn=copy, rows=_numbers(batch.ids))
        return replace(
            batch,
            images=images,
            ids=tuple(f"{name}{mark}" for name in batch.ids),
            start=batch.start + before,
            stop=batch.stop + before,
            skipped=tuple(
                replace(one, row=one.row + before, id=f"{one.id}{mark}") for one in batch.skipped
            ),
        )

    def __repr__(self) -> str:
        return shown_source(self)

    def __enter__(self) -> CopiedSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._source.__exit__(*exc_info)


def _numbers(ids: Sequence[str]) -> RowNumbers:
    """Number images by their ids, (n_samples,)."""
    return np.array(
        [zlib.crc32(name.encode("utf-8", "backslashreplace")) for name in ids], np.int64
    )


def _cut(start: int, stop: int, batch_size: int, *, before: int) -> Iterator[tuple[int, int]]:
    """Cut rows so that batches end at all multiples of their size.

    Another source does that by itself from one of them on, as it counts: so where as many rows as
    make whole batches stand `before` its own, all of these are one piece.
    """
    while start < stop:
        end = min(stop, (start // batch_size + 1) * batch_size)
        if start % batch_size == 0 and before % batch_size == 0:
            end = stop
        yield start, end
        start = end
