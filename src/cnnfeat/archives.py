"""Zip archives, looked through before anything in them is read.

`.keras`, `.npz` and `.skops` files are such, and networks are handed out in them. Whatever is not
as an archive's own writer would have left it is refused, and whatever goes wrong afterwards is one
kind of error: `ArchiveError`.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT says how an archive is laid out.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from cnnfeat.errors import ArchiveError, StorageError, UnsafeArchiveError
from cnnfeat.regular import open_regular

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DEFLATE_LIMIT = 1032  # DEFLATE can't pack better than this
_USUAL_RATIO = 50
_SLACK_BYTES = 64 << 20  # what an archive may unpack to, however small it is
_DIRECTORY_BYTES = 8 << 20  # some 80,000 members; a record of one takes ten times as much memory
_TEXT_BYTES = 16 << 20
_IN_MEMORY_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME, _LONGEST_PART = 1024, 255  # bytes, as file systems have it

_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # flags of a member
_WIDE = 0xFFFF_FFFF  # in place of a size that stands in the extra field
_LOCAL = struct.Struct("<4s2xHH4xIIIHH")
_END = struct.Struct("<4s6xHI4xH")
_WIDE_END = struct.Struct("<4s28xQQ8x")
_LOCAL_MARK, _END_MARK = b"PK\x03\x04", b"PK\x05\x06"
_LOCATOR_BYTES, _LONGEST_COMMENT = 20, 0xFFFF
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
    OverflowError, ValueError,
)  # fmt: skip
_HINT = "get the file from someone you trust"


def is_archive(path: Path) -> bool:
    """Whether a file begins as zip archives do."""
    with open_regular(path) as file:
        return file.read(4) in (_LOCAL_MARK, _END_MARK)


class Archive:
    """A zip archive, open for reading.

    Parameters
    ----------
    path : Path
        The archive.
    file : BinaryIO, optional
        The same, open already; it is left open.
    ratio : int
        To how many times its size it may unpack, beside 64 MiB.

    Raises
    ------
    ArchiveError
        If it is none, is damaged, or holds members that can't be read.
    UnsafeArchiveError
        If a member lies outside, or the whole would fill the memory.
    """

    def __init__(
        self, path: Path, *, file: BinaryIO | None = None, ratio: int = _USUAL_RATIO
    ) -> None:
        self._path = path
        with _told(str(path)):
            self._file = open_regular(path) if file is None else file
        self._close = self._file.close if file is None else None
        try:
            with _told(str(path)):
                n_members = _check_end(self._file)
                self._archive = zipfile.ZipFile(self._file)
                self._members = {info.filename: info for info in self._archive.infolist()}
                listed = self._archive.filelist
                if (n_members - len(listed)) % 0x1_0000:  # some write no more of the number
                    raise ArchiveError(
                        f"damaged: it lists {len(listed):,} members, and says {n_members:,}"
                    )
                _check_names(listed)
                _check_sizes(listed, ratio)
                self._starts = _check_places(self._archive, self._file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._close is not None:
            self._close()

    @property
    def names(self) -> Set[str]:
        """Names of the members, as they are stored; those of folders end in `/`."""
        return self._members.keys()

    def size_bytes(self, name: str) -> int:
        """How large a member is, unpacked."""
        return self._members[name].file_size

    def packed_bytes(self, name: str) -> int:
        """How many bytes a member takes in the archive."""
        return self._members[name].compress_size

    def start(self, name: str) -> int | None:
        """Where the bytes of a member lie in the file; None where they are compressed."""
        stored = self._members[name].compress_type == zipfile.ZIP_STORED
        return self._starts[name] if stored else None

    def open(self, name: str) -> IO[bytes]:
        """Open a member to be read from its beginning; at its end its checksum is looked at."""
        where = self._where(name)
        with _told(where):
            stream = self._archive.open(self._members[name])
        unpacked = _Unpacked(stream, where, size=self.size_bytes(name))
        return io.BufferedReader(unpacked, _CHUNK_BYTES)

    def read(self, name: str, *, most_bytes: int = _TEXT_BYTES) -> bytes:
        """Read a small member whole.

        Raises
        ------
        ArchiveError
            If there is none of this name, or it is larger than a text of its kind would be.
        """
        if name not in self._members:
            raise ArchiveError(f"{self._path}: it has no {name}")
        size = self.size_bytes(name)
        if size > most_bytes:
            raise ArchiveError(
                f"{self._where(name)}: {size:,} bytes; at most {most_bytes:,} are read"
            )
        with self.open(name) as stream:
            return stream.read()

    @contextmanager
    def seekable(self, name: str) -> Iterator[IO[bytes]]:
        """Give a member as a file in which any place can be read; a compressed one is unpacked."""
        start = self.start(name)
        if start is not None:
            window = _Window(self._file.fileno(), start, size=self.size_bytes(name))
            yield io.BufferedReader(window)
            return
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
            self._copy(name, cast("IO[bytes]", file))
            file.seek(0)
            yield cast("IO[bytes]", file)

    def check(self) -> None:
        """Read every member to its end: all bytes are as they were written.

        Raises
        ------
        ArchiveError
            If a member's are not.
        """
        for name in self._members:
            with self.open(name) as stream:
                while stream.read(_CHUNK_BYTES):
                    pass

    def unpack(self, folder: Path, *, wanted: Callable[[str], bool]) -> None:
        """Write the members whose names are `wanted` into a folder.

        Raises
        ------
        StorageError
            If they can't be written.
        """
        for name in self._members:
            if not _is_folder(name) and wanted(name):
                target = folder / _plain(name)
                with _writing(folder):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file = target.open("wb")
                with file:
                    self._copy(name, file)

    def _copy(self, name: str, file: IO[bytes]) -> None:
        with self.open(name) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                with _writing(Path(tempfile.gettempdir())):
                    file.write(chunk)

    def _where(self, name: str) -> str:
        return f"{self._path}: its member {name!r}"


class _Unpacked(io.RawIOBase):
    """A member as it is unpacked, whose faults are errors of its archive."""

    def __init__(self, stream: IO[bytes], where: str, *, size: int) -> None:
        self._stream, self._where, self._left = stream, where, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        with _told(self._where):
            data = self._stream.read(len(view))
            self._left -= len(data)
            if not data and self._left:
                raise EOFError(f"it ends {self._left:,} bytes early")
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Window(io.RawIOBase):
    """A run of bytes of a file, as a file."""

    def __init__(self, descriptor: int, start: int, *, size: int) -> None:
        self._descriptor, self._start, self._size, self._place = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._place)]
        n_read = os.preadv(self._descriptor, [view], self._start + self._place) if view else 0
        self._place += n_read
        return n_read


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn whatever an archive's damage raises into one kind of error, with its place."""
    try:
        yield
    except ArchiveError as error:
        raise type(error)(f"{where}: {error}", hint=error.hint) from error.__cause__
    except OSError as error:
        raise ArchiveError(f"{where}: can't be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise ArchiveError(f"{where}: damaged: {str(error) or 'it ends early'}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"unpacking to {folder} failed: {error.strerror or error}",
            hint="set TMPDIR to a folder on a larger disk",
        ) from error


