"""What HDF5 itself writes: the empty arrays at the start, names and attributes at the end.

Between the two no HDF5 call is made; rows go straight to the arrays' places in the file. HDF5
writes through `_Bytes`, which never lets it see an error: the library can bring the interpreter
down on a full disk. The error is raised afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import h5py
import numpy as np

from cnnfeat.documents import printable
from cnnfeat.errors import DataError
from cnnfeat.features import format as fmt
from cnnfeat.features.disk import Disk
from cnnfeat.features.format import Block, BlockNames, Column, FilePlan, SplitPlan
from cnnfeat.features.seal import make_seal, text_checksum
from cnnfeat.parts import Part
from cnnfeat.records import ProbeOutput, SkippedSample

_GATHERED = 1 << 14  # ids that are written in one call, which costs as much as a hundred of them
_TEXT = h5py.string_dtype("utf-8")
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. {:9d}"


@dataclass(slots=True)
class SplitState:
    """How far one split is, and what will be said of it when its rows are complete."""

    plan: SplitPlan
    position: int = field(init=False)  # in the source's split: samples before it are done
    n_rows: int = 0  # of them kept
    stops: list[int] = field(default_factory=list)  # the row after each block's last
    sums: list[tuple[int, ...]] = field(default_factory=list)  # (n_blocks, n_columns), no ids'
    overflows: list[int] = field(default_factory=list)  # a column each

    def __post_init__(self) -> None:
        self.position = self.plan.start

    @property
    def n_done(self) -> int:
        """Samples that are done, those left out among them."""
        return self.position - self.plan.start

    def add(self, block: Block) -> None:
        """Count a block in."""
        self.position = block.stop
        self.n_rows += block.n_rows
        self.stops.append(self.n_rows)
        self.sums.append(block.sums)
        before = self.overflows or [0] * len(block.overflows)
        self.overflows = [a + b for a, b in zip(before, block.overflows, strict=True)]


@dataclass(slots=True)
class _Names:
    """What the journal's texts of one split come to."""

    n_rows: int = 0
    sums: list[int] = field(default_factory=list)  # a block each
    skipped: list[SkippedSample] = field(default_factory=list)


class _Bytes(io.RawIOBase):
    """A file as HDF5 sees it; the first error is kept and what follows is dropped."""

    def __init__(self, handle: int, disk: Disk, *, size: int) -> None:
        self._handle = handle
        self._disk = disk
        self._position = 0
        self.size = size
        self.error: OSError | None = None

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._handle, [buffer], self._position)
        buffer[count:] = bytes(len(buffer) - count)
        self._position += len(buffer)
        return len(buffer)

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        view = memoryview(data)
        try:
            if self.error is None:
                self._disk.write(self._handle, view, offset=self._position)
        except OSError as error:
            self.error = error
        self._position += view.nbytes
        self.size = max(self.size, self._position)
        return view.nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def flush(self) -> None:
        """Leave it to the caller's fsync."""


@contextlib.contextmanager
def _hdf5(handle: int, disk: Disk, *, mode: str) -> Iterator[h5py.File]:
    # A file to be made anew looks empty, so that HDF5 doesn't take up what is there.
    raw = _Bytes(handle, disk, size=0 if mode == "w" else os.fstat(handle).st_size)
    try:
        with h5py.File(raw, mode) as file:
            yield file
    except (OSError, RuntimeError, ValueError):
        if raw.error is None:
            raise
    if raw.error is not None:
        raise raw.error
    disk.truncate(handle, raw.size)


def create_arrays(handle: int, plan: FilePlan, *, disk: Disk) -> dict[tuple[str, str], int]:
    """Lay out all arrays, unfilled; return the place in the file of each (split, column).

    The same plan gives the same bytes, and bytes of arrays already there are left alone: this
    also brings back a file whose HDF5 structures a crash has torn.
    """
    offsets = {}
    with _hdf5(handle, disk, mode="w") as file:
        file.attrs["format"] = fmt.FORMAT
        file.attrs["format_version"] = fmt.FORMAT_VERSION
        file.attrs["complete"] = 0
        for split in plan.splits:
            group = file.create_group(split.name)
            for column in split.columns:
                array = _allocate(group, column, split.n_rows)
                offsets[split.name, column.name] = array.get_offset() or 0  # none of no rows
    return offsets


