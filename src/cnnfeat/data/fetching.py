"""Pictures out of an object store, asked for before they are needed, several at one time."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from cnnfeat.errors import ImageError
from cnnfeat.store import REQUESTS

_AHEAD = 4 * REQUESTS
_AHEAD_BYTES = 128 * 2**20  # or one picture, if that is larger


class EncodedImage(Protocol):
    """One picture of a source, not decoded yet."""

    @property
    def id(self) -> str: ...

    @property
    def label(self) -> int | None: ...

    @property
    def name(self) -> str: ...  # for messages

    @property
    def bytes_afar(self) -> int: ...  # what a request fetches; 0: it is on this machine

    def open(self) -> BinaryIO: ...


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A picture that is on its way."""

    id: str
    label: int | None
    name: str
    bytes_afar: int
    data: Future[bytes]

    def open(self) -> BinaryIO:
        try:
            return io.BytesIO(self.data.result())
        except ImageError as error:  # one object for all who ask: each would add to its traceback
            raise ImageError(error.message, hint=error.hint) from error


def fetched(images: Iterable[EncodedImage]) -> Iterator[EncodedImage]:
    """Yield pictures in order, whose bytes are on their way where they come from afar.

    So many are asked for before they are needed that a store's slow answers cost little, and so
    few that they fit in memory.
    """
    pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="cnnfeat-fetch")
    waiting: deque[EncodedImage] = deque()
    waiting_bytes = 0
    try:
        for image in images:
            waiting.append(_asked_for(image, pool) if image.bytes_afar else image)
            waiting_bytes += image.bytes_afar
            while (waiting and not 0 < waiting_bytes <= _AHEAD_BYTES) or len(waiting) > _AHEAD:
                waiting_bytes -= waiting[0].bytes_afar
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for image in waiting:  # those that were handed out may be read yet
            if isinstance(image, _Fetched):
                image.data.cancel()
        pool.shutdown(wait=False)


def _asked_for(image: EncodedImage, pool: ThreadPoolExecutor) -> EncodedImage:
    def read() -> bytes:
        with image.open() as file:
            return file.read()

    return _Fetched(image.id, image.label, image.name, image.bytes_afar, pool.submit(read))