def _check_end(file: BinaryIO) -> int:
    """Look at the record an archive ends with: how many members it says there are."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LOCATOR_BYTES - _WIDE_END.size - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    place = tail.rfind(_END_MARK)
    if place < 0 or place + _END.size > len(tail):
        raise ArchiveError("no whole zip archive: its end is missing")
    _, n_members, directory, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment > len(tail):
        raise ArchiveError("damaged: it ends within its comment")
    wide = place - _LOCATOR_BYTES - _WIDE_END.size
    if wide >= 0 and tail.startswith(b"PK\x06\x07", place - _LOCATOR_BYTES):
        mark, more_members, more_bytes = _WIDE_END.unpack_from(tail, wide)
        if mark == b"PK\x06\x06":
            n_members, directory = more_members, more_bytes
    if directory > _DIRECTORY_BYTES:
        raise UnsafeArchiveError(
            f"the list of its members takes {directory:,} bytes; {_DIRECTORY_BYTES:,} are read",
            hint=_HINT,
        )
    return int(n_members)


def _plain(name: str) -> PurePosixPath:
    """The path of a member; Windows writes it with another separator."""
    return PurePosixPath(name.replace("\\", "/"))


def _is_folder(name: str) -> bool:
    return name.endswith(("/", "\\"))


def _check_names(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse names that no file of a folder can have, or two can't."""
    seen: set[PurePosixPath] = set()
    for info in members:
        path, shown = _plain(info.filename), repr(info.orig_filename)
        link = stat.S_ISLNK(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in info.filename or link:
            raise UnsafeArchiveError(f"its member {shown} lies outside the archive", hint=_HINT)
        if "\0" in info.orig_filename or not (path.parts or _is_folder(info.filename)):
            raise UnsafeArchiveError(f"its member {shown} has no name of a file", hint=_HINT)
        lengths = [len(part.encode()) for part in path.parts]
        if max(lengths, default=0) > _LONGEST_PART or sum(lengths) > _LONGEST_NAME:
            raise UnsafeArchiveError(
                f"the name of a member has {sum(lengths):,} bytes: {shown[:40]}…", hint=_HINT
            )
        if path in seen:
            raise UnsafeArchiveError(f"it has two members {shown}", hint=_HINT)
        seen.add(path)
    folders = {parent for path in seen for parent in path.parents}
    for info in members:
        if not _is_folder(info.filename) and _plain(info.filename) in folders:
            raise UnsafeArchiveError(
                f"its member {info.filename!r} is a file and a folder", hint=_HINT
            )


def _check_sizes(members: Sequence[zipfile.ZipInfo], ratio: int) -> None:
    """Refuse what can't be unpacked, or would fill the memory."""
    for info in members:
        shown = f"its member {info.filename!r}"
        if info.flag_bits & _ENCRYPTED:
            raise ArchiveError(
                f"{shown} is encrypted", hint="unpack it with its password, and pack it without"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(
                f"{shown} is compressed in a way ({info.compress_type}) that can't be read",
                hint="unpack it, and pack it again with zip",
            )
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise ArchiveError(
                f"{shown} is damaged: {info.file_size:,} bytes, stored as {info.compress_size:,}"
            )
    excess = {info.filename: info.file_size - ratio * info.compress_size for info in members}
    if sum(excess.values()) > _SLACK_BYTES:
        worst = max(members, key=lambda info: excess[info.filename])
        raise UnsafeArchiveError(
            f"its member {worst.filename!r} would unpack from {worst.compress_size:,} to "
            f"{worst.file_size:,} bytes",
            hint="the file is damaged, or made to fill the memory",
        )


def _check_places(archive: zipfile.ZipFile, file: BinaryIO) -> dict[str, int]:
    """Compare members with the header each has; where their bytes begin, which no two share."""
    starts: dict[str, int] = {}
    members = sorted(archive.filelist, key=lambda info: info.header_offset)
    stops = [*(info.header_offset for info in members), archive.start_dir][1:]
    for info, stop in zip(members, stops, strict=True):
        shown = f"its member {info.filename!r}"
        if info.header_offset < 0 or info.header_offset + _LOCAL.size > stop:
            raise ArchiveError(f"{shown} is damaged: it overlaps what follows")
        file.seek(info.header_offset)
        mark, flags, method, crc, packed, size, name_bytes, extra = _LOCAL.unpack(
            file.read(_LOCAL.size)
        )
        known = (info.CRC, info.compress_size, info.file_size)
        follow = flags & _SIZES_FOLLOW or _WIDE in (packed, size)
        if (
            mark != _LOCAL_MARK
            or method != info.compress_type
            or (flags ^ info.flag_bits) & _ENCRYPTED
            or not (follow or (crc, packed, size) == known)
        ):
            raise ArchiveError(f"{shown} is damaged: its header and the archive's list differ")
        start = info.header_offset + _LOCAL.size + name_bytes + extra
        if start + info.compress_size > stop:
            raise ArchiveError(f"{shown} is damaged: it overlaps what follows")
        starts[info.filename] = start
    return starts
