"""Feature files as AnnData's `.h5ad`, by its format on disk and so without AnnData itself.

It is described at https://anndata.readthedocs.io/en/stable/fileformat-prose.html, and every element
says which version of it was followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import h5py
import numpy as np

from cnnfeat.export.excerpt import Excerpt, feature_names
from cnnfeat.parts import Part
from cnnfeat.progress import Task
from cnnfeat.records import Array

_TEXT = h5py.string_dtype()


def write_h5ad(excerpt: Excerpt, path: Path, task: Task) -> None:
    """Write the first layer as `X`, a row an image and a column a feature, others as `obsm`.

    Rows of all splits follow each other. `obs` says of each its id, split, label and class, and
    part and group where the file has them; `var` names the features of `X` as a CSV does; `uns`
    holds which layer `X` is, and the shape that one image's features have in each.
    """
    with h5py.File(path, "w", locking=False) as file:  # `replacing` holds a lock of its own
        _mark(file, "anndata", "0.1.0")
        matrices = _matrices(file, excerpt)
        start = 0
        for chunk in excerpt.chunks():
            stop = start + len(chunk)
            for matrix, features in zip(matrices, chunk.features, strict=True):
                matrix[start:stop] = features.reshape(len(chunk), -1)
            task.advance(len(chunk))
            start = stop
        _write_rows(file, excerpt)
        _write_columns(file, excerpt)


def _matrices(file: h5py.File, excerpt: Excerpt) -> list[h5py.Dataset]:
    """Make room for every layer."""
    others = _mapping(file, "obsm")
    places = [(file, "X"), *((others, layer) for layer in excerpt.layers[1:])]
    found = []
    for (group, name), layer in zip(places, excerpt.layers, strict=True):
        stored = excerpt.file.layer(excerpt.splits[0], layer)
        shape = (excerpt.total_rows, math.prod(stored.shape[1:]))
        found.append(_mark(group.create_dataset(name, shape, stored.dtype), "array", "0.2.0"))
    return found


def _write_rows(file: h5py.File, excerpt: Excerpt) -> None:
    known, splits = excerpt.file, excerpt.splits
    counts = [excerpt.n_rows(split) for split in splits]
    ids = (known.ids(split, stop=n) for split, n in zip(splits, counts, strict=True))
    rows = _frame(file, "obs", chain.from_iterable(ids))
    _categorical(rows, "split", np.repeat(splits, counts).tolist(), order=splits)
    labels = [known.labels(split) for split in splits]
    if any(found is not None for found in labels):
        numbers = _joined(labels, counts)
        _integers(rows, "label", numbers)
        present = sorted({number for number in numbers if number is not None})
        names = {number: excerpt.class_name(number) for number in present}
        classes = [None if number is None else names[number] for number in numbers]
        _categorical(rows, "class", classes, order=tuple(names.values()))
    if "part" in excerpt.beside:
        parts = _joined([known.parts(split) for split in splits], counts)
        words = [None if number is None else Part(number).name.lower() for number in parts]
        _categorical(rows, "part", words, order=[part.name.lower() for part in Part])
    if "group" in excerpt.beside:
        _integers(rows, "group", _joined([known.groups(split) for split in splits], counts))


def _write_columns(file: h5py.File, excerpt: Excerpt) -> None:
    shapes = {
        layer: excerpt.file.layer(excerpt.splits[0], layer).shape[1:] for layer in excerpt.layers
    }
    first = excerpt.layers[0]
    _frame(file, "var", feature_names(first, shapes[first]))
    more = _mapping(file, "uns")
    _mark(more.create_dataset("X_layer", data=first, dtype=_TEXT), "string", "0.2.0")
    group = _mapping(more, "shapes")
    for layer, shape in shapes.items():
        _array(group, layer, np.array(shape, np.int64))


def _joined(arrays: Sequence[Array | None], counts: Sequence[int]) -> list[int | None]:
    """Put splits behind each other; where one has no numbers, they are None."""
    found: list[int | None] = []
    for array, n_rows in zip(arrays, counts, strict=True):
        found += [None] * n_rows if array is None else array[:n_rows].tolist()
    return found


def _mark(item: h5py.Group | h5py.Dataset, kind: str, version: str) -> h5py.Group | h5py.Dataset:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version
    return item


def _mapping(group: h5py.Group, name: str) -> h5py.Group:
    return _mark(group.create_group(name), "dict", "0.1.0")


def _frame(file: h5py.File, name: str, index: Iterable[str]) -> h5py.Group:
    """Make a data frame of no columns yet."""
    frame = _mark(file.create_group(name), "dataframe", "0.2.0")
    frame.attrs["_index"] = "_index"
    frame.attrs["column-order"] = np.array([], _TEXT)
    _strings(frame, "_index", list(index))
    return frame


def _add_column(frame: h5py.Group, name: str) -> None:
    names = [*frame.attrs["column-order"], name]
    frame.attrs["column-order"] = np.array(names, _TEXT)


def _array(group: h5py.Group, name: str, values: Array) -> None:
    _mark(group.create_dataset(name, data=values), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    data = np.array(values, object)
    _mark(group.create_dataset(name, data=data, dtype=_TEXT), "string-array", "0.2.0")


def _categorical(
    frame: h5py.Group, name: str, values: Sequence[str | None], *, order: Sequence[str]
) -> None:
    """Add a column of few different words; None has the code -1."""
    _add_column(frame, name)
    codes: dict[str | None, int] = {word: code for code, word in enumerate(dict.fromkeys(order))}
    column = _mark(frame.create_group(name), "categorical", "0.2.0")
    column.attrs["ordered"] = False
    _strings(column, "categories", list(dict.fromkeys(order)))
    _array(column, "codes", np.array([codes.get(value, -1) for value in values], np.int32))


def _integers(frame: h5py.Group, name: str, values: Sequence[int | None]) -> None:
    """Add a column of whole numbers, some of which may be missing."""
    _add_column(frame, name)
    if None not in values:
        _array(frame, name, np.array(values, np.int64))
        return
    column = _mark(frame.create_group(name), "nullable-integer", "0.1.0")
    _array(column, "values", np.array([value or 0 for value in values], np.int64))
    _array(column, "mask", np.array([value is None for value in values]))
