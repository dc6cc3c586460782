"""Sources whose images are arrays, in memory or in their file."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cnnfeat.data.fitting import fit_to_target
from cnnfeat.data.labels import check_numbers, check_texts, one_hot
from cnnfeat.data.source import FileStates, OpenedSource, RowRequest, Rows, array_states
from cnnfeat.errors import DataError, ImageError
from cnnfeat.records import Batch, SplitInfo

if TYPE_CHECKING:
    from cnnfeat.records import Array, Labels

_log = logging.getLogger("cnnfeat")
_MAX_CHANNELS = 4  # a first axis of at most this many, and a longer last one: channels first
_COLOURS = (1, 3, 4)  # channels of a single picture
_NO_PICTURE = 8  # pixels a side: what is smaller is no single picture
_MAX_PLAIN_LABEL = 999  # where labels are larger, there need not be a class for every number


@dataclass(frozen=True, slots=True)
class ArraySplit:
    """One split: rows of images, and their labels."""

    images: Rows
    labels: Labels | None
    channels_first: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of each image."""
        shape = self.images.shape[1:]
        if len(shape) == 2:
            return (shape[0], shape[1], 1)
        if self.channels_first:
            return (shape[1], shape[2], shape[0])
        return (shape[0], shape[1], shape[2])

    def read(self, start: int, stop: int) -> tuple[Array, dict[int, str]]:
        """Images `start` to `stop` as (n_samples, height, width, channels); see `as_pixels`."""
        block = self.images[start:stop]
        if self.channels_first:
            block = block.transpose(0, 2, 3, 1)
        elif block.ndim == 3:
            block = block[..., np.newaxis]
        return as_pixels(block)


