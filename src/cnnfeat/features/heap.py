"""Reads strings of variable length out of an HDF5 file's global heap, trusting no number in it.

HDF5's own reader can run for ever on a damaged heap. See "Global Heap" in the HDF5 File Format
Specification, version 3.0, III.E.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_HEAD = struct.Struct("<4sB3xQ")  # "GCOL", version, bytes of the whole collection
_OBJECT = struct.Struct("<HH4xQ")  # index, reference count, bytes
_MAX_COLLECTION = 1 << 28


class HeapError(ValueError):
    """The heap isn't what the format says."""


class HeapReader:
    """Strings of one open file, by their references."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._address = -1
        self._objects: dict[int, bytes] = {}

    def texts(self, references: NDArray[np.void]) -> list[str]:
        """Read strings in the order of their references.

        Raises
        ------
        HeapError
            If one isn't where its reference says.
        UnicodeDecodeError
            If one is no UTF-8.
        """
        return [
            self._text(int(length), int(address), int(index))
            for length, address, index in references.tolist()
        ]

    def _text(self, length: int, address: int, index: int) -> str:
        if length == 0:
            return ""
        if address != self._address:
            self._objects = dict(_objects(self._collection(address)))
            self._address = address
        found = self._objects.get(index)
        if found is None or len(found) < length:
            raise HeapError(f"no text of {length} bytes at {address}, index {index}")
        return found[:length].rstrip(b"\0").decode("utf-8")

    def _collection(self, address: int) -> bytes:
        head = self._read(_HEAD.size, address)
        signature, version, size = _HEAD.unpack(head)
        if signature != b"GCOL" or version != 1 or not _HEAD.size <= size <= _MAX_COLLECTION:
            raise HeapError(f"no heap at byte {address}")
        return self._read(size, address)

    def _read(self, size: int, address: int) -> bytes:
        if address > (1 << 62):
            raise HeapError(f"no heap at byte {address}")
        found = os.pread(self._handle, size, address)
        if len(found) < size:
            raise HeapError(f"the heap at byte {address} goes beyond the file's end")
        return found


def _objects(collection: bytes) -> Iterator[tuple[int, bytes]]:
    place = _HEAD.size
    while place + _OBJECT.size <= len(collection):
        index, _, size = _OBJECT.unpack_from(collection, place)
        if index == 0:  # the free space at the end
            return
        place += _OBJECT.size
        if place + size > len(collection):
            raise HeapError("an object goes beyond its heap's end")
        yield index, collection[place : place + size]
        place += -(-size // 8) * 8
