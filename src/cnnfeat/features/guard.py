"""A file as HDF5 sees it, where nobody vouches for what is in it."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnfeat.features.heap import Heap

_HEAP = b"GCOL\x01\0\0\0"  # how each collection of a global heap begins


class GuardedBytes(io.RawIOBase):
    """A file's bytes, but for heaps that aren't whole.

    HDF5 goes through a heap of strings by the sizes that stand in it, and at a size of 0 without
    end. It reads each of its structures from the first byte on: a heap that is damaged loses the
    mark that it begins with, and HDF5 refuses it.

    Parameters
    ----------
    handle : int
        The file, open for reading; it stays the caller's.
    heap : Heap
        The file's.
    """

    def __init__(self, handle: int, heap: Heap) -> None:
        self._handle, self._heap = handle, heap
        self._position, self._size = 0, os.fstat(handle).st_size

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; zeros stand for what can't be read."""
        try:
            count = os.preadv(self._handle, [buffer], self._position)
        except (OSError, OverflowError):  # HDF5 sees no error that is raised here
            count = 0
        buffer[count:] = bytes(len(buffer) - count)
        if bytes(buffer[: len(_HEAP)]) == _HEAP and not self._heap.is_sound(self._position):
            buffer[: len(_HEAP)] = bytes(len(_HEAP))
        self._position += len(buffer)
        return len(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Where it is."""
        return self._position
