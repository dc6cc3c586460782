"""Feature files as tables: CSV for everything, Parquet for data frames."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import UsageError
from cnnfeat.export.excerpt import Chunk, Excerpt, feature_names, number_lines
from cnnfeat.files import csv_cells
from cnnfeat.parts import Part
from cnnfeat.progress import Task

if TYPE_CHECKING:
    import pyarrow as pa


KEY_COLUMNS = ("split", "id", "label", "class")


def write_csv(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write a line for each row: split, id, label, class, then every feature of every layer.

    Where the file has them, part and group stand between.

    A feature of the layer `conv2` at height 3, width 0 and channel 7 is called `conv2_3_0_7`.
    Numbers have as many digits as bring them back exactly.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_cells([*KEY_COLUMNS, *excerpt.beside, *_feature_names(excerpt)]) + "\n")
        for chunk in excerpt.chunks():
            columns = (number_lines(array, separator=",") for array in chunk.features)
            for key, *numbers in zip(_quoted_keys(excerpt, chunk), *columns, strict=True):
                file.write(",".join((key, *numbers)) + "\n")
            task.advance(len(chunk))


def _feature_names(excerpt: Excerpt) -> Iterator[str]:
    for layer in excerpt.layers:
        shape = excerpt.file.layer(excerpt.splits[0], layer).shape[1:]
        yield from feature_names(layer, shape)


def _quoted_keys(excerpt: Excerpt, chunk: Chunk) -> Iterator[str]:
    """Write each row's first cells, quoted where they must be."""
    beside = _beside(excerpt, chunk)
    for row, name in enumerate(chunk.ids):
        label = None if chunk.labels is None else int(chunk.labels[row])
        known = "" if label is None else excerpt.class_name(label)
        yield csv_cells((chunk.split, name, label, known, *(values[row] for values in beside)))


def _beside(excerpt: Excerpt, chunk: Chunk) -> list[list[str | int | None]]:
    """List parts, in words, and groups, where a split has them."""
    nothing: list[str | int | None] = [None] * len(chunk)
    known: dict[str, list[str | int | None]] = {
        "part": nothing if chunk.parts is None else [Part(n).name.lower() for n in chunk.parts],
        "group": nothing if chunk.groups is None else chunk.groups.tolist(),
    }
    return [known[name] for name in excerpt.beside]


def write_parquet(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write a column for each layer, fixed-size lists of its features in row-major order.

    The shape of one image's activations lies in the column's metadata, as JSON under `shape`.

    Raises
    ------
    UsageError
        If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'cnnfeat[parquet]', or --to npz",
        ) from error
    schema = _schema(excerpt)
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in excerpt.chunks():
            writer.write_batch(_record_batch(excerpt, chunk, schema))
            task.advance(len(chunk))


def _schema(excerpt: Excerpt) -> pa.Schema:
    import pyarrow as pa

    fields = [
        pa.field("split", pa.string()),
        pa.field("id", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("class", pa.string()),
    ]
    kinds = {"part": pa.string(), "group": pa.int64()}
    fields += [pa.field(name, kinds[name]) for name in excerpt.beside]
    for layer in excerpt.layers:
        stored = excerpt.file.layer(excerpt.splits[0], layer)
        shape = stored.shape[1:]
        kind = pa.list_(pa.from_numpy_dtype(np.dtype(stored.dtype)), math.prod(shape))
        note = {"shape": json.dumps(shape), "tensor": stored.tensor}
        fields.append(pa.field(layer, kind, metadata=note))
    return pa.schema(fields)


def _record_batch(excerpt: Excerpt, chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    labels = [None] * len(chunk) if chunk.labels is None else chunk.labels.tolist()
    names = [None if label is None else excerpt.class_name(label) for label in labels]
    columns = [
        pa.array([chunk.split] * len(chunk), pa.string()),
        pa.array(chunk.ids, pa.string()),
        pa.array(labels, pa.int64()),
        pa.array(names, pa.string()),
    ]
    for values in _beside(excerpt, chunk):
        columns.append(pa.array(values, schema[len(columns)].type))
    for array, field in zip(chunk.features, list(schema)[len(columns) :], strict=True):
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
    return pa.record_batch(columns, schema=schema)
