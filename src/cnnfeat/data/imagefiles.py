"""Pictures that are encoded, as a source: a single file, those of a folder, or out of other files.

Several threads decode them at once.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.decode import decode_stream, has_colour, is_deep, prepare_pillow
from cnnfeat.data.fetching import EncodedImage, fetched
from cnnfeat.data.fitting import fit_depth, fit_to_target, scale_to_target
from cnnfeat.data.source import FileStates, ImageFile, OpenedSource, RowRequest, file_states
from cnnfeat.documents import printable
from cnnfeat.errors import DataError, ImageError
from cnnfeat.processor import n_cores
from cnnfeat.records import Batch, ImageTarget, SkippedSample, SplitInfo

if TYPE_CHECKING:
    from PIL import Image

    from cnnfeat.data.remote import AnyPath
    from cnnfeat.records import Array, Groups, Labels, RowNumbers

_MAX_WORKERS = 16
_READ_AHEAD_BYTES = 128 * 2**20  # of decoded images, if all are like the first
_SMALL_PIXELS = 4096  # below, decoding is mostly Python, and threads get in each other's way
_MAX_CHUNK = 16  # images a thread decodes before it is asked again
_CHUNK_BYTES = 8 * 2**20  # of pictures that were fetched
_LARGE_BATCH_BYTES = 16 * 2**20  # a batch may have in any case
_log = logging.getLogger("cnnfeat")


def open_image(path: AnyPath, *, max_pixels: int) -> ImageFileSource:
    """Open a single picture as a source of one."""
    return ImageFileSource(
        printable(str(path)),
        "image",
        images={"all": (ImageFile(path.name, path, None),)},
        classes=(),
        states=lambda: file_states({path.name: path}),
        max_pixels=max_pixels,
    )


class ImageFileSource(OpenedSource):
    """A source made of encoded pictures.

    Pixels have 16 bits where all pictures of all splits have, else 8.

    Parameters
    ----------
    name, kind : str
        As in `records.Source`.
    images : mapping of str to sequence of EncodedImage
        The pictures of each split.
    classes, states, close
        As in `OpenedSource`.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    labels_from : str
        As in `records.Source`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        images: Mapping[str, Sequence[EncodedImage]],
        classes: Sequence[str],
        states: Callable[[], FileStates],
        max_pixels: int,
        close: Sequence[Callable[[], None]] = (),
        labels_from: str = "",
    ) -> None:
        self._files = images
        self._max_pixels = max_pixels
        splits = self._of_one_depth(
            {split: self._describe(split, name=name) for split in self._files}
        )
        super().__init__(
            name,
            kind,
            splits=splits,
            classes=classes,
            states=states,
            labels_from=labels_from,
            close=close,
        )

    def _labels(self, split: str) -> Labels | None:
        return _labels(self._files[split])

    def _groups(self, split: str) -> Groups | None:
        if _group_of(self._files[split][0]) is None:
            return None
        return np.array([self._group_numbers[_group_of(one)] for one in self._files[split]])

    @functools.cached_property
    def _group_numbers(self) -> dict[str | None, int]:
        """Number the groups of all splits."""
        groups = {_group_of(one) or "" for files in self._files.values() for one in files}
        return {group: number for number, group in enumerate(sorted(groups))}

    def _channels(self, info: SplitInfo) -> int:
        prepare_pillow(self._max_pixels)
        return 3 if any(map(self._has_colour, fetched(self._files[info.name]))) else 1

    def _has_colour(self, file: EncodedImage) -> bool:
        try:
            with file.open() as stream:
                return has_colour(stream, name=file.name, max_pixels=self._max_pixels)
        except ImageError:  # reading it says so
            return False

    def _of_one_depth(self, splits: Mapping[str, SplitInfo]) -> dict[str, SplitInfo]:
        """Bring whole numbers to 8 bits, unless all pictures have 16."""
        found = {info.dtype for info in splits.values()}
        if "uint16" not in found:
            return dict(splits)
        files = [one for files in self._files.values() for one in files]
        if "uint8" not in found and all(map(self._is_deep, fetched(files))):
            return dict(splits)
        _log.info("pictures of 16 bits are brought to 8, as others have them")
        return {
            split: replace(info, dtype="uint8") if info.dtype == "uint16" else info
            for split, info in splits.items()
        }

    def _is_deep(self, file: EncodedImage) -> bool:
        try:
            with file.open() as stream:
                return is_deep(stream, name=file.name, max_pixels=self._max_pixels)
        except ImageError:  # reading it says so
            return True

    def _read(self, asked: RowRequest) -> Iterator[Batch]:
        files = self._files[asked.split.name]
        return self._read_files(asked, files[asked.rows.start : asked.rows.stop])

    def _read_some(self, asked: RowRequest, rows: RowNumbers) -> Iterator[Batch]:
        files = self._files[asked.split.name]
        chosen = rows[asked.rows.start : asked.rows.stop].tolist()
        return self._read_files(asked, [files[row] for row in chosen])

    def _read_files(self, asked: RowRequest, files: Sequence[EncodedImage]) -> Iterator[Batch]:
        info, target = asked.split, asked.target
        prepare_pillow(self._max_pixels)
        read = functools.partial(self._read_file, dtype=np.dtype(info.dtype), target=target)
        pending = _Pending(position=asked.rows.start)
        image_bytes = max(_n_bytes(info, None), _n_bytes(info, target))
        # Where later pictures are far larger than the first, by which batches are sized.
        most_bytes = max(asked.batch_size * image_bytes, _LARGE_BATCH_BYTES)
        small = info.image_shape[0] * info.image_shape[1] < _SMALL_PIXELS
        for file, image in _decoded(
            files,
            read,
            image_bytes=image_bytes,
            n_workers=1 if small else min(_MAX_WORKERS, n_cores()),
        ):
            if isinstance(image, ImageError):
                if asked.on_error == "raise":
                    raise image
                pending.skip(file, image)
            else:
                if not pending.takes(image, most_bytes=most_bytes):
                    yield pending.batch(info, target)
                    pending = _Pending(position=pending.stop)
                pending.add(file, image)
            if pending.stop % asked.batch_size == 0:  # whatever row is the first
                yield pending.batch(info, target)
                pending = _Pending(position=pending.stop)
        if pending.n_positions:
            yield pending.batch(info, target)

    def _read_file(
        self, file: EncodedImage, *, dtype: np.dtype[np.generic], target: ImageTarget | None
    ) -> Array:
        # Elsewhere the depth is brought to the others' before anything else.
        scale = functools.partial(scale_to_target, target=target) if dtype == np.uint8 else None
        image = self._decode(file, scale)
        try:
            fitted: Array = fit_to_target(fit_depth(image[np.newaxis], dtype), target)[0]
        except DataError as error:
            raise ImageError(f"{file.name}: {error.message}", hint=error.hint) from error
        return fitted

    def _decode(
        self, file: EncodedImage, scale: Callable[[Image.Image], Image.Image] | None = None
    ) -> Array:
        with file.open() as stream:
            return decode_stream(stream, name=file.name, max_pixels=self._max_pixels, scale=scale)

    def _describe(self, split: str, *, name: str) -> SplitInfo:
        """Describe a split by its first picture that can be read."""
        prepare_pillow(self._max_pixels)
        files = self._files[split]
        first_error: ImageError | None = None
        for file in files:
            try:
                image = self._decode(file)
            except ImageError as error:
                first_error = first_error or error
                continue
            height, width, channels = image.shape
            return SplitInfo(
                name=split,
                n_samples=len(files),
                image_shape=(height, width, channels),
                dtype=image.dtype.name,
                has_labels=file.label is not None,
                uniform=len(files) == 1,
            )
        if first_error is not None and len(files) == 1:
            raise first_error
        raise DataError(
            f"{name}: none of the {len(files):,} pictures can be read; the first: {first_error}",
            hint=first_error.hint if first_error else "",
        ) from first_error


