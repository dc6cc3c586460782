"""Pictures that lie in larger files, many in one, encoded: what parquet and TFRecord share.

Only those that are decoded next are in memory.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar, overload

import numpy as np

from cnnfeat.data.fetching import EncodedImage
from cnnfeat.data.imagefiles import ImageFileSource
from cnnfeat.data.source import RowRequest, file_states
from cnnfeat.errors import DataError, ImageError

if TYPE_CHECKING:
    from cnnfeat.records import Array, Batch, Labels, RowNumbers

_READ_AT_ONCE = 16  # encoded pictures
_log = logging.getLogger("cnnfeat")


class Shard(Protocol):
    """One file of pictures, in their order."""

    path: Path
    noun: str  # what one of them is called: "row", "record"

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Sequence[bytes | None]:
        """Read encoded pictures; None where there is none."""

    def close(self) -> None: ...


S = TypeVar("S", bound=Shard)


@contextlib.contextmanager
def opened_shards(
    files: Mapping[str, Sequence[Path]], open_one: Callable[[Path], S]
) -> Iterator[dict[str, list[S]]]:
    """Open the files of each split; they stay open unless what is done with them fails."""
    with contextlib.ExitStack() as stack:
        shards: dict[str, list[S]] = {}
        for split, paths in files.items():
            shards[split] = []
            for path in paths:
                shards[split].append(open_one(path))
                stack.callback(shards[split][-1].close)
        yield shards
        stack.pop_all()


@dataclass(frozen=True, slots=True)
class PackedImage:
    """A picture out of a larger file."""

    id: str
    label: int | None
    name: str  # for messages: "train.parquet, row 17"
    data: bytes | None
    bytes_afar: int = 0

    def open(self) -> BinaryIO:
        """Give its bytes as a file.

        Raises
        ------
        ImageError
            If there are none.
        """
        if self.data is None:
            raise ImageError(f"{self.name}: holds no picture")
        return io.BytesIO(self.data)


class PackedImages(Sequence[EncodedImage]):
    """The pictures of a split, of one or several files; they are read as they are gone through.

    Parameters
    ----------
    split : str
        Its name, with which identifiers begin: "train/00042".
    shards : sequence of Shard
        The files, in order.
    labels : ndarray of shape (n_samples,), optional
    rows : sequence of int, optional
        Which of them; None: all.
    """

    def __init__(
        self,
        split: str,
        shards: Sequence[Shard],
        labels: Labels | None,
        *,
        rows: Sequence[int] | None = None,
    ) -> None:
        self._split, self._shards, self._labels = split, shards, labels
        self._starts = (0, *itertools.accumulate(len(shard) for shard in shards))
        self._rows = range(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, rows: int) -> EncodedImage: ...

    @overload
    def __getitem__(self, rows: slice) -> Sequence[EncodedImage]: ...

    def __getitem__(self, rows: int | slice) -> EncodedImage | Sequence[EncodedImage]:
        if isinstance(rows, int):
            return next(self._read(self._rows[rows], self._rows[rows] + 1))
        return self.some(self._rows[rows])

    def __iter__(self) -> Iterator[EncodedImage]:
        for begin in range(0, len(self._rows), _READ_AT_ONCE):
            rows = self._rows[begin : begin + _READ_AT_ONCE]
            for _, run in itertools.groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
                neighbours = [row for _, row in run]
                yield from self._read(neighbours[0], neighbours[-1] + 1)

    def some(self, rows: Sequence[int]) -> PackedImages:
        """Pick pictures by their rows in the split."""
        return PackedImages(self._split, self._shards, self._labels, rows=rows)

    def _read(self, start: int, stop: int) -> Iterator[PackedImage]:
        width = max(5, len(str(self._starts[-1] - 1)))
        while start < stop:
            place = bisect_right(self._starts, start) - 1
            shard, first = self._shards[place], self._starts[place]
            end = min(stop, self._starts[place + 1])
            for row, data in enumerate(shard.read(start - first, end - first), start):
                yield PackedImage(
                    id=f"{self._split}/{row:0{width}d}",
                    label=None if self._labels is None else int(self._labels[row]),
                    name=f"{shard.path}, {shard.noun} {row - first}",
                    data=data,
                )
            start = end


class PackedSource(ImageFileSource):
    """A source made of pictures in larger files.

    Parameters
    ----------
    path : Path
        The file, or the folder of files.
    kind : str
        As in `records.Source`.
    shards : mapping of str to sequence of Shard
        The files of each split.
    labels : mapping of str to ndarray
        Those of the splits that have labels.
    classes : sequence of str
    labels_from : str
        As in `records.Source`.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        *,
        shards: Mapping[str, Sequence[Shard]],
        labels: Mapping[str, Labels],
        classes: Sequence[str],
        labels_from: str,
        max_pixels: int,
    ) -> None:
        for split, of_split in shards.items():
            if not any(map(len, of_split)):
                raise DataError(f"{path}: the split {split} holds no pictures")
        self._known_labels = labels
        self._packed = {
            split: PackedImages(split, of_split, labels.get(split))
            for split, of_split in shards.items()
        }
        together = [shard for of_split in shards.values() for shard in of_split]
        super().__init__(
            str(path),
            kind,
            images=self._packed,
            classes=classes,
            states=lambda: file_states({shard.path.name: shard.path for shard in together}),
            max_pixels=max_pixels,
            close=[shard.close for shard in together],
        )
        self.labels_from = labels_from

    def _labels(self, split: str) -> Labels | None:
        return self._known_labels.get(split)

    def _read_some(self, asked: RowRequest, rows: RowNumbers) -> Iterator[Batch]:
        chosen = rows[asked.rows.start : asked.rows.stop].tolist()
        return self._read_files(asked, self._packed[asked.split.name].some(chosen))


def given_labels(labels: Array, shards: Sequence[Shard], split: str) -> Array | None:
    """Labels as files have them; None where all are -1, as a test split has them that has none."""
    if labels.dtype.kind == "i" and labels.size and np.all(labels == -1):
        where = shards[0].path if len(shards) == 1 else shards[0].path.parent
        _log.info("%s, %s: all labels are -1, which stands for none", where, split)
        return None
    return labels
