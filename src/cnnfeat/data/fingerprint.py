"""Telling sources apart, and naming the file that has changed.

Each file of a source is digested; the digests together are the source's fingerprint. Kept as 16
bytes a file, they say later which file has changed since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.data.regular import open_regular, unreadable
from cnnfeat.records import Fingerprint

CONTENTS = "file contents"
SIZES_AND_TIMES = "names, sizes and times"
CONTENTS_MAX_BYTES = 64 * 2**20  # larger sources go by names, sizes and times
CONTENTS_MAX_FILES = 10_000
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


def file_states(files: Mapping[str, Path], *, always_contents: Iterable[str] = ()) -> FileStates:
    """Digest files, by their contents if they are small together, else by size and time.

    Parameters
    ----------
    files : mapping of str to Path
        By the name that stands for each.
    always_contents : iterable of str
        Names of files that go by their contents in any case (a manifest).

    Raises
    ------
    DataError
        If a file can't be read.
    """
    sizes: dict[str, int] = {}
    times: dict[str, int] = {}
    for name, path in files.items():
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        sizes[name], times[name] = status.st_size, status.st_mtime_ns
    if len(files) <= CONTENTS_MAX_FILES and sum(sizes.values()) <= CONTENTS_MAX_BYTES:
        return FileStates({name: sha256_of(path) for name, path in files.items()}, CONTENTS)
    exceptions = {name: sha256_of(files[name]) for name in always_contents}
    digests = {
        name: hashlib.sha256(f"{sizes[name]} {times[name]}".encode()).digest() for name in files
    }
    return FileStates(digests | exceptions, SIZES_AND_TIMES)


def sha256_of(path: Path) -> bytes:
    """SHA-256 of a regular file's contents."""
    with open_regular(path) as file:
        total = hashlib.sha256()
        while chunk := file.read(2**20):
            total.update(chunk)
        return total.digest()


def _name_digest(name: str) -> bytes:
    return hashlib.sha256(_encode(name)).digest()[:_NAME_BYTES]


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
