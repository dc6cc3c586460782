"""Writes arrays that are in memory as a feature file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnfeat.features.completion import finish
from cnnfeat.features.format import FilePlan, SplitPlan, plan_columns
from cnnfeat.features.opening import open_writer
from cnnfeat.records import Array, Batch, Labels, ProbeOutput

BLOCK_ROWS = 512


def write_arrays(
    path: Path,
    splits: Mapping[str, Mapping[str, Array]],
    *,
    labels: Mapping[str, Labels] | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] = (),
    attributes: Mapping[str, str | int | float] | None = None,
    overwrite: bool = False,
) -> None:
    """Write features computed elsewhere as a feature file.

    Parameters
    ----------
    path : Path
        The file.
    splits : mapping of str to mapping of str to ndarray
        By split and layer, (n_rows, ...) each.
    labels : mapping of str to ndarray of int64, optional
        By split, (n_rows,).
    ids : mapping of str to sequence of str, optional
        By split; by default "train/00042".
    classes : sequence of str
        Label k means `classes[k]`.
    attributes : mapping
        Provenance, for the root.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError
        If it exists and `overwrite` is false.
    StorageError
        If the disk refuses.
    """
    plans = tuple(
        _plan(split, layers, has_labels=split in (labels or {})) for split, layers in splits.items()
    )
    plan = FilePlan(plans, tuple(classes), dict(attributes or {}), {})
    with open_writer(path, plan, overwrite=overwrite) as writer:
        for split, layers in splits.items():
            n_rows = len(next(iter(layers.values())))
            names = (ids or {}).get(split) or [f"{split}/{row:05d}" for row in range(n_rows)]
            for start in range(0, n_rows, BLOCK_ROWS):
                rows = slice(start, min(start + BLOCK_ROWS, n_rows))
                found = labels[split][rows] if labels and split in labels else None
                images = next(iter(layers.values()))[rows]
                batch = Batch(images, found, tuple(names[rows]), start, rows.stop)
                writer.append(split, batch, [array[rows] for array in layers.values()])
        finish(writer)


def _plan(split: str, layers: Mapping[str, Array], *, has_labels: bool) -> SplitPlan:
    outputs = [
        ProbeOutput(
            layer=name,
            tensor=f"{name}:0",
            op="",
            row_shape=array.shape[1:],
            dtype=array.dtype.name,
            original_shape=array.shape[1:],
            original_dtype=array.dtype.name,
            pooling="none",
        )
        for name, array in layers.items()
    ]
    dtype = next((array.dtype.name for array in layers.values() if array.dtype.kind == "f"), "")
    columns = plan_columns(outputs, dtype=dtype or "float32", has_labels=has_labels)
    return SplitPlan(split, len(next(iter(layers.values()))), columns)
