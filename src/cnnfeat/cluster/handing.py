"""Hands numbered tasks to workers, few at a time, and takes back what comes of each."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cnnfeat.cluster.connection import Worker, forget_tasks, workers_of
from cnnfeat.errors import StorageError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")

_AHEAD = 2  # tasks for each worker: the one that it computes, and the next
_MOST_AHEAD = 64  # as many as it does in a second: else the shortest would wait for messages
_MOST_TASKS = 10_000
_POLL_S = 0.2
_LOOK_S = 2.0  # how often workers are counted
_log = logging.getLogger("cnnfeat")


class Submit(Protocol):
    """Makes a future of a task by its number; `workers` are those there are."""

    def __call__(self, number: int, workers: tuple[Worker, ...], /) -> Future: ...


class Handing(Generic[T]):
    """Tasks under way. Neither this process nor the scheduler knows of more than a few of them.

    Parameters
    ----------
    client : Client
        Of the scheduler.
    submit : callable
        Makes a future of a task by its number.
    noun : callable
        What a task is called in messages, by its number.
    """

    def __init__(self, client: Client, submit: Submit, *, noun: Callable[[int], str]) -> None:
        self._client, self._submit, self._noun = client, submit, noun
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._under_way: dict[str, tuple[int, Future]] = {}
        self._workers: tuple[Worker, ...] = ()
        self._ahead = _AHEAD
        self._n_done = 0  # since workers were counted
        self._n_known = 0  # tasks that the scheduler has heard of since it forgot them
        self._looked = -_LOOK_S
        self._waits = False  # for a worker

    def results(
        self, numbers: Iterable[int], *, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, T]]:
        """Yield what comes of each task, in the order in which they are done.

        Once `should_stop` says so, what no worker has begun is taken back, and the rest waited for.

        Raises
        ------
        StorageError
            If a task cost too many workers, or one that can't compute anything took it.
        """
        left, stopping = iter(numbers), False
        try:
            while True:
                if not stopping and should_stop():
                    left, stopping = iter(()), True
                    self._take_back()
                self._look()
                for number in itertools.islice(left, self._room()):
                    self._hand_out(number)
                if not self._under_way:
                    return
                with contextlib.suppress(queue.Empty):
                    yield from self._next()
        finally:
            self._client.cancel([future for _, future in self._under_way.values()])
            self._under_way.clear()

    def _room(self) -> int:
        return max(0, self._ahead * max(1, len(self._workers)) - len(self._under_way))

    def _hand_out(self, number: int) -> None:
        future = self._submit(number, self._workers)
        self._under_way[future.key] = number, future
        future.add_done_callback(self._done.put)

    def _next(self) -> Iterator[tuple[int, T]]:
        """Wait a moment for a task to be done; it is forgotten everywhere then."""
        future = self._done.get(timeout=_POLL_S)
        number, _ = self._under_way.pop(future.key, (None, None))
        if number is not None:
            self._n_done += 1
            self._n_known += 1
            if self._n_known == _MOST_TASKS:
                self._n_known = 0
                self._client.run_on_scheduler(forget_tasks())
            yield number, self._result(number, future)

    def _result(self, number: int, future: Future) -> T:
        from distributed import KilledWorker

        try:
            result: T = future.result()
        except KilledWorker as error:
            raise StorageError(
                f"{self._noun(number)}: {error.allowed_failures + 1} workers were lost while they "
                f"computed it, the last {error.last_worker.address}",
                hint="their logs may say why; out of memory, a smaller --batch-size helps",
            ) from error
        except (ImportError, MemoryError) as error:
            raise StorageError(f"{self._noun(number)}: a worker can't compute: {error}") from error
        return result

    def _take_back(self) -> None:
        """Let go of what no worker has begun."""
        begun = set(itertools.chain(*self._client.call_stack().values()))
        idle = [key for key in self._under_way if key not in begun]
        self._client.cancel([self._under_way.pop(key)[1] for key in idle])

    def _look(self) -> None:
        """Count the workers and what they do, and say who is lost, or that there is none."""
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return
        each = self._n_done / max(1, len(self._workers)) / (now - self._looked)
        self._ahead = int(min(_MOST_AHEAD, max(_AHEAD, each)))
        self._looked, self._n_done = now, 0
        before, self._workers = self._workers, workers_of(self._client)
        there = {worker.address for worker in self._workers}
        for worker in before:
            if worker.address not in there:
                _log.warning("worker %s is lost; another does its work", worker.address)
        if not self._workers and not self._waits:
            _log.warning("the scheduler has no worker; waiting for one: dask worker starts it")
        self._waits = not self._workers