class ArraySource(OpenedSource):
    """A source made of arrays.

    Parameters
    ----------
    arrays : mapping of str to ArraySplit
    name, kind, classes, states, labels_from, close
        As in `OpenedSource`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        arrays: Mapping[str, ArraySplit],
        classes: Sequence[str],
        states: Callable[[], FileStates],
        close: Sequence[Callable[[], None]] = (),
        labels_from: str = "",
    ) -> None:
        splits = {
            split: SplitInfo(
                name=split,
                n_samples=array.images.shape[0],
                image_shape=array.image_shape,
                dtype=pixel_dtype(array.images.dtype),
                has_labels=array.labels is not None,
            )
            for split, array in arrays.items()
        }
        super().__init__(
            name,
            kind,
            splits=splits,
            classes=classes,
            states=states,
            labels_from=labels_from,
            close=close,
        )
        self._arrays = arrays

    def _labels(self, split: str) -> Labels | None:
        return self._arrays[split].labels

    def _read(self, asked: RowRequest) -> Iterator[Batch]:
        split = asked.split.name
        array = self._arrays[split]
        width = max(5, len(str(asked.split.n_samples - 1)))
        for begin in asked.rows[:: asked.batch_size]:
            after = min(begin + asked.batch_size, asked.rows.stop)
            images, bad = array.read(begin, after)
            if bad and asked.on_error == "raise":
                row, reason = next(iter(bad.items()))
                raise ImageError(
                    f"row {begin + row}: {reason}",
                    hint="store the images as uint8, uint16 or float32",
                )
            yield Batch(
                images=fit_to_target(images, asked.target),
                labels=None if array.labels is None else array.labels[begin:after],
                ids=tuple(f"{split}/{row:0{width}d}" for row in range(begin, after)),
                start=begin,
                stop=after,
            ).without(bad)


class StackedRows:
    """Several arrays as one: the rows of the first, then those of the second, and so on.

    Parameters
    ----------
    parts : mapping of str to Rows
        By the name that stands for each in messages; all of one shape and dtype but for their
        number of rows.

    Raises
    ------
    DataError
        If they aren't.
    """

    def __init__(self, parts: Mapping[str, Rows]) -> None:
        (first_name, first), *others = parts.items()
        for name, part in others:
            if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
                raise DataError(
                    f"{name} holds {part.dtype} of shape {part.shape}, and {first_name} "
                    f"{first.dtype} of shape {first.shape}; only the first number may differ"
                )
        self._parts = tuple(parts.values())
        self._starts = (0, *itertools.accumulate(part.shape[0] for part in self._parts))
        self.shape: tuple[int, ...] = (self._starts[-1], *first.shape[1:])
        self.dtype: np.dtype[np.generic] = first.dtype

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        pieces = [
            part[max(start - begin, 0) : stop - begin]
            for part, begin, end in zip(self._parts, self._starts, self._starts[1:], strict=False)
            if start < end and begin < stop
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.shape[1:]), self.dtype)


def open_arrays(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    classes: Sequence[str] = (),
    name: str = "arrays",
) -> ArraySource:
    """Make a source of arrays that a program has.

    Parameters
    ----------
    images : array-like of shape (n_samples, height, width[, channels])
        bool, integers from 0 to 255, uint16, or floats.
    labels : array-like of shape (n_samples,), optional
        Whole numbers or text.
    classes : sequence of str
        Names of the classes that whole numbers stand for.
    name : str
        What it goes by in what is made from it.

    Raises
    ------
    DataError
        If they can't be images or labels, or their numbers differ.
    """
    pixels = np.asarray(images)
    truth = {} if labels is None else {"all": np.asarray(labels)}
    indices, names = index_labels(truth, name=name, classes=classes)
    return ArraySource(
        name,
        "arrays",
        arrays={"all": make_split(pixels, indices.get("all"), name=name)},
        classes=names,
        states=lambda: array_states({"images": pixels, **truth}),
    )


class OneRow:
    """A single picture, (height, width, channels), as the only row there is."""

    def __init__(self, picture: Rows) -> None:
        self._picture = picture
        self.shape: tuple[int, ...] = (1, *picture.shape)
        self.dtype: np.dtype[np.generic] = picture.dtype

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(1)
        whole = self._picture[:] if start < stop else np.empty(self.shape[1:], self.dtype)
        return whole[np.newaxis][start:stop]


def is_one_picture(shape: Sequence[int]) -> bool:
    """Whether an array is rather a picture with channels than pictures three pixels wide."""
    return len(shape) == 3 and shape[2] in _COLOURS and min(shape[:2]) >= _NO_PICTURE


def make_split(images: Rows, labels: Labels | None, *, name: str) -> ArraySplit:
    """Check that an array can be images, and that labels go with it.

    An array (height, width, 1, 3 or 4) that has not a label for each row is one picture.

    Raises
    ------
    DataError
        With the shape or dtype found, or both counts.
    """
    if is_one_picture(images.shape) and (labels is None or len(labels) != images.shape[0]):
        images = OneRow(images)
        _log.info("%s: one picture, %s", name, "×".join(map(str, images.shape[1:])))
    shape = images.shape
    if labels is None and len(shape) == 3 and shape[0] in _COLOURS[1:]:
        _log.warning(
            "%s: shape %s is taken as %d grey pictures; one in colour is (height, width, %d)",
            *(name, shape, shape[0], shape[0]),
        )
    if len(shape) not in (3, 4):
        raise DataError(
            f"{name}: shape {shape} isn't images; (n, height, width) or "
            "(n, height, width, channels) is needed",
            hint="reshape the array, for example x.reshape(-1, 28, 28)" if len(shape) == 2 else "",
        )
    if 0 in shape:
        raise DataError(f"{name}: shape {shape} holds no images")
    pixel_dtype(images.dtype, name=name)
    if labels is not None and len(labels) != shape[0]:
        raise DataError(f"{name}: {shape[0]:,} images but {len(labels):,} labels")
    channels_first = len(shape) == 4 and shape[1] <= _MAX_CHANNELS < shape[3]
    return ArraySplit(images, labels, channels_first)


def pixel_dtype(dtype: np.dtype[np.generic], *, name: str = "images") -> str:
    """Say what pixels of `dtype` are handed out as.

    Raises
    ------
    DataError
        If they can't be pixels: objects, text, complex numbers.
    """
    if dtype.kind == "f":
        return "float32"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return "uint16"
    if dtype.kind in "biu":
        return "uint8"
    raise DataError(
        f"{name}: dtype {dtype} isn't pixels; bool, integer or float numbers are needed"
    )


def as_pixels(block: Array) -> tuple[Array, dict[int, str]]:
    """Bring pixels to uint8, uint16 or float32.

    Booleans become 0 and 255; integers other than uint8 and uint16 must lie within 0 to 255.

    Returns
    -------
    pixels : ndarray
    bad : dict of int to str
        What is wrong with images whose integers don't, by their rows.
    """
    if block.dtype == np.bool_:
        return block.astype(np.uint8) * np.uint8(255), {}
    wanted = np.dtype(pixel_dtype(block.dtype))
    bad = _no_bytes(block) if wanted == np.uint8 != block.dtype else {}
    with np.errstate(over="ignore", invalid="ignore"):  # infinite then, which is found later
        return np.ascontiguousarray(block, wanted), bad


def _no_bytes(block: Array) -> dict[int, str]:
    low, high = int(block.min()), int(block.max())
    if low >= 0 and high <= 255:
        return {}
    reason = f"{block.dtype} pixels outside 0 to 255 ({low} to {high} nearby)"
    return {row: reason for row, one in enumerate(block) if one.min() < 0 or one.max() > 255}


def index_labels(
    arrays: Mapping[str, Array], *, name: str, classes: Sequence[str] = ()
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Turn the labels of all splits into indices of one list of classes.

    Whole numbers from 0 to 999 stay what they are; where there are others (text, negative or larger
    numbers), each becomes its place among the sorted values. Where classes have names, whole
    numbers are places in their list.

    Raises
    ------
    DataError
        If they are not one value an image, or no classes, or there are fewer classes.
    """
    flat = {split: _flat_labels(array, name=f"{name}, {split}") for split, array in arrays.items()}
    if not flat:
        return {}, ()
    if all(labels.dtype.kind in "iub" for labels in flat.values()):
        low = min(int(labels.min()) for labels in flat.values())
        high = max(int(labels.max()) for labels in flat.values())
        if classes and not (low >= 0 and high < len(classes)):
            raise DataError(
                f"{name}: labels from {low} to {high}; the {len(classes)} classes that have names "
                f"are 0 to {len(classes) - 1}"
            )
        if not classes and low >= 0 and high <= _MAX_PLAIN_LABEL:
            classes = [str(label) for label in range(high + 1)]
        if classes:
            return {split: labels.astype(np.int64) for split, labels in flat.items()}, tuple(
                classes
            )
    values = np.unique(np.concatenate(list(flat.values())))
    indices = {
        split: np.searchsorted(values, labels).astype(np.int64) for split, labels in flat.items()
    }
    classes = tuple(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in values.tolist()
    )
    if values.dtype.kind in "SU":
        check_texts(classes, name=name)
    return indices, classes


def _flat_labels(array: Array, *, name: str) -> Array:
    if array.ndim > 1 and array.size == array.shape[0]:
        array = array.reshape(-1)  # (n, 1, 1) are n labels too
    if (
        array.ndim == 2
        and array.size
        and array.dtype.kind in "biuf"
        and np.isin(array, (0, 1)).all()
    ):
        array = one_hot(array, name=f"{name}, labels of shape {array.shape}")
    if array.ndim != 1 or array.size == 0:
        raise DataError(
            f"{name}: labels of shape {array.shape}; (n,) is needed, one for each image",
            hint="of scores, y.argmax(axis=1) is the class of the highest"
            if array.ndim == 2
            else "",
        )
    if array.dtype.kind == "f":
        check_numbers(array, name=name)
        return array.astype(np.int64)
    if array.dtype.kind not in "biuSU":
        raise DataError(f"{name}: labels of dtype {array.dtype}; whole numbers or text are needed")
    return array
