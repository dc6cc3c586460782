"""The feature file, version 1: its names, and the plan of a file before it is written.

::

    /                          format, format_version, complete, checksum; provenance
    /classes                   string (k,)
    /<split>/<layer>           float32 or float16 (n, ...), contiguous
    /<split>/label             int64 (n,)
    /<split>/part              uint8 (n,): 0 unseen, 1 fitted, 2 validation; absent: unknown
    /<split>/group             int64 (n,), where the source has groups
    /<split>/digest            uint64 (n,): XXH3-64 of each picture as the network was given it
    /<split>/id                string (n,)
    /<split>/skipped/          row, id, reason: samples left out, where there are any
    /checksums/<split>/stop    int64 (b,): the row after each block's last
    /checksums/<split>/column  string (c,): the layers in their order, label, part, group, digest,
                               id; those that are there
    /checksums/<split>/sum     uint64 (b, c): XXH3-64 of each block's bytes
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from cnnfeat.documents import Name
from cnnfeat.errors import LayerLookupError, near_names
from cnnfeat.features.naming import Spelled, find_joined, find_stored
from cnnfeat.records import Array, Groups, Parts, ProbeOutput, SkippedSample

FORMAT = "cnnfeat-features"
FORMAT_VERSION = 1
CHECKSUM = "xxh3-64"
CHECKSUMS, CLASSES = "checksums", "classes"
LABEL, PART, GROUP, DIGEST, ID = "label", "part", "group", "digest", "id"
SKIPPED = "skipped"
OVERFLOWED = "overflowed_to_inf"  # a layer's attribute: values beyond the stored type
# What stands beside the layers, a number a row, and how it is stored.
BESIDE = {LABEL: "<i8", PART: "|u1", GROUP: "<i8", DIGEST: "<u8"}
RESERVED = frozenset({*BESIDE, ID, SKIPPED, "sample"})
RESERVED_SPLITS = frozenset({CHECKSUMS, CLASSES, "class"})


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a split that is filled in place, row by row."""

    name: str  # the data set's
    dtype: str  # NumPy's spelling, with byte order: "<f4"
    row_shape: tuple[int, ...]
    output: ProbeOutput | None = None  # None: one of BESIDE

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One split that will be written."""

    name: str
    n_rows: int
    columns: tuple[Column, ...]
    start: int = 0  # the first sample's place in the source's split; of a shard
    # Of `part` and `group`: the values of all samples of the source, those left out among them.
    beside: Mapping[str, Array] = field(default_factory=dict, compare=False)

    @property
    def stop(self) -> int:
        """The place after the last sample's, before any is left out."""
        return self.start + self.n_rows

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays that are filled in place."""
        return self.n_rows * sum(column.row_bytes for column in self.columns)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A feature file before it is written."""

    splits: tuple[SplitPlan, ...]
    classes: tuple[str, ...]
    attributes: Mapping[str, str | int | float]  # of the root: provenance
    settings: Mapping[str, str]  # what a resumed run must have in common with the first
    source_state: bytes = b""  # tells later which file of the source has changed
    is_shard: bool = False  # then all samples of a split may be left out: others have more

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays; names, strings and checksums come on top."""
        return sum(split.size_bytes for split in self.splits)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Names of what each row of a split will have, as a `FeatureFile` will say."""
        return {one.name: (*(column.name for column in one.columns), ID) for one in self.splits}

    @property
    def n_rows(self) -> int:
        """Rows of all splits."""
        return sum(split.n_rows for split in self.splits)

    @property
    def spelled(self) -> Spelled:
        """What its layers are called, as a `FeatureFile` will say."""
        return {
            column.name: (column.output.layer, column.output.tensor, column.output.asked)
            for column in self.splits[0].columns
            if column.output is not None
        }

    def find_layer(self, name: str) -> str:
        """Find the stored name of a layer, as a `FeatureFile` will.

        Raises
        ------
        LayerLookupError
            If there will be none of that name; near names are in the hint.
        """
        outputs = self.spelled
        found = find_stored(name, outputs)
        if found is None:
            raise LayerLookupError(
                f"{name!r} isn't among the layers that are extracted: {', '.join(outputs)}",
                hint=near_names(name, outputs),
            )
        return found

    def check_layers(self, texts: Iterable[str]) -> None:
        """Refuse what a machine could not be asked for: "fc1", "conv2+fc1"; "all" is all of them.

        Raises
        ------
        CnnfeatError
            As `naming.find_joined` does.
        """
        for text in texts:
            if text != "all":
                find_joined(text, [self])

    def listed_arrays(self) -> dict[str, object]:
        """List all arrays plainly, to be compared with a journal's."""
        return {
            split.name: {
                "rows": split.n_rows,
                **({"start": split.start} if split.start else {}),
                "columns": [[c.name, c.dtype, list(c.row_shape)] for c in split.columns],
            }
            for split in self.splits
        }


