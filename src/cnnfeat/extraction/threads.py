"""Reading, computing and writing side by side, in order, with few batches in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cnnfeat.errors import MisfitError, NetworkError
from cnnfeat.records import Array, Batch, OnError, Probe, RowNumbers

READ_AHEAD = 2  # batches read before they are needed
IN_FLIGHT = 2  # calls of the probe at one time
UNWRITTEN_BYTES = 64 << 20  # of batches computed, or being computed, and not yet written
FEWEST_UNWRITTEN, MOST_UNWRITTEN = IN_FLIGHT + 1, 8  # batches, whatever their size


@dataclass(frozen=True, slots=True)
class Piece:
    """Some samples of a split, and which of them are computed."""

    split: str
    batch: Batch
    rows: RowNumbers | None = None  # of the batch; None: all


_Computed = tuple[Batch, tuple[Array, ...]]
Write = Callable[[str, Batch, tuple[Array, ...]], None]


class Threads:
    """Three stages in their own threads; a context manager.

    Parameters
    ----------
    probe : Probe
        Called with two batches at a time.
    batch_bytes : int
        Of a batch's activations; the larger, the fewer batches wait to be written.
    on_error : {"raise", "skip"}
        What becomes of images whose shape doesn't go through the network.
    """

    def __init__(self, probe: Probe, *, batch_bytes: int, on_error: OnError = "raise") -> None:
        self._probe = probe
        self._on_error = on_error
        most = min(MOST_UNWRITTEN, UNWRITTEN_BYTES // max(1, batch_bytes))
        self._most_unwritten = max(FEWEST_UNWRITTEN, most)
        self._failed = False
        self._reader = ThreadPoolExecutor(1, "cnnfeat-read")
        self._prober = ThreadPoolExecutor(IN_FLIGHT, "cnnfeat-probe")
        self._writer = ThreadPoolExecutor(1, "cnnfeat-write")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for stage in (self._reader, self._prober, self._writer):
            stage.shutdown(wait=False, cancel_futures=True)
        for stage in (self._reader, self._prober, self._writer):
            stage.shutdown(wait=True)

    def run(self, jobs: Iterator[Piece], write: Write, *, should_stop: Callable[[], bool]) -> bool:
        """Compute and write all batches, in order.

        Parameters
        ----------
        jobs : iterator of tuple of str and Batch
            Advanced in a thread of its own.
        write : callable
            Called with each split's name, batch and its activations in another thread, one at a
            time. After an error it is not called again.
        should_stop : callable
            Asked before each batch.

        Returns
        -------
        bool
            Whether all were written; False if `should_stop` said so.

        Raises
        ------
        NetworkError
            If activations don't have the shape the probe stated.
        Exception
            The first one of any stage, in the batches' order. What came before it is written.
        """
        writes: deque[Future[None]] = deque()
        try:
            complete = self._feed(jobs, write, writes, should_stop=should_stop)
        finally:
            _settle(writes)
        return complete

    def _feed(
        self,
        jobs: Iterator[Piece],
        write: Write,
        writes: deque[Future[None]],
        *,
        should_stop: Callable[[], bool],
    ) -> bool:
        reads = deque(self._read(jobs) for _ in range(READ_AHEAD))
        while (job := reads.popleft().result()) is not None:
            if should_stop():
                _drop(writes)
                return False
            reads.append(self._read(jobs))
            if len(writes) >= self._most_unwritten:
                writes.popleft().result()
            computed = self._prober.submit(self._compute, job)
            writes.append(self._writer.submit(self._write, write, job, computed))
        return True

    def _read(self, jobs: Iterator[Piece]) -> Future[Piece | None]:
        return self._reader.submit(next, jobs, None)

    def _compute(self, piece: Piece) -> _Computed:
        batch = piece.batch
        images = batch.images if piece.rows is None else batch.images[piece.rows]
        if not len(images):
            nothing = (np.empty((0, *o.row_shape), o.dtype) for o in self._probe.outputs)
            return batch, tuple(nothing)
        try:
            return batch, self._checked(images)
        except MisfitError as error:  # all images of a batch have one shape
            if self._on_error == "raise":
                raise _named(batch, error) from error
            none = batch.without(dict.fromkeys(range(len(batch)), error.message))
            return self._compute(replace(piece, batch=none, rows=None))
        except NetworkError as error:
            raise _named(batch, error) from error

    def _checked(self, images: Array) -> tuple[Array, ...]:
        results = self._probe(images)
        for output, result in zip(self._probe.outputs, results, strict=True):
            if result.shape != (len(images), *output.row_shape):
                raise MisfitError(
                    f"layer {output.layer!r} gives rows of shape {result.shape[1:]} for "
                    f"images of shape {images.shape[1:]}, and {output.row_shape} was expected",
                    hint="--resize brings all images to one size; --pool gives rows of one length",
                )
        return results

    def _write(self, write: Write, job: Piece, computed: Future[_Computed]) -> None:
        if self._failed:
            return
        try:
            write(job.split, *computed.result())
        except BaseException:
            self._failed = True
            raise


def _named(batch: Batch, error: NetworkError) -> NetworkError:
    """Say which images an error is of."""
    ids = dict.fromkeys((batch.ids[0], batch.ids[-1]))
    names = " to ".join(map(repr, ids))
    return type(error)(f"{names}: {error.message}", hint=error.hint)


def _drop(writes: deque[Future[None]]) -> None:
    """Forget all but the batch that is being written."""
    while len(writes) > 1 and writes[-1].cancel():
        writes.pop()


def _settle(writes: deque[Future[None]]) -> None:
    """Wait until everything under way is written; raise the first error."""
    while writes:
        writes.popleft().result()
