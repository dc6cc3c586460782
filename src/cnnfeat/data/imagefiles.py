"""Sources whose images are picture files, decoded by several threads at once."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.decode import decode_image, prepare_pillow
from cnnfeat.data.fingerprint import FileStates, Fingerprinted
from cnnfeat.data.fitting import fit_depth, fit_images
from cnnfeat.data.listing import ImageFile, Listing
from cnnfeat.data.regular import printable
from cnnfeat.data.splits import check_range, find_split
from cnnfeat.errors import DataError, ImageError
from cnnfeat.records import (
    Batch,
    ImageTarget,
    OnError,
    SkippedSample,
    SplitInfo,
)

if TYPE_CHECKING:
    from cnnfeat.records import Array, Labels

_MAX_WORKERS = 16
_READ_AHEAD_BYTES = 128 * 2**20  # of decoded images, if all are like the first
_SMALL_PIXELS = 4096  # below, decoding is mostly Python, and threads get in each other's way
_MAX_CHUNK = 16  # images a thread decodes before it is asked again
_log = logging.getLogger("cnnfeat")


class ImageFileSource(Fingerprinted):
    """A source made of picture files.

    Pixels of a split are brought to the depth of its first picture: 8-bit pictures among 16-bit
    ones become 16-bit, and the other way round.

    Parameters
    ----------
    name, kind : str
        As in `records.Source`.
    listing : Listing
        The files.
    states : callable
        Makes the states of the files; called when first needed.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        listing: Listing,
        states: Callable[[], FileStates],
        max_pixels: int,
    ) -> None:
        self.name = name
        self.labels_from = ""
        self.kind = kind
        self.classes = listing.classes
        self._files = listing.splits
        self._max_pixels = max_pixels
        super().__init__(states)
        self.splits: Mapping[str, SplitInfo] = {
            split: self._describe(split, files) for split, files in self._files.items()
        }

    def labels(self, split: str) -> Labels | None:
        """See `records.Source`."""
        return _labels(self._files[find_split(self.splits, split).name])

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        target: ImageTarget | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Batch]:
        """See `records.Source`."""
        info = find_split(self.splits, split)
        end = check_range(info, start=start, stop=stop, batch_size=batch_size)
        prepare_pillow(self._max_pixels)
        read = functools.partial(self._read, dtype=np.dtype(info.dtype), target=target)
        pending = _Pending(position=start)
        small = info.image_shape[0] * info.image_shape[1] < _SMALL_PIXELS
        for file, image in _decoded(
            self._files[split][start:end],
            read,
            image_bytes=max(_n_bytes(info, None), _n_bytes(info, target)),
            n_workers=1 if small else min(_MAX_WORKERS, _n_cpus()),
        ):
            if isinstance(image, ImageError):
                if on_error == "raise":
                    raise image
                pending.skip(file, image)
            else:
                if not pending.takes(image):
                    yield pending.batch(info, target)
                    pending = _Pending(position=pending.stop)
                pending.add(file, image)
            if pending.n_positions == batch_size:
                yield pending.batch(info, target)
                pending = _Pending(position=pending.stop)
        if pending.n_positions:
            yield pending.batch(info, target)

    def __enter__(self) -> ImageFileSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing stays open."""

    def _read(
        self, file: ImageFile, *, dtype: np.dtype[np.generic], target: ImageTarget | None
    ) -> Array:
        check_id(file)
        image = decode_image(file.path, max_pixels=self._max_pixels)
        try:
            fitted: Array = fit_images(fit_depth(image[np.newaxis], dtype), target)[0]
        except DataError as error:
            raise ImageError(f"{file.path}: {error.message}", hint=error.hint) from error
        return fitted

    def _describe(self, split: str, files: Sequence[ImageFile]) -> SplitInfo:
        """Describe a split by its first picture that can be read."""
        prepare_pillow(self._max_pixels)
        first_error: ImageError | None = None
        for file in files:
            try:
                check_id(file)
                image = decode_image(file.path, max_pixels=self._max_pixels)
            except ImageError as error:
                first_error = first_error or error
                continue
            height, width, channels = image.shape
            return SplitInfo(
                name=split,
                n_samples=len(files),
                image_shape=(height, width, channels),
                dtype=image.dtype.name,
                has_labels=files[0].label is not None,
            )
        raise DataError(
            f"{self.name}: none of the {len(files):,} pictures can be read; the first: "
            f"{first_error}"
        ) from first_error


@dataclass(slots=True)
class _Pending:
    """A batch that is being filled."""

    position: int
    files: list[ImageFile] = field(default_factory=list)
    images: list[Array] = field(default_factory=list)
    skipped: list[SkippedSample] = field(default_factory=list)

    @property
    def n_positions(self) -> int:
        return len(self.files) + len(self.skipped)

    @property
    def stop(self) -> int:
        return self.position + self.n_positions

    def takes(self, image: Array) -> bool:
        return not self.images or self.images[0].shape == image.shape

    def add(self, file: ImageFile, image: Array) -> None:
        self.files.append(file)
        self.images.append(image)

    def skip(self, file: ImageFile, error: ImageError) -> None:
        reason = printable(error.message).removeprefix(f"{printable(str(file.path))}: ")
        self.skipped.append(SkippedSample(self.stop, printable(file.id), reason))
        _log.debug("left out %s: %s", printable(file.id), reason)

    def batch(self, info: SplitInfo, target: ImageTarget | None) -> Batch:
        shape = _fitted_shape(info, target)
        return Batch(
            images=np.stack(self.images) if self.images else np.empty((0, *shape), info.dtype),
            labels=_labels(self.files) if info.has_labels else None,
            ids=tuple(file.id for file in self.files),
            start=self.position,
            stop=self.stop,
            skipped=tuple(self.skipped),
        )


def check_id(file: ImageFile) -> None:
    """Check that a picture's name is UTF-8, as its identifier must be.

    Raises
    ------
    ImageError
        With the name's bytes.
    """
    try:
        file.id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(str(file.path))}: the name is not UTF-8", hint="rename the file"
        ) from error


def _labels(files: Sequence[ImageFile]) -> Labels | None:
    labels = [file.label for file in files]
    if None in labels:
        return None
    return np.array(labels, np.int64)


def _fitted_shape(info: SplitInfo, target: ImageTarget | None) -> tuple[int, int, int]:
    height, width, channels = info.image_shape
    if target is None:
        return height, width, channels
    return *(target.size or (height, width)), target.channels or channels


def _n_bytes(info: SplitInfo, target: ImageTarget | None) -> int:
    return math.prod(_fitted_shape(info, target)) * np.dtype(info.dtype).itemsize


def _decoded(
    files: Sequence[ImageFile],
    read: Callable[[ImageFile], Array],
    *,
    image_bytes: int,
    n_workers: int,
) -> Iterator[tuple[ImageFile, Array | ImageError]]:
    """Read files in several threads, in order, a bounded number of them ahead."""

    def read_chunk(chunk: Sequence[ImageFile]) -> list[tuple[ImageFile, Array | ImageError]]:
        return [(file, _read_or_error(file, read)) for file in chunk]

    ahead = 2 * n_workers
    chunk_size = max(1, min(_MAX_CHUNK, _READ_AHEAD_BYTES // (ahead * image_bytes)))
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="cnnfeat-decode")
    waiting: deque[Future[list[tuple[ImageFile, Array | ImageError]]]] = deque()
    try:
        for begin in range(0, len(files), chunk_size):
            waiting.append(pool.submit(read_chunk, files[begin : begin + chunk_size]))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_or_error(file: ImageFile, read: Callable[[ImageFile], Array]) -> Array | ImageError:
    try:
        return read(file)
    except ImageError as error:
        return error


def _n_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