def _allocate(group: h5py.Group, column: Column, n_rows: int) -> h5py.h5d.DatasetID:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
    space = h5py.h5s.create_simple((n_rows, *column.row_shape))
    return h5py.h5d.create(group.id, column.name.encode(), kind, space, how)


class _FileTail:
    """Writes what is known once all rows are: names, labels' scales, checksums, provenance."""

    def __init__(self, file: h5py.File, plan: FilePlan) -> None:
        self._file = file
        self._plan = plan

    def write_head(self) -> None:
        """Write the root: provenance and class names."""
        for key, value in self._plan.attributes.items():
            self._file.attrs[key] = printable(value) if isinstance(value, str) else value
        self._file.attrs["h5py"] = h5py.__version__
        self._file.attrs["checksum"] = fmt.CHECKSUM
        classes = _texts(self._file, fmt.CLASSES, len(self._plan.classes))
        classes[...] = list(self._plan.classes)
        _scale(self._file, "class", classes)

    def write_split(self, split: SplitPlan, state: SplitState) -> None:
        """Describe a split's arrays, and lay out its array of ids."""
        group = self._file[split.name]
        ids = h5py.Dataset(_allocate_texts(group, fmt.ID, split.n_rows))
        rows = _dimension(group, "sample", split.n_rows)
        taken = {"sample", *group}
        beside = [column.name for column in split.columns if column.output is None]
        coordinates = [*(name for name in beside if name != fmt.DIGEST), fmt.ID]
        for column, overflow in zip(split.columns, state.overflows, strict=True):
            array = group[column.name]
            array.dims[0].attach_scale(rows)
            if column.output is not None:
                _describe(array, column.output, overflow=overflow, beside=coordinates)
                _name_axes(group, array, column, taken)
        if fmt.PART in beside:
            _name_parts(group[fmt.PART])
        ids.dims[0].attach_scale(rows)

    def write_sums(self, split: SplitPlan, state: SplitState, id_sums: Sequence[int]) -> None:
        """Write the table of block checksums."""
        group = self._file.require_group(fmt.CHECKSUMS).create_group(split.name)
        names = [*(column.name for column in split.columns), fmt.ID]
        stop = group.create_dataset("stop", data=np.asarray(state.stops, "<i8"))
        column = _texts(group, "column", len(names))
        column[...] = names
        table = np.array(state.sums, "<u8").reshape(len(state.stops), len(names) - 1)
        table = np.column_stack([table, np.array(id_sums, "<u8")])
        sums = group.create_dataset("sum", data=table)
        block = _dimension(group, "block", len(state.stops))
        wide = _dimension(group, "sum_column", len(names))
        for array, scales in ((stop, [block]), (column, [wide]), (sums, [block, wide])):
            for axis, scale in enumerate(scales):
                array.dims[axis].attach_scale(scale)

    def write_skipped(self, split: SplitPlan, listed: Sequence[SkippedSample]) -> None:
        """List the samples left out."""
        group, n = self._file[split.name].create_group(fmt.SKIPPED), len(listed)
        row = group.create_dataset("row", data=np.array([item.row for item in listed], "<i8"))
        name, reason = _texts(group, fmt.ID, n), _texts(group, "reason", n)
        name[...] = [item.id for item in listed]
        reason[...] = [item.reason for item in listed]
        scale = _dimension(group, "sample", n)
        for array in (row, name, reason):
            array.dims[0].attach_scale(scale)

    def complete(self) -> list[tuple[int, int]]:
        """Say that nothing is missing; return where the arrays lie: offset, size."""
        self._file.attrs["complete"] = 1
        arrays = [
            self._file[split.name][name].id
            for split in self._plan.splits
            for name in (*(column.name for column in split.columns), fmt.ID)
        ]
        filled = [array for array in arrays if array.get_storage_size()]
        return [(array.get_offset(), array.get_storage_size()) for array in filled]


