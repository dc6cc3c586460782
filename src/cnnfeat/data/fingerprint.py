"""Telling sources apart, and naming the file that has changed.

Each file of a source is digested; the digests together are the source's fingerprint. Kept as 16
bytes a file, they say later which file has changed since.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.data.regular import open_regular, unreadable
from cnnfeat.errors import DataError
from cnnfeat.records import Fingerprint

CONTENTS = "file contents"
SIZES_AND_TIMES = "names, sizes and times"
CONTENTS_MAX_BYTES = 64 * 2**20  # larger sources go by names, sizes and times
CONTENTS_MAX_FILES = 10_000
_UNREADABLE = bytes(32)
_NAME_BYTES = 8
_STATE_BYTES = 8
_RECORD_BYTES = _NAME_BYTES + _STATE_BYTES


@dataclass(frozen=True, slots=True)
class FileStates:
    """The state of every file of a source.

    `digests` has one entry a file: a SHA-256 by file name (relative to the source).
    """

    digests: Mapping[str, bytes]
    method: str

    def fingerprint(self) -> Fingerprint:
        """Digest all of them, in their order."""
        total = hashlib.sha256(self.method.encode())
        for name, digest in self.digests.items():
            total.update(hashlib.sha256(_encode(name)).digest() + digest)
        return Fingerprint(total.hexdigest(), self.method)

    def pack(self) -> bytes:
        """16 bytes a file: a digest of its name, and one of its state."""
        return b"".join(
            _name_digest(name) + digest[:_STATE_BYTES] for name, digest in self.digests.items()
        )

    def changed_since(self, packed: bytes) -> str | None:
        """Say which file differs from when `packed` was made; None: none does."""
        records = [
            packed[begin : begin + _RECORD_BYTES] for begin in range(0, len(packed), _RECORD_BYTES)
        ]
        before = {record[:_NAME_BYTES]: record[_NAME_BYTES:] for record in records}
        for name, digest in self.digests.items():
            state = before.pop(_name_digest(name), None)
            if state is None:
                return f"{name} is new"
            if state != digest[:_STATE_BYTES]:
                return f"{name} has changed"
        if before:
            return f"{len(before)} of {len(records)} files are gone"
        return None if packed == self.pack() else "the order of files has changed"


class Fingerprinted:
    """The part of a source that tells it from others: the states of its files, made when needed."""

    def __init__(self, states: Callable[[], FileStates]) -> None:
        self._states = functools.cache(states)

    def fingerprint(self) -> Fingerprint:
        """See `records.Source`."""
        return self._states().fingerprint()

    def state(self) -> bytes:
        """See `records.Source`."""
        return self._states().pack()

    def changed_since(self, state: bytes) -> str | None:
        """See `records.Source`."""
        return self._states().changed_since(state)


def file_states(files: Mapping[str, Path], *, always_contents: Iterable[str] = ()) -> FileStates:
    """Digest files, by their contents if they are small together, else by size and time.

    A file that can't be read has a state too, the same for all of them.

    Parameters
    ----------
    files : mapping of str to Path
        By the name that stands for each.
    always_contents : iterable of str
        Names of files that go by their contents in any case (a manifest).
    """
    sizes_and_times = {name: _size_and_time(path) for name, path in files.items()}
    size_bytes = sum(size for size, _ in sizes_and_times.values())
    if len(files) <= CONTENTS_MAX_FILES and size_bytes <= CONTENTS_MAX_BYTES:
        return FileStates({name: _contents(path) for name, path in files.items()}, CONTENTS)
    digests = {
        name: hashlib.sha256(f"{size} {time_ns}".encode()).digest()
        for name, (size, time_ns) in sizes_and_times.items()
    }
    exceptions = {name: _contents(files[name]) for name in always_contents}
    return FileStates(digests | exceptions, SIZES_AND_TIMES)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _contents(path: Path) -> bytes:
    try:
        return sha256_of(path)
    except DataError:
        return _UNREADABLE


def sha256_of(path: Path) -> bytes:
    """SHA-256 of a regular file's contents.

    Raises
    ------
    DataError
        If it can't be read.
    """
    total = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return total.digest()


def _name_digest(name: str) -> bytes:
    return hashlib.sha256(_encode(name)).digest()[:_NAME_BYTES]


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