@dataclass(slots=True)
class _Pending:
    """A batch that is being filled."""

    position: int
    files: list[EncodedImage] = field(default_factory=list)
    images: list[Array] = field(default_factory=list)
    skipped: list[SkippedSample] = field(default_factory=list)

    @property
    def n_positions(self) -> int:
        return len(self.files) + len(self.skipped)

    @property
    def stop(self) -> int:
        return self.position + self.n_positions

    def takes(self, image: Array, *, most_bytes: int) -> bool:
        if not self.images:
            return True
        n_bytes = (len(self.images) + 1) * image.nbytes
        return self.images[0].shape == image.shape and n_bytes <= most_bytes

    def add(self, file: EncodedImage, image: Array) -> None:
        self.files.append(file)
        self.images.append(image)

    def skip(self, file: EncodedImage, error: ImageError) -> None:
        reason = printable(error.message).removeprefix(f"{printable(file.name)}: ")
        self.skipped.append(SkippedSample(self.stop, printable(file.id), reason))
        _log.debug("left out %s: %s", printable(file.id), reason)

    def batch(self, info: SplitInfo, target: ImageTarget | None) -> Batch:
        shape = (target or ImageTarget()).shape_of(info.image_shape)
        return Batch(
            images=np.stack(self.images) if self.images else np.empty((0, *shape), info.dtype),
            labels=_labels(self.files) if info.has_labels else None,
            ids=tuple(file.id for file in self.files),
            start=self.position,
            stop=self.stop,
            skipped=tuple(self.skipped),
        )


