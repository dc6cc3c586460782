"""Files of a source that lie in an object store: listed once, and each read whole."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from cnnfeat.address import Address
from cnnfeat.errors import DataError
from cnnfeat.store import StoredObject, list_objects, read_object

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_OBJECT_BYTES = 2**30  # of what is read whole
START_BYTES = 65_536
_PIECES, _PIECE_BYTES = 4, 4 * 2**20  # of a stream, at one time


class Tree:
    """All that lies below an address, as it was when it was listed.

    Parameters
    ----------
    root : Address
    entries : mapping of str to StoredObject
        By key below the root; "" where the root is an object itself.
    """

    def __init__(self, root: Address, entries: Mapping[str, StoredObject]) -> None:
        self.root = root
        self.entries = entries

    @classmethod
    def at(cls, root: Address) -> Tree:
        """List what is below an address; raises as `list_objects` does."""
        return cls(root, list_objects(root))

    @functools.cached_property
    def _below(self) -> Mapping[str, tuple[list[str], list[str]]]:
        """Names of the folders and of the files in each folder."""
        folders: dict[str, None] = {}
        for key in self.entries:
            folder = _above(key)
            while folder and folder not in folders:
                folders[folder] = None
                folder = _above(folder)
        below: dict[str, tuple[list[str], list[str]]] = {key: ([], []) for key in ("", *folders)}
        for key in folders:
            below[_above(key)][0].append(key.rpartition("/")[2])
        for key in self.entries:
            below[_above(key)][1].append(key.rpartition("/")[2])
        return below

    def names(self, key: str) -> Iterator[tuple[str, bool]]:
        """Yield names in a folder, and whether each is a folder."""
        folders, files = self._below.get(key, ([], []))
        yield from ((name, True) for name in folders)
        yield from ((name, False) for name in files)


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or folder in a tree, as far like a `Path` as listing pictures takes."""

    tree: Tree
    key: str  # below the tree's root; "": the root

    @property
    def name(self) -> str:
        """The last part."""
        return self.address.name

    @property
    def suffix(self) -> str:
        """The ending, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in, up to the tree's root."""
        return RemotePath(self.tree, _above(self.key))

    @property
    def parts(self) -> tuple[str, ...]:
        """The root, and the parts of the key."""
        return (str(self.tree.root), *(self.key.split("/") if self.key else ()))

    @property
    def entry(self) -> StoredObject | None:
        """What the listing shows of it; None for a folder, or where there is nothing."""
        return self.tree.entries.get(self.key)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.tree, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return str(self.address)

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.tree.root / self.key

    def names(self) -> Iterator[tuple[str, bool]]:
        """Yield names in this folder, and whether each is a folder."""
        return self.tree.names(self.key)

    def start(self) -> bytes:
        """Read the first bytes of a file, by which its kind is told."""
        size_bytes = 0 if self.entry is None else self.entry.size_bytes
        return read_object(self.address, 0, min(size_bytes, START_BYTES))

    def stream(self) -> BinaryIO:
        """Open a file to be read from its beginning to its end, with places left out."""
        size_bytes = 0 if self.entry is None else self.entry.size_bytes
        return io.BufferedReader(_Stream(self.address, size_bytes))

    def read(self, *, error: type[DataError] = DataError) -> bytes:
        """Read a file whole.

        Raises
        ------
        DataError
            Or its subclass `error`, if there is no such object, or one too large for that.
        StorageError
            If the store refuses.
        """
        entry = self.entry
        if entry is None:
            raise error(f"{self}: there is no such object")
        if {".", ".."} & set(self.key.split("/")):  # on their way, clients resolve them
            raise error(f"{self}: a key with . and .. as folders isn't read", hint="rename it")
        if entry.size_bytes > MAX_OBJECT_BYTES:
            raise error(
                f"{self}: {entry.size_bytes:,} bytes; {MAX_OBJECT_BYTES:,} are read from a store",
                hint="download it first",
            )
        return read_object(self.address, 0, entry.size_bytes)


class _Stream(io.RawIOBase):
    """An object, of which the pieces that come next are asked for before they are needed."""

    def __init__(self, address: Address, size_bytes: int) -> None:
        self._address, self._size_bytes, self._place = address, size_bytes, 0
        self._pieces: dict[int, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(_PIECES, thread_name_prefix="cnnfeat-stream")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size_bytes}
        self._place = bases[whence] + offset
        return self._place

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        number, skipped = divmod(self._place, _PIECE_BYTES)
        part = self._piece(number)[skipped : skipped + len(view)]
        view[: len(part)] = part
        self._place += len(part)
        return len(part)

    def _piece(self, number: int) -> bytes:
        last = -(-self._size_bytes // _PIECE_BYTES)
        wanted = range(number, min(number + _PIECES, last))
        for other in self._pieces.keys() - set(wanted):
            self._pieces.pop(other).cancel()
        for each in wanted:
            if each not in self._pieces:
                self._pieces[each] = self._pool.submit(self._fetch, each)
        return self._pieces[number].result() if wanted else b""

    def _fetch(self, number: int) -> bytes:
        start = number * _PIECE_BYTES
        return read_object(self._address, start, min(start + _PIECE_BYTES, self._size_bytes))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


AnyPath: TypeAlias = Path | RemotePath


def _above(key: str) -> str:
    return key.rpartition("/")[0]


def remote_paths(addresses: Iterable[Address]) -> dict[Address, RemotePath]:
    """Find out about objects, with one listing a bucket: of the folder that all of them are in.

    Raises
    ------
    StorageError
        If there is no such folder, or the store refuses.
    """
    buckets: dict[tuple[str, str], list[Address]] = {}
    for address in addresses:
        bucket = address.path.partition("/")[0]
        buckets.setdefault((address.protocol, bucket), []).append(address)
    found = {}
    for (protocol, _), those in buckets.items():
        root = Address(protocol, os.path.commonpath([one.parent.path for one in those]))
        tree = Tree.at(root)
        for one in those:
            found[one] = RemotePath(tree, one.path.removeprefix(root.path).removeprefix("/"))
    return found