def complete_file(
    handle: int,
    plan: FilePlan,
    states: Mapping[str, SplitState],
    blocks: Callable[[], Iterator[BlockNames]],
    *,
    disk: Disk,
) -> dict[str, tuple[SkippedSample, ...]]:
    """Write all that comes after the rows, and the seal; return the samples left out, by split.

    Parameters
    ----------
    handle : int
        A file with complete rows.
    plan : FilePlan
        What is in it.
    states : mapping of str to SplitState
        By split.
    blocks : callable
        Reads the texts of all blocks; called twice, so that they need not be held.
    disk : Disk
        What makes the system calls.

    Raises
    ------
    OSError
        What the disk said at the first write that failed.
    """
    names = {name: _Names() for name in states}
    for block in blocks():
        found = names[block.split]
        found.n_rows += len(block.ids)
        found.sums.append(text_checksum(block.ids))
        found.skipped.extend(block.skipped)
    with _hdf5(handle, disk, mode="r+") as file:
        tail = _FileTail(file, plan)
        tail.write_head()
        for split in plan.splits:
            _write_split(tail, split, states[split.name], names[split.name])
        arrays = tail.complete()
    end = os.fstat(handle).st_size
    with _hdf5(handle, disk, mode="r+") as file:
        _write_ids(file, blocks())
    disk.write(handle, make_seal(handle, end, arrays), offset=os.fstat(handle).st_size)
    return {name: tuple(found.skipped) for name, found in names.items()}


def _write_split(tail: _FileTail, split: SplitPlan, state: SplitState, names: _Names) -> None:
    tail.write_split(split, state)
    if names.n_rows != split.n_rows:
        raise DataError(f"split {split.name!r} has {split.n_rows:,} rows and {names.n_rows:,} ids")
    tail.write_sums(split, state, names.sums)
    if names.skipped:
        tail.write_skipped(split, names.skipped)


def _write_ids(file: h5py.File, blocks: Iterator[BlockNames]) -> None:
    """Fill the arrays of ids, after everything else, so that the texts lie at the file's end."""
    gathered: dict[str, list[str]] = {}
    n_written: Counter[str] = Counter()

    def write(split: str) -> None:
        start, ids = n_written[split], gathered.pop(split)
        file[split][fmt.ID][start : start + len(ids)] = ids
        n_written[split] += len(ids)

    for block in blocks:
        if block.ids:
            ids = gathered.setdefault(block.split, [])
            ids.extend(block.ids)
            if len(ids) >= _GATHERED:
                write(block.split)
    for split in list(gathered):
        write(split)


def _allocate_texts(group: h5py.Group, name: str, n_rows: int) -> h5py.h5d.DatasetID:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_obj_track_times(False)
    kind = h5py.h5t.py_create(_TEXT, logical=True)
    return h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple((n_rows,)), how)


def _texts(group: h5py.Group, name: str, n: int) -> h5py.Dataset:
    return group.create_dataset(name, (n,), dtype=_TEXT, track_times=False)


def _describe(
    array: h5py.Dataset, output: ProbeOutput, *, overflow: int, beside: Sequence[str]
) -> None:
    attributes = fmt.output_attributes(output)
    for key, value in attributes.items():
        array.attrs[key] = np.array(value, "<i8") if key == "original_shape" else value
    if overflow:
        array.attrs[fmt.OVERFLOWED] = overflow
    array.attrs["coordinates"] = " ".join(beside)


def _name_parts(array: h5py.Dataset) -> None:
    """Say what the numbers mean, as CF does: conventions 1.11, section 3.5, "Flags"."""
    array.attrs["flag_values"] = np.array(list(Part), np.uint8)
    array.attrs["flag_meanings"] = " ".join(part.name.lower() for part in Part)


def _name_axes(group: h5py.Group, array: h5py.Dataset, column: Column, taken: set[str]) -> None:
    axes = column.output.axes if column.output else ()
    for axis, length in enumerate(column.row_shape, start=1):
        word = axes[axis - 1] if len(axes) == len(column.row_shape) else f"axis{axis}"
        name = f"{column.name}_{word}"
        while name in taken:
            name += "_"
        taken.add(name)
        array.dims[axis].attach_scale(_dimension(group, name, length))


def _dimension(group: h5py.Group, name: str, length: int) -> h5py.Dataset:
    """Make a named dimension as netCDF-4 does: a scale that takes no space."""
    array = group.create_dataset(name, (length,), dtype=">f4", track_times=False)
    h5py.h5ds.set_scale(array.id, _NO_VARIABLE.format(length).encode())
    return array


def _scale(group: h5py.Group, name: str, array: h5py.Dataset) -> None:
    array.dims[0].attach_scale(_dimension(group, name, array.shape[0]))
