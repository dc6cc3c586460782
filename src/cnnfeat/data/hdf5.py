"""HDF5 files as sources of arrays. Only what lies in the file itself is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from cnnfeat.data.source import Rows, open_file
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.records import Array

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LEAST_BLOCK = 512
_MAX_OBJECTS = 10_000
_CACHE_BYTES = 64 * 2**20  # of unpacked chunks, so that none is unpacked for every batch anew
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError)  # as h5py tells of it
_log = logging.getLogger("cnnfeat")


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, perhaps behind a block of another's: 512 bytes, or 1024, 2048 ..."""
    with open_file(path) as file:
        size, place = file.seek(0, os.SEEK_END), 0
        while place < size:
            file.seek(place)
            if file.read(len(HDF5_MAGIC)) == HDF5_MAGIC:
                return True
            place = 2 * place or _LEAST_BLOCK
    return False


class Hdf5Rows:
    """A data set of an HDF5 file; a slice is read when it is asked for."""

    def __init__(self, dataset: h5py.Dataset, *, name: str) -> None:
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[np.generic] = dataset.dtype
        self._dataset = dataset
        self._name = name
        if h5py.check_string_dtype(dataset.dtype) is not None:
            self._dataset = dataset.asstr()
            self.dtype = np.dtype(str)

    def __getitem__(self, rows: slice, /) -> Array:
        try:
            block = np.asarray(self._dataset[rows])
        except DAMAGE as error:
            raise DataError(f"{self._name}: rows {rows.start or 0} on: {error}") from error
        return block.astype(str) if self.dtype.kind == "U" else block


class Hdf5File:
    """An HDF5 file: data sets by path, without the leading slash."""

    kind = "hdf5"

    def __init__(self, path: Path) -> None:
        self._path = path
        open_file(path).close()
        try:
            self._file = h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)
        except DAMAGE as error:
            raise DataError(f"{path}: not a complete HDF5 file: {error}") from error
        try:
            self._datasets = _find_datasets(self._file, path)
        except DAMAGE as error:
            self._file.close()
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged HDF5 file: {error}") from error
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: dataset.shape for name, dataset in self._datasets.items()
        }

    def rows(self, name: str) -> Rows:
        """Open one of the data sets."""
        return Hdf5Rows(self.dataset(name), name=f"{self._path}:/{name}")

    def dataset(self, name: str) -> h5py.Dataset:
        """Find one of the data sets, the numbers of which must lie in the file itself."""
        label = f"{self._path}:/{name}"
        dataset = self._datasets[name]
        if dataset.is_virtual or dataset.external:
            raise DataError(
                f"{label}: its numbers lie in other files, which are not read",
                hint="copy it into a file of its own, for example with h5repack",
            )
        return dataset

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _find_datasets(root: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """All data sets that lie in the file itself; soft and external links aren't followed."""
    found: dict[str, h5py.Dataset] = {}
    groups: list[tuple[str, h5py.Group]] = [("", root)]
    seen = {h5py.h5o.get_info(root.id).addr}
    while groups:
        prefix, group = groups.pop()
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                _log.debug("%s:/%s%s is a link, not followed", path, prefix, key)
                continue
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                found[prefix + key] = item
            elif isinstance(item, h5py.Group) and address not in seen:
                seen.add(address)
                groups.append((f"{prefix}{key}/", item))
            if len(found) + len(seen) > _MAX_OBJECTS:
                raise DataError(f"{path}: more than {_MAX_OBJECTS:,} objects")
    return found
