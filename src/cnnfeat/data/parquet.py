"""Pictures in parquet files, in the manner of Hugging Face.

https://huggingface.co/docs/datasets/image_dataset: a column of structs `bytes`, `path`, or of
bytes; another one of labels, the names of which lie in the file's metadata, under `huggingface`.
Rows are read a few at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.arrays import index_labels
from cnnfeat.data.packed import PackedSource, given_labels, opened_shards
from cnnfeat.data.source import open_file
from cnnfeat.documents import parse_document
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.records import some_of

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnfeat.records import Array

_MAGIC = b"PAR1"
_BATCH = 16  # rows
_NOWHERE = -(2**62)
_GAP = 64  # rows that are rather passed over than sought anew
_IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "bytes")
_LABELS = ("label", "labels", "fine_label", "class", "target", "coarse_label")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a file are read."""

    image: str
    in_struct: bool  # the bytes are a field of it
    label: str | None
    names: tuple[str, ...]  # of classes


def is_parquet(path: Path) -> bool:
    """Whether a file begins as parquet does."""
    with open_file(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_parquet(
    path: Path, files: Mapping[str, Sequence[Path]], *, labels: str | None, max_pixels: int
) -> PackedSource:
    """Open parquet files as a source.

    Parameters
    ----------
    path : Path
        The file, or their folder.
    files : mapping of str to sequence of Path
        The files of each split, in order.
    labels : str or None
        The column of labels, as ":/coarse_label". None chooses by the names people use.
    max_pixels : int
        Larger pictures are refused before they are decoded.

    Raises
    ------
    UsageError
        If pyarrow isn't installed, or there is no such column.
    DataError
        If a file is damaged, or has no pictures, or files differ.
    """
    asked = None if labels is None else labels.removeprefix(":").strip("/")
    with opened_shards(files, partial(ParquetShard, label=asked)) as shards:
        columns = _agreed([shard for of_split in shards.values() for shard in of_split])
        raw = {
            split: found
            for split, of_split in shards.items()
            if (found := _labels(of_split, split)) is not None
        }
        indices, classes = index_labels(raw, name=str(path), classes=columns.names)
        return PackedSource(
            path,
            "parquet",
            shards=shards,
            labels=indices,
            classes=classes,
            labels_from=labels or "",
            max_pixels=max_pixels,
        )


class ParquetShard:
    """One parquet file.

    Parameters
    ----------
    path : Path
    label : str or None
        Its column of labels; None chooses.
    """

    noun = "row"

    def __init__(self, path: Path, *, label: str | None) -> None:
        self.path = path
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UsageError(
                f"{path}: parquet needs pyarrow, which is not installed",
                hint="pip install 'cnnfeat[parquet]'",
            ) from error
        self._damage = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
        open_file(path).close()
        with self._told():
            self._file = pq.ParquetFile(path, pre_buffer=False)
        try:
            with self._told():
                self._starts = self._row_groups()
                self.columns = _choose(self._file.schema_arrow, path, label)
        except BaseException:
            self._file.close()
            raise
        self._lock = threading.Lock()
        self._position = 0
        self._ahead = self._pictures(0)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Sequence[bytes | None]:
        """Read the encoded pictures of some rows; those that follow the last ones come at once."""
        with self._lock, self._told():
            ahead = start - self._position
            if not 0 <= ahead <= _GAP:
                self._ahead, ahead = self._pictures(start), 0
            self._position = _NOWHERE  # unless all goes well
            found = list(itertools.islice(self._ahead, ahead, ahead + stop - start))
            self._position = start + len(found)
        if len(found) < stop - start:
            raise DataError(f"{self.path}: ends before row {self._position} of {len(self)}")
        return found

    def labels(self) -> pa.ChunkedArray | None:
        """Read the whole column of labels."""
        if self.columns.label is None:
            return None
        with self._told():
            return self._file.read(columns=[self.columns.label]).column(0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _row_groups(self) -> tuple[int, ...]:
        metadata = self._file.metadata
        lengths = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        return (0, *itertools.accumulate(lengths))

    def _pictures(self, start: int) -> Iterator[bytes | None]:
        """Go through the pictures from a row on."""
        group = bisect_right(self._starts, start) - 1
        before = start - self._starts[group]  # rows of its group
        column = f"{self.columns.image}.bytes" if self.columns.in_struct else self.columns.image
        for batch in self._file.iter_batches(
            _BATCH, row_groups=list(range(group, len(self._starts) - 1)), columns=[column]
        ):
            if before < len(batch):
                yield from self._bytes(batch.column(0).slice(before))
            before = max(0, before - len(batch))

    def _bytes(self, values: pa.Array) -> list[bytes | None]:
        if self.columns.in_struct:
            import pyarrow.compute as pc

            values = pc.struct_field(values, "bytes")
        found: list[bytes | None] = values.to_pylist()
        return found

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what pyarrow raises into a `DataError`."""
        try:
            yield
        except (DataError, UsageError):
            raise
        except self._damage as error:
            raise DataError(f"{self.path}: a damaged parquet file: {error}") from error


def _choose(schema: pa.Schema, path: Path, label: str | None) -> _Columns:
    """Find the pictures and labels among a file's columns."""
    features = _features(schema)
    pictures = [field.name for field in schema if _holds_pictures(field.type)]
    image = next((name for name in _IMAGES if name in pictures), None)
    if image is None and len(pictures) == 1:
        image = pictures[0]
    if image is None:
        columns = [f"{field.name} ({field.type})" for field in schema]
        raise DataError(
            f"{path}: can't tell which column holds the pictures, encoded, as bytes or in a struct "
            f"with `bytes`; its columns: {some_of(columns, most=20) or 'none'}",
            hint="name it image" if pictures else "",
        )
    others = [name for name in schema.names if name != image]
    if label is not None and label not in others:
        raise UsageError(
            f"{path}: no column {label!r} for labels; it has: {', '.join(others) or 'no other'}",
            hint=near_names(label, others),
        )
    if label is None:
        named = [name for name in others if _names(features, name)]
        label = next((name for name in _LABELS if name in others), None)
        label = named[0] if label is None and len(named) == 1 else label
    in_struct = schema.field(image).type.num_fields > 0
    return _Columns(image, in_struct, label, _names(features, label))


def _holds_pictures(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_pictures(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> Mapping[str, object]:
    """What Hugging Face's `datasets` says of the columns; {} where it didn't write the file."""
    try:
        written = parse_document((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    info = written.get("info")
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _names(features: Mapping[str, object], column: str | None) -> tuple[str, ...]:
    """The names of classes of a column of type ClassLabel."""
    feature = features.get(column or "")
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _agreed(shards: Sequence[ParquetShard]) -> _Columns:
    """Check that all files have the same columns, and name classes alike."""
    first = shards[0]
    for shard in shards[1:]:
        if shard.columns.image != first.columns.image or (
            shard.columns.names != first.columns.names and shard.columns.label
        ):
            raise DataError(
                f"{shard.path.name} and {first.path.name} differ in their columns or the names of "
                f"their classes: {_told_columns(shard)}; {_told_columns(first)}"
            )
    return first.columns


def _told_columns(shard: ParquetShard) -> str:
    columns = shard.columns
    classes = ", ".join(columns.names[:3]) or "no names"
    return f"{columns.image}, {columns.label or 'no labels'} ({classes} …)"


def _labels(shards: Sequence[ParquetShard], split: str) -> Array | None:
    """Labels of a split; None where it has none, or only the -1 that stand for none."""
    columns = [shard.labels() for shard in shards]
    found = [
        _numbers(column, shard)
        for column, shard in zip(columns, shards, strict=True)
        if column is not None
    ]
    known = [labels for labels in found if labels is not None]
    if not known:
        return None
    if len(known) < len(shards):
        raise DataError(f"some files of the split {split} have no labels: {shards[0].path.parent}")
    return given_labels(np.concatenate(known), shards, split)


def _numbers(column: pa.ChunkedArray, shard: ParquetShard) -> Array | None:
    import pyarrow as pa

    kind, name = column.type, f"{shard.path}, column {shard.columns.label}"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if column.null_count == len(column):
        return None
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise DataError(
            f"{name}: {column.null_count:,} of {len(column):,} rows have no label; the first is "
            f"row {row}"
        )
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), np.str_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        numbers: Array = column.to_numpy()
        return numbers
    raise DataError(
        f"{name}: labels of type {kind}; a whole number or a text for each picture is needed"
    )