def _labels(files: Sequence[EncodedImage]) -> Labels | None:
    labels = [file.label for file in files]
    if None in labels:
        return None
    return np.array(labels, np.int64)


def _n_bytes(info: SplitInfo, target: ImageTarget | None) -> int:
    return (
        math.prod((target or ImageTarget()).shape_of(info.image_shape))
        * np.dtype(info.dtype).itemsize
    )


def _decoded(
    files: Sequence[EncodedImage],
    read: Callable[[EncodedImage], Array],
    *,
    image_bytes: int,
    n_workers: int,
) -> Iterator[tuple[EncodedImage, Array | ImageError]]:
    """Decode pictures in several threads, in order, a bounded number of them ahead.

    `image_bytes` is what one takes; those that are found to take more wait for their turn.
    """

    def read_chunk(
        chunk: Sequence[EncodedImage],
    ) -> list[tuple[EncodedImage, Array | ImageError | None]]:
        found: list[tuple[EncodedImage, Array | ImageError | None]] = []
        room = _READ_AHEAD_BYTES // ahead
        for file in chunk:
            image = _read_or_error(file, read) if room > 0 else None
            room -= 0 if image is None or isinstance(image, ImageError) else image.nbytes
            found.append((file, image))
        return found

    def in_turn() -> Iterator[tuple[EncodedImage, Array | ImageError]]:
        for file, image in waiting.popleft().result():
            yield file, _read_or_error(file, read) if image is None else image

    ahead = 2 * n_workers
    chunk_size = max(1, min(_MAX_CHUNK, _READ_AHEAD_BYTES // (ahead * image_bytes)))
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="cnnfeat-decode")
    waiting: deque[Future[list[tuple[EncodedImage, Array | ImageError | None]]]] = deque()
    try:
        for chunk in _chunks(fetched(files), chunk_size):
            waiting.append(pool.submit(read_chunk, chunk))
            if len(waiting) > ahead:
                yield from in_turn()
        while waiting:
            yield from in_turn()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(files: Iterable[EncodedImage], most: int) -> Iterator[list[EncodedImage]]:
    """Divide pictures into runs of some, of fewer where what was fetched of them is large."""
    chunk: list[EncodedImage] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == most or sum(one.bytes_afar for one in chunk) > _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read_or_error(file: EncodedImage, read: Callable[[EncodedImage], Array]) -> Array | ImageError:
    try:
        return read(file)
    except ImageError as error:
        return error


def _group_of(image: EncodedImage) -> str | None:
    return image.group if isinstance(image, ImageFile) else None
