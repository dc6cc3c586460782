"""Opening a feature file nobody vouches for: what is not a plain feature file is refused.

Only plain, contiguous arrays in the file itself are read: HDF5 can also point to other files
(external links, external storage, virtual data sets) and run decoders (filters).
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.features import format as fmt
from cnnfeat.features.attributes import read_attributes
from cnnfeat.features.guard import GuardedBytes
from cnnfeat.features.heap import Heap
from cnnfeat.features.seal import seal_holds
from cnnfeat.records import Array
from cnnfeat.regular import regular_handle

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_RANK = 16
_LONGEST_NAME = 4096
_LARGEST_ROW = 1 << 30  # bytes, where there is none: of an array as the other shards have it
_HINT = "make it again with cnnfeat extract, or name another file"


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A feature file that is open for reading."""

    root: h5py.File
    handle: int
    heap: Heap

    def close(self) -> None:
        """Close it, once."""
        if self.root:
            os.close(self.handle)
            with contextlib.suppress(RuntimeError):
                self.root.close()


def open_checked(path: Path) -> CheckedFile:
    """Open a feature file for reading, if it is a complete one of a version known here.

    Raises
    ------
    MissingInputError
        If there is none.
    FeatureFileError
        If it is truncated, incomplete, foreign or no HDF5 file.
    """
    try:
        handle = regular_handle(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(
            f"no feature file {path}", hint="cnnfeat extract --layer NAME makes one"
        ) from error
    except OSError as error:
        raise FeatureFileError(f"{path}: can't be read: {error.strerror}", hint=_HINT) from error
    try:
        _check_signature(path, handle)
        heap = Heap(handle)
        return CheckedFile(_open_root(path, GuardedBytes(handle, heap)), handle, heap)
    except FeatureFileError:
        os.close(handle)
        raise


def _check_signature(path: Path, handle: int) -> None:
    try:
        head, sealed = os.pread(handle, len(_SIGNATURE), 0), seal_holds(handle)
    except OSError as error:
        raise FeatureFileError(f"{path}: can't be read: {error.strerror}", hint=_HINT) from error
    if head != _SIGNATURE:
        found = "is empty" if not head else f"begins with {head!r}"
        raise FeatureFileError(f"{path} is no HDF5 file: it {found}", hint=_HINT)
    if not sealed:
        raise FeatureFileError(
            f"{path} is damaged between its arrays: names, shapes or attributes aren't as written",
            hint=_HINT,
        )


def _open_root(path: Path, raw: GuardedBytes) -> h5py.File:
    try:
        root = h5py.File(raw, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise FeatureFileError(f"{path}: {_open_reason(error, path)}", hint=_HINT) from error
    try:
        _check_head(path, root)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        root.close()
        if isinstance(error, FeatureFileError):
            raise
        raise FeatureFileError(f"{path}: damaged: {error}", hint=_HINT) from error
    return root


def _open_reason(error: Exception, path: Path) -> str:
    text = str(error)
    if "truncated" in text:
        return f"truncated: it has {path.stat().st_size:,} bytes, fewer than it should ({text})"
    return f"damaged HDF5 file ({text})"


def _check_head(path: Path, file: h5py.File) -> None:
    head = read_attributes(file, ("format", "format_version", "complete"), path)
    found, version = head.get("format"), head.get("format_version")
    if found != fmt.FORMAT:
        said = "no format" if found is None else f"format {found!r}"
        raise FeatureFileError(
            f"{path} is an HDF5 file but no feature file: {said}, {fmt.FORMAT!r} expected",
            hint=_HINT,
        )
    if version != fmt.FORMAT_VERSION:
        raise FeatureFileError(
            f"{path} has format version {version}; this cnnfeat reads version {fmt.FORMAT_VERSION}",
            hint="a newer cnnfeat may read it",
        )
    if head.get("complete") != 1:
        raise FeatureFileError(
            f"{path} is incomplete: {_extent(file)}",
            hint="finish it with the same cnnfeat extract command and --resume",
        )


def _extent(file: h5py.File) -> str:
    splits = ", ".join(repr(name) for name in file if name not in fmt.RESERVED_SPLITS)
    return f"laid out for {splits or 'nothing'}, but never finished"


def has_child(group: h5py.Group, name: str, path: Path) -> bool:
    """Whether a group has a part of this name."""
    try:
        return name in group
    except (OSError, RuntimeError, ValueError) as error:
        raise FeatureFileError(f"{path}: {group.name} is damaged: {error}", hint=_HINT) from error


def child_group(group: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Get a group that lies in this file."""
    child = _child(group, name, path)
    if not isinstance(child, h5py.Group):
        raise FeatureFileError(f"{path}: {child.name} is no group", hint=_HINT)
    return child


def child_array(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """Get a data set that lies in this file, wholly and plainly."""
    child = _child(group, name, path)
    if not isinstance(child, h5py.Dataset):
        raise FeatureFileError(f"{path}: {child.name} is no data set", hint=_HINT)
    try:
        _check_array(child, path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, FeatureFileError):
            raise
        raise FeatureFileError(f"{path}: {child.name} is damaged: {error}", hint=_HINT) from error
    return child


def _child(group: h5py.Group, name: str, path: Path) -> h5py.Group | h5py.Dataset:
    if len(name) > _LONGEST_NAME:
        raise FeatureFileError(
            f"{path}: {name[:40]!r}… in {group.name} is a name of {len(name):,} characters",
            hint=_HINT,
        )
    where = f"{group.name.rstrip('/')}/{name}"
    if not name or name == "." or "/" in name or "\0" in name:  # could lead to elsewhere
        raise FeatureFileError(f"{path}: {name!r} is no name of a part of {group.name}", hint=_HINT)
    try:
        link = group.get(name, getlink=True)
        if link is None:
            raise FeatureFileError(f"{path}: {where} is missing", hint=_HINT)
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            raise FeatureFileError(f"{path}: {where} is a link to elsewhere ({kind})", hint=_HINT)
        return group[name]
    except KeyError as error:
        raise FeatureFileError(f"{path}: {where} is missing", hint=_HINT) from error
    except (OSError, RuntimeError) as error:
        raise FeatureFileError(f"{path}: {where} is damaged: {error}", hint=_HINT) from error


def _check_array(array: h5py.Dataset, path: Path) -> None:
    array.dtype  # noqa: B018 - raises where NumPy has no such type
    how = array.id.get_create_plist()
    if how.get_external_count():
        raise _refused(array, path, "keeps its values in another file")
    if how.get_layout() == h5py.h5d.VIRTUAL:
        raise _refused(array, path, "is a virtual data set, made of other files")
    if how.get_layout() != h5py.h5d.CONTIGUOUS or how.get_nfilters():
        raise _refused(array, path, "is chunked or compressed, not contiguous")
    shape = array.shape
    if shape is None or len(shape) > _MAX_RANK:
        raise _refused(array, path, f"has the absurd shape {shape}")
    # An axis of no length leaves room for others beyond all bounds.
    size = math.prod(max(1, length) for length in shape) * array.id.get_type().get_size()
    begin, end = array.id.get_offset(), array.file.id.get_filesize()
    most = max(end, _LARGEST_ROW) if shape[:1] == (0,) else end
    if size > most or (0 not in shape and (begin is None or begin + size > end)):
        raise _refused(array, path, f"has shape {shape}, more than the file's {end:,} bytes hold")


def axis_names(array: h5py.Dataset, path: Path) -> tuple[str, ...]:
    """Read what the axes of a row are called: "height", "width", "channel".

    Raises
    ------
    FeatureFileError
        If the scales that name them are damaged.
    """
    before = f"{array.name}_"
    try:
        scales = [array.dims[axis][0].name for axis in range(1, array.ndim)]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise FeatureFileError(
            f"{path}: the axes of {array.name} are damaged: {error}", hint=_HINT
        ) from error
    return tuple(name.removeprefix(before).rstrip("_") for name in scales)


def numeric(array: h5py.Dataset, path: Path, kinds: str) -> np.dtype[np.generic]:
    """Return an array's type if it is one of the `kinds` of numbers NumPy knows."""
    dtype: np.dtype[np.generic] = array.dtype
    if dtype.kind not in kinds or dtype.hasobject or dtype.itemsize > 8 or dtype.subdtype:
        raise _refused(array, path, f"holds {dtype}, no numbers of a known kind")
    return dtype


def read_numbers(array: h5py.Dataset, path: Path, kinds: str) -> Array:
    """Read all of a small array if it holds one of the `kinds` of numbers."""
    numeric(array, path, kinds)
    try:
        found: Array = array[...]
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise FeatureFileError(f"{path}: {array.name} is damaged: {error}", hint=_HINT) from error
    return found


def _refused(array: h5py.Dataset, path: Path, why: str) -> FeatureFileError:
    return FeatureFileError(f"{path}: {array.name} {why}", hint=_HINT)


def check_is_texts(array: h5py.Dataset, path: Path) -> None:
    """Refuse what is no list of texts of any length."""
    info = h5py.check_string_dtype(array.dtype)
    if info is None or info.length is not None or array.ndim != 1:
        raise _refused(array, path, f"holds {array.dtype} {array.shape}, no list of texts")


def texts(
    array: h5py.Dataset,
    path: Path,
    *,
    heap: Heap,
    start: int = 0,
    stop: int | None = None,
) -> list[str]:
    """Read strings.

    Parameters
    ----------
    array : h5py.Dataset
        From `child_array`.
    path : Path
        For messages.
    heap : Heap
        The file's.
    start, stop : int
        Which rows.

    Raises
    ------
    FeatureFileError
        If they are none, or damaged.
    """
    check_is_texts(array, path)
    begin, end, _ = slice(start, stop).indices(array.shape[0])
    if begin >= end:
        return []
    try:
        return heap.texts(array.id.get_offset(), array.shape[0], start=begin, stop=end)
    except (OSError, RuntimeError, ValueError) as error:
        raise FeatureFileError(f"{path}: {array.name} is damaged: {error}", hint=_HINT) from error


@dataclass(frozen=True, slots=True)
class Sums:
    """The block checksums of one split."""

    stops: NDArray[np.int64]  # (n_blocks,): the row after each block's last
    columns: tuple[str, ...]
    values: NDArray[np.uint64]  # (n_blocks, n_columns)

    def of(self, column: str) -> NDArray[np.uint64]:
        """Checksums of one column, (n_blocks,)."""
        return self.values[:, self.columns.index(column)]


def read_sums(file: h5py.File, split: str, path: Path, *, heap: Heap) -> Sums:
    """Read the table of a split.

    Raises
    ------
    FeatureFileError
        If it is missing or damaged.
    """
    root = child_group(file, fmt.CHECKSUMS, path)
    group = child_group(root, split, path)
    arrays = {name: child_array(group, name, path) for name in ("stop", "sum")}
    columns = texts(child_array(group, "column", path), path, heap=heap)
    stops = read_numbers(arrays["stop"], path, "i").astype(np.int64)
    sums = read_numbers(arrays["sum"], path, "u").astype(np.uint64)
    if (
        stops.ndim != 1
        or sums.shape != (len(stops), len(columns))
        or not len(stops)
        or len(set(columns)) != len(columns)
        or fmt.ID not in columns
        or stops[0] < 0
        or np.any(stops[1:] < stops[:-1])
    ):
        raise FeatureFileError(f"{path}: the checksums of split {split!r} are damaged", hint=_HINT)
    return Sums(stops, tuple(columns), sums)
