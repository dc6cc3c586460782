"""Which part of a feature file is meant: some layers, some splits, the first rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import UsageError, near_names
from cnnfeat.features import FeatureFile, UnusableRows
from cnnfeat.records import class_name

if TYPE_CHECKING:
    from cnnfeat.records import Array, Groups, Labels, Parts

logger = logging.getLogger("cnnfeat")

_DIGITS = {2: 5, 4: 9, 8: 17}  # that bring a float of so many bytes back exactly
_CHUNK_BYTES = 32 * 2**20  # of features held at a time


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one split, all chosen layers side by side."""

    split: str
    start: int
    ids: tuple[str, ...]
    labels: Labels | None  # (n_rows,)
    features: tuple[Array, ...]  # one array a layer, (n_rows, ...)
    parts: Parts | None = None  # (n_rows,)
    groups: Groups | None = None  # (n_rows,)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of an open feature file."""

    file: FeatureFile
    layers: tuple[str, ...]  # as the file spells them
    splits: tuple[str, ...]
    limit: int | None = None  # rows of each split

    @classmethod
    def of(
        cls,
        file: FeatureFile,
        *,
        layers: Sequence[str] = (),
        splits: Sequence[str] = (),
        limit: int | None = None,
    ) -> Excerpt:
        """Choose a part of a feature file; with nothing named, all of it.

        Raises
        ------
        FeatureFileError
            If the file has no such layer.
        UsageError
            If the file has no such split, or `limit` is less than 1.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"--limit must be at least 1, not {limit}")
        for split in splits:
            if split not in file.splits:
                raise UsageError(
                    f"{file.path} has no split {split!r}; it has: {', '.join(file.splits)}",
                    hint=near_names(split, file.splits),
                )
        found = [file.find_layer(layer) for layer in layers] or list(file.layers)
        return cls(file, tuple(dict.fromkeys(found)), tuple(splits) or tuple(file.splits), limit)

    def n_rows(self, split: str) -> int:
        """Count the rows chosen of a split."""
        stored = self.file.n_rows(split)
        return stored if self.limit is None else min(stored, self.limit)

    @property
    def total_rows(self) -> int:
        """Rows of all splits."""
        return sum(self.n_rows(split) for split in self.splits)

    def class_name(self, label: int) -> str:
        """Name a label; one without a name is its number."""
        return class_name(label, self.file.classes)

    @property
    def beside(self) -> tuple[str, ...]:
        """Those of "part" and "group" that a split has."""
        reads = {"part": self.file.parts, "group": self.file.groups}
        return tuple(
            name
            for name, read in reads.items()
            if any(read(split) is not None for split in self.splits)
        )

    def blocks(self, split: str, layer: str) -> Iterator[Array]:
        """Read one layer's chosen rows in order, a few MiB at a time, checksums verified.

        They are handed on as they are; that some hold NaN or infinite numbers is told at the end.
        """
        n_rows = self.n_rows(split)
        counted = UnusableRows(self.file, split, layer)
        for start, block in self.file.blocks(
            split, layer, rows=self._chunk_rows(split), any_numbers=True
        ):
            chosen = block[: max(0, n_rows - start)]
            counted.look_at(start, chosen)
            yield chosen
            if start + len(block) >= n_rows:
                break
        if counted.found is not None:
            logger.warning("%s: %s", self.file.path, counted.found)

    def chunks(self) -> Iterator[Chunk]:
        """Read all layers of all splits side by side, in order."""
        for split in self.splits:
            labels, parts = self.file.labels(split), self.file.parts(split)
            groups = self.file.groups(split)
            start = 0
            columns = (self.blocks(split, layer) for layer in self.layers)
            for features in zip(*columns, strict=True):
                stop = start + len(features[0])
                yield Chunk(
                    split,
                    start,
                    tuple(self.file.ids(split, start=start, stop=stop)),
                    None if labels is None else labels[start:stop],
                    features,
                    None if parts is None else parts[start:stop],
                    None if groups is None else groups[start:stop],
                )
                start = stop

    def _chunk_rows(self, split: str) -> int:
        row_bytes = 0
        for layer in self.layers:
            stored = self.file.layer(split, layer)
            row_bytes += stored.size_bytes // max(stored.shape[0], 1)
        return max(_CHUNK_BYTES // max(row_bytes, 1), 1)


def number_lines(array: Array, *, separator: str) -> Iterator[str]:
    """Write each row's numbers as one text, with digits that bring them back exactly."""
    rows = array.reshape(len(array), -1)
    digits = _DIGITS.get(rows.dtype.itemsize, 17)
    form = f"%.{digits}g" if rows.dtype.kind == "f" else "%d"
    line = separator.join([form] * rows.shape[1])
    for row in rows.tolist():
        yield line % tuple(row)


def array_bytes(excerpt: Excerpt) -> int:
    """Count the bytes of all arrays."""
    return sum(array.size_bytes for array in arrays_of(excerpt))


@dataclass(frozen=True, slots=True)
class StreamedArray:
    """An array of known shape whose rows come block by block."""

    name: str  # "train/conv2"
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]
    is_features: bool = False

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def arrays_of(excerpt: Excerpt) -> Iterator[StreamedArray]:
    """Name every array of the excerpt, as the feature file does."""
    for split in excerpt.splits:
        n_rows = excerpt.n_rows(split)
        for layer in excerpt.layers:
            stored = excerpt.file.layer(split, layer)
            yield StreamedArray(
                f"{split}/{layer}",
                np.dtype(stored.dtype),
                (n_rows, *stored.shape[1:]),
                lambda split=split, layer=layer: excerpt.blocks(split, layer),  # type: ignore[misc]
                is_features=True,
            )
        file = excerpt.file
        for name, read in (("label", file.labels), ("part", file.parts), ("group", file.groups)):
            numbers = read(split)
            if numbers is not None:
                yield _whole(f"{split}/{name}", numbers[:n_rows])
        yield _whole(f"{split}/id", np.array(file.ids(split, stop=n_rows), dtype=np.str_))
    if excerpt.file.classes:
        yield _whole("classes", np.array(excerpt.file.classes, dtype=np.str_))


def _whole(name: str, array: Array) -> StreamedArray:
    return StreamedArray(name, array.dtype, array.shape, lambda: [array])


def feature_names(layer: str, shape: Sequence[int]) -> Iterator[str]:
    """Name each feature of an image: `conv2_3_0_7` is at height 3, width 0, channel 7."""
    for index in np.ndindex(*shape):
        yield "_".join((layer, *map(str, index)))
