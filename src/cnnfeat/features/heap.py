"""Strings of variable length out of a file's global heap, trusting no number in it.

HDF5's own reader can run for ever on a damaged heap. See "Global Heap" in the HDF5 File Format
Specification, version 3.0, III.E.

In a sound file no two collections and no two texts share a byte, so neither the collections nor
the texts are together larger than the file. Each collection is gone through once, however often
its texts are asked for.
"""

from __future__ import annotations

import bisect
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.features.seal import byte_view

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_HEAD = struct.Struct("<4sB3xQ")  # "GCOL", version, bytes of the whole collection
_OBJECT = struct.Struct("<HH4xQ")  # index, reference count, bytes
_MAX_COLLECTION = 1 << 28
_MOST_OBJECTS = 1 << 16  # in a collection: an index has 16 bits
_KEPT_BYTES = 1 << 16  # of collections up to so large, the bytes are kept
_KEPT = 512  # of those
_MAX_ADDRESS = 1 << 62
_PIECE = 1 << 16  # references summed up at a time


class HeapError(ValueError):
    """The heap isn't what the format says."""


@dataclass(frozen=True, slots=True)
class _Collection:
    """Where the objects of one collection lie, by ascending index."""

    address: int
    size: int
    indices: array[int]
    places: array[int]  # in the collection
    sizes: array[int]

    def find(self, index: int, length: int) -> int | None:
        """Where a text begins; None where there is none so long of that index."""
        at = bisect.bisect_left(self.indices, index)
        if at == len(self.indices) or self.indices[at] != index or self.sizes[at] < length:
            return None
        return self.places[at]


class Heap:
    """The global heap of one file that is open for reading.

    Parameters
    ----------
    handle : int
        The open file; it stays the caller's.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._collections: dict[int, _Collection] = {}  # by address
        self._kept: dict[int, bytes] = {}
        self._unread = self._untold = os.fstat(handle).st_size
        self._summed: set[tuple[int, int]] = set()  # arrays, by place and rows

    def is_sound(self, address: int) -> bool:
        """Whether a collection at this byte can be gone through."""
        try:
            self._collection(address)
        except (OSError, HeapError):
            return False
        return True

    def texts(self, place: int, n_rows: int, *, start: int, stop: int) -> list[str]:
        """Read the texts of some rows.

        Parameters
        ----------
        place : int
            Where in the file the array of their references begins.
        n_rows : int
            All rows of the array.
        start, stop : int
            Those that are wanted.

        Raises
        ------
        HeapError
            If one isn't where its reference says.
        UnicodeDecodeError
            If one is no UTF-8.
        """
        if (place, n_rows) not in self._summed:
            self._check_lengths(place, n_rows)
            self._summed.add((place, n_rows))
        return [
            self._text(length, address, index)
            for references in self._references(place, start, stop)
            for length, address, index in references.tolist()
        ]

    def _references(self, place: int, start: int, stop: int) -> Iterator[NDArray[np.void]]:
        for begin in range(start, stop, _PIECE):
            found = np.empty(min(_PIECE, stop - begin), REFERENCE)
            at = place + begin * REFERENCE.itemsize
            if os.preadv(self._handle, [byte_view(found)], at) < found.nbytes:
                raise HeapError("its references go beyond the file's end")
            yield found

    def _check_lengths(self, place: int, n_rows: int) -> None:
        for references in self._references(place, 0, n_rows):
            self._untold -= int(references["length"].sum(dtype=np.int64))
        if self._untold < 0:
            raise HeapError("its texts together are longer than the file")

    def _text(self, length: int, address: int, index: int) -> str:
        if length == 0:
            return ""
        collection = self._collection(address)
        place = collection.find(index, length)
        if place is None:
            raise HeapError(f"no text of {length} bytes at {address}, index {index}")
        if collection.size > _KEPT_BYTES:
            found = self._read(length, address + place)
        else:
            found = self._whole(collection)[place : place + length]
        found = found.rstrip(b"\0")
        if b"\0" in found:
            raise HeapError(f"the text at {address}, index {index} holds a zero byte")
        return found.decode("utf-8")

    def _collection(self, address: int) -> _Collection:
        if address not in self._collections:
            self._collections[address] = self._gone_through(address)
        return self._collections[address]

    def _gone_through(self, address: int) -> _Collection:
        signature, version, size = _HEAD.unpack(self._read(_HEAD.size, address))
        if signature != b"GCOL" or version != 1 or not _HEAD.size <= size <= _MAX_COLLECTION:
            raise HeapError(f"no heap at byte {address}")
        self._unread -= size
        if self._unread < 0:
            raise HeapError("its heaps together are larger than the file")
        collection = _Collection(address, size, array("H"), array("Q"), array("Q"))
        found = sorted(_objects(self._whole(collection)))
        for index, place, length in found:
            collection.indices.append(index)
            collection.places.append(place)
            collection.sizes.append(length)
        return collection

    def _whole(self, collection: _Collection) -> bytes:
        """All bytes of a collection."""
        kept = self._kept.get(collection.address)
        if kept is not None:
            return kept
        found = self._read(collection.size, collection.address)
        if collection.size <= _KEPT_BYTES:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[collection.address] = found
        return found

    def _read(self, size: int, address: int) -> bytes:
        if address > _MAX_ADDRESS:
            raise HeapError(f"no heap at byte {address}")
        found = os.pread(self._handle, size, address)
        if len(found) < size:
            raise HeapError(f"the heap at byte {address} goes beyond the file's end")
        return found


def _objects(collection: bytes) -> Iterator[tuple[int, int, int]]:
    """Go through a collection: index, place and size of each object."""
    place, end = _HEAD.size, len(collection)
    for _ in range(_MOST_OBJECTS):
        if place + _OBJECT.size > end:
            return
        index, _, size = _OBJECT.unpack_from(collection, place)
        if index == 0:  # the free space at the end; its head counts among its size
            if place + size != end:
                raise HeapError("its free space doesn't reach to its end")
            return
        place += _OBJECT.size
        if place + size > end:
            raise HeapError("an object goes beyond its heap's end")
        yield index, place, size
        place += -(-size // 8) * 8
    raise HeapError(f"a heap holds {_MOST_OBJECTS:,} objects or more")
