"""A checksum over what lies between a file's arrays, checked before HDF5 sees the file.

HDF5 trusts its own structures; a flipped bit in them can make it run for ever. The seal stands
behind the end of what HDF5 knows of the file. Tools that change the file cut it off, and then
nothing is checked.

::

    end of structures (uint64), number of gaps (uint32), each gap's offset and size (uint64),
    checksum of all that and of the structures (uint64),
    bytes of all that (uint32), b"cnnfSEAL"
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import xxhash

from cnnfeat.features.disk import Disk

_MAGIC = b"cnnfSEAL"
_FOOT = struct.Struct("<I8s")
_HEAD, _GAP, _SUM = struct.Struct("<QI"), struct.Struct("<QQ"), struct.Struct("<Q")
_PIECE_BYTES = 1 << 20


def write_seal(handle: int, end: int, gaps: Sequence[tuple[int, int]], *, disk: Disk) -> None:
    """Seal bytes 0 to `end` of a finished file, but for `gaps` (offset, size): its arrays."""
    body = _HEAD.pack(end, len(gaps)) + b"".join(_GAP.pack(*gap) for gap in sorted(gaps))
    body += _SUM.pack(_checksum(handle, body, end, sorted(gaps)))
    seal = body + _FOOT.pack(len(body), _MAGIC)
    disk.write(handle, seal, offset=os.fstat(handle).st_size)


def seal_holds(handle: int) -> bool:
    """Whether the structures are as they were sealed; True also where there is no seal."""
    size = os.fstat(handle).st_size
    foot = os.pread(handle, _FOOT.size, max(0, size - _FOOT.size))
    if len(foot) < _FOOT.size:
        return True
    length, magic = _FOOT.unpack(foot)
    if magic != _MAGIC or length > size - _FOOT.size:
        return True
    body = os.pread(handle, length, size - _FOOT.size - length)
    try:
        end, n_gaps = _HEAD.unpack_from(body)
        gaps = [_GAP.unpack_from(body, _HEAD.size + i * _GAP.size) for i in range(n_gaps)]
        (wanted,) = _SUM.unpack(body[_HEAD.size + n_gaps * _GAP.size :])
    except struct.error:
        return False
    signed = body[: -_SUM.size]
    return bool(end <= size and wanted == _checksum(handle, signed, end, gaps))


def _checksum(handle: int, signed: bytes, end: int, gaps: Sequence[tuple[int, int]]) -> int:
    state, place = xxhash.xxh3_64(signed), 0
    for offset, size in [*gaps, (end, 0)]:
        while place < min(offset, end):
            piece = os.pread(handle, min(_PIECE_BYTES, min(offset, end) - place), place)
            if not piece:
                break
            state.update(piece)
            place += len(piece)
        place = max(place, offset + size)
    return state.intdigest()
