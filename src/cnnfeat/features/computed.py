"""Writes features that were computed elsewhere, and are in memory, as a feature file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnfeat.features.format import FilePlan, SplitPlan, beside_rows, plan_columns
from cnnfeat.features.writer import FeatureWriter
from cnnfeat.records import Array, Batch, Groups, Labels, Parts, ProbeOutput

BLOCK_ROWS = 512


def write_arrays(
    path: Path,
    splits: Mapping[str, Mapping[str, Array]],
    *,
    labels: Mapping[str, Labels] | None = None,
    parts: Mapping[str, Parts] | None = None,
    groups: Mapping[str, Groups] | None = None,
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
    parts : mapping of str to ndarray of uint8, optional
        By split, (n_rows,): what the network has seen of each row, `cnnfeat.parts.Part`.
    groups : mapping of str to ndarray of int64, optional
        By split, (n_rows,): rows of one number belong together.
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
        _split_plan(
            split,
            layers,
            has_labels=split in (labels or {}),
            beside=beside_rows(parts=(parts or {}).get(split), groups=(groups or {}).get(split)),
        )
        for split, layers in splits.items()
    )
    plan = FilePlan(plans, tuple(classes), dict(attributes or {}), {})
    with FeatureWriter(path, plan, overwrite=overwrite) as writer:
        for split, layers in splits.items():
            n_rows = len(next(iter(layers.values())))
            names = (ids or {}).get(split) or [f"{split}/{row:05d}" for row in range(n_rows)]
            for start in range(0, n_rows, BLOCK_ROWS):
                rows = slice(start, min(start + BLOCK_ROWS, n_rows))
                found = labels[split][rows] if labels and split in labels else None
                images = next(iter(layers.values()))[rows]
                batch = Batch(images, found, tuple(names[rows]), start, rows.stop)
                writer.append(split, batch, [array[rows] for array in layers.values()])
        writer.finish()


def _split_plan(
    split: str, layers: Mapping[str, Array], *, has_labels: bool, beside: Mapping[str, Array]
) -> SplitPlan:
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
    dtype = dtype or "float32"
    columns = plan_columns(outputs, dtype=dtype, has_labels=has_labels, beside=beside)
    return SplitPlan(split, len(next(iter(layers.values()))), columns, beside=beside)