@dataclass(frozen=True, slots=True)
class Block:
    """One finished block. `start` to `stop` count samples of the source."""

    split: str
    start: int
    stop: int
    n_rows: int  # samples that became rows
    sums: tuple[int, ...]  # a column each
    overflows: tuple[int, ...]  # values beyond the stored type's range, a column each


@dataclass(frozen=True, slots=True)
class BlockNames:
    """The texts of one block; read again when they are needed."""

    split: str
    ids: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What a layer's attributes call it; what isn't said is empty."""

    layer: Name = ""
    tensor: Name = ""
    asked: Name = ""
    op: Name = ""
    pooling: Name = ""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One layer of a feature file, as its attributes describe it."""

    layer: str  # the name a person gave
    tensor: str
    op: str
    pooling: str
    shape: tuple[int, ...]  # (n_rows, ...)
    dtype: str  # "float32"
    original_shape: tuple[int, ...]  # for one image, before pooling
    size_bytes: int
    asked: str = ""  # what was typed for it, where that is neither its name nor its tensor's


def beside_rows(*, parts: Parts | None, groups: Groups | None) -> dict[str, Array]:
    """Name what is known of rows besides their labels, as the file does."""
    known = {PART: parts, GROUP: groups}
    return {name: array for name, array in known.items() if array is not None}


def plan_columns(
    outputs: Iterable[ProbeOutput], *, dtype: str, has_labels: bool, beside: Iterable[str] = ()
) -> tuple[Column, ...]:
    """Decide name and type of every array of a split.

    Floating-point activations are stored as `dtype`, truth values as uint8, others as they are.
    `beside` names those of `part`, `group` and `digest` that are known.
    """
    columns: list[Column] = []
    taken = set(RESERVED)
    for output in outputs:
        name = _free_name(output.layer, taken)
        taken.add(name)
        columns.append(Column(name, _stored_dtype(output.dtype, dtype), output.row_shape, output))
    known = {LABEL, *beside} if has_labels else {*beside}
    columns += [Column(name, kind, ()) for name, kind in BESIDE.items() if name in known]
    return tuple(columns)


def _free_name(layer: str, taken: Iterable[str]) -> str:
    name = layer.replace("/", ".").replace("\0", "")
    if not name.strip("."):
        name += "_"
    while name in taken:
        name += "_"
    return name


def _stored_dtype(computed: str, floats: str) -> str:
    dtype = np.dtype(computed)
    if dtype.kind == "f":
        dtype = np.dtype(floats)
    elif dtype.kind == "b":
        dtype = np.dtype("uint8")
    return dtype.newbyteorder("<").str


def output_attributes(output: ProbeOutput) -> dict[str, object]:
    """Pick what a layer's data set says of itself."""
    fields = asdict(output)
    keys = ["layer", "tensor", "op", "pooling", "original_shape", "original_dtype"]
    return {key: fields[key] for key in [*keys, *(["asked"] if output.asked else [])]}
