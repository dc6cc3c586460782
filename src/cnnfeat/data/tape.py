"""The members of a tar file, found by going from header to header; what they hold stays there.

POSIX.1-2017, pax (section "EXTENDED DESCRIPTION"), and what GNU tar writes: a header of 512 bytes,
the bytes it tells of, filled up to whole blocks; two blocks of zeros end the file.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cnnfeat.data.remote import RemotePath
from cnnfeat.data.source import open_file
from cnnfeat.documents import printable
from cnnfeat.errors import DataError, ImageError
from cnnfeat.store import read_object

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
TAPE_START_BYTES = 2 * _BLOCK
_MARK, _MARK_PLACE = b"ustar", 257
_MOST_WORDS = 1 << 20  # bytes of an extended header
_NAMES, _LINKS = b"L", b"K"  # GNU: the next member's long name, or where it leads
_OF_ALL, _OF_NEXT = b"g", (b"x", b"X")  # pax: settings
_SPARSE = "GNU.sparse."
_PAX = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Tape(Protocol):
    """A tar file, wherever it lies."""

    @property
    def name(self) -> str: ...  # for messages

    @property
    def stem(self) -> str: ...  # what ids of its pictures begin with

    @property
    def afar(self) -> bool: ...  # reading takes a request

    def open(self) -> BinaryIO:
        """Open it to be gone through from its beginning, over bytes that nobody needs."""

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read some bytes; several threads do at once.

        Raises
        ------
        ImageError
            If they aren't there.
        """


@dataclass(frozen=True, slots=True)
class LocalTape:
    """A tar file of this machine. It isn't kept open: a source may have more than one process can.

    Parameters
    ----------
    path : Path
    stem : str
        As in `Tape`.
    """

    path: Path
    stem: str
    afar: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return printable(str(self.path))

    def open(self) -> BinaryIO:
        """See `Tape`."""
        return open_file(self.path)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `Tape`."""
        with open_file(self.path, error=ImageError) as file:
            file.seek(offset)
            data = file.read(n_bytes)
        if len(data) < n_bytes:
            raise ImageError(f"{self.name}: was cut short while it was read")
        return data


@dataclass(frozen=True, slots=True)
class RemoteTape:
    """A tar file in a store. To go through it takes all of its bytes once.

    Parameters
    ----------
    path : RemotePath
    stem : str
        As in `Tape`.
    """

    path: RemotePath
    stem: str
    afar: bool = True

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """See `Tape`."""
        return self.path.stream()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `Tape`."""
        return read_object(self.path.address, offset, offset + n_bytes)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file."""

    name: str
    offset: int  # of its bytes
    size: int


class TornError(ValueError):
    """A tar file that goes on otherwise than its format has it; what lies behind isn't found."""


def is_tape(path: Path) -> bool:
    """Whether a file is a tar file; see `is_tape_start`."""
    with open_file(path) as file:
        return is_tape_start(file.read(TAPE_START_BYTES))


def is_tape_start(start: bytes) -> bool:
    """Whether bytes are the header of a tar file, or an empty one."""
    start = start[:TAPE_START_BYTES]
    if len(start) < _BLOCK:
        return False
    if start[_MARK_PLACE:].startswith(_MARK) or start == _ZEROS * 2:
        return True
    try:
        tarfile.TarInfo.frombuf(start[:_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def members(file: BinaryIO, *, name: str) -> Iterator[Member]:
    """Go through the regular files of a tar file, which is called `name`; folders are left out.

    Raises
    ------
    TornError
        Where it is damaged or cut short, after the members before that.
    DataError
        If it holds a link, a device or a sparse file.
    """
    total, place = file.seek(0, os.SEEK_END), 0
    of_all: dict[str, str] = {}
    of_next: dict[str, str] = {}
    while (block := _exactly(file, place, _BLOCK, total)) != _ZEROS:
        info = _header(block, place)
        place += _BLOCK
        if info.type in (_OF_ALL, *_OF_NEXT, _NAMES, _LINKS):
            words = _words(file, place, info.size, total)
            if info.type == _NAMES:
                of_next["path"] = words.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type != _LINKS:
                (of_all if info.type == _OF_ALL else of_next).update(_settings(words, place))
        else:
            said = of_all | of_next
            of_next = {}
            shown = said.get("path", info.name)
            _check_kind(info.type, said, f"{name}, {printable(shown)}")
            info.size = _size(said, info.size, place)
            if info.type in _PLAIN and not shown.endswith("/"):
                if place + info.size > total:
                    raise TornError(
                        f"cut short within {printable(shown)}, of whose {info.size:,} bytes it "
                        f"holds {total - place:,}"
                    )
                yield Member(shown, place, info.size)
            elif info.type == tarfile.DIRTYPE:
                info.size = 0
        place += -(-info.size // _BLOCK) * _BLOCK


def _exactly(file: BinaryIO, place: int, n_bytes: int, total: int) -> bytes:
    if place + n_bytes > total:
        raise TornError(f"cut short at byte {total:,}, where more should follow")
    file.seek(place)
    return file.read(n_bytes)


def _header(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise TornError(f"damaged: no header of a member at byte {place:,}") from error
    if info.size < 0:
        raise TornError(f"damaged: a member of {info.size:,} bytes at byte {place:,}")
    return info


def _words(file: BinaryIO, place: int, n_bytes: int, total: int) -> bytes:
    """Read what stands before a member of it."""
    if n_bytes > _MOST_WORDS:
        raise TornError(f"damaged: {n_bytes:,} bytes of settings at byte {place:,}")
    return _exactly(file, place, n_bytes, total)


def _settings(words: bytes, place: int) -> dict[str, str]:
    """Read pax's records, "27 path=some/long/name\\n", where 27 is the length of the whole."""
    found: dict[str, str] = {}
    start = 0
    while start < len(words):
        record = _PAX.match(words, start)
        length = int(record[1]) if record else 0
        stop = start + length
        if (
            not record
            or stop > len(words)
            or stop <= record.end()
            or words[stop - 1 : stop] != b"\n"
        ):
            raise TornError(f"damaged: settings that can't be read at byte {place + start:,}")
        key = record[2].decode("utf-8", "surrogateescape")
        found[key] = words[record.end() : stop - 1].decode("utf-8", "surrogateescape")
        start = stop
    return found


def _size(said: Mapping[str, str], size: int, place: int) -> int:
    digits = said.get("size", str(size))
    if not re.fullmatch(r"[0-9]{1,19}", digits):
        raise TornError(f"damaged: a size of {printable(digits[:20])!r} at byte {place:,}")
    return int(digits)


def _check_kind(kind: bytes, said: Mapping[str, str], shown: str) -> None:
    """Refuse what is neither a regular file nor a folder."""
    if any(key.startswith(_SPARSE) for key in said):
        kind = tarfile.GNUTYPE_SPARSE
    if kind not in (*_PLAIN, tarfile.DIRTYPE):
        what = _KINDS.get(kind, f"of a kind ({kind!r}) that isn't known")
        raise DataError(
            f"{shown}: is {what}; regular files alone are read out of a tar file",
            hint="unpack it, and pack it again: cp -rL FOLDER NEW && tar -cf NEW.tar NEW",
        )
