"""Where a cluster's shards go, as the driver sees it: a folder that all see, or one in a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cnnfeat.address import Address
from cnnfeat.errors import OutputExistsError, StorageError, UsageError
from cnnfeat.features import ShardEntry, storage_errors
from cnnfeat.features.inventory import (
    HEAD_BYTES,
    MANIFEST,
    begins_as_manifest,
    check_manifest,
    not_a_manifest,
    write_inventory,
)
from cnnfeat.files import locked
from cnnfeat.shards import ShardNumber, numbers_in, shard_files
from cnnfeat.store import check_bucket, list_objects, put_object, read_object
from cnnfeat.temporary import remove_abandoned_folders, temporary_folder
from cnnfeat.transfer import held


class Destination(Protocol):
    """A set's place. `str` of it is what it is called."""

    def held(self) -> AbstractContextManager[None]:
        """Keep other drivers of this machine away, before there is a cluster.

        Raises
        ------
        LockedError
            If there is one.
        StorageError
            If there is no bucket, or the store or the disk refuses.
        """

    def check(self, n_shards: int) -> None:
        """Refuse what holds shards of another division, or a file in the manifest's place.

        A folder that isn't there is made: workers look whether they see it.

        Raises
        ------
        OutputExistsError
            With its name.
        StorageError
            If the store or the disk refuses.
        """

    def seal(self, settings: Mapping[str, str], shards: Iterable[ShardEntry]) -> None:
        """Write the manifest, if all shards lie there as they were reported.

        Raises
        ------
        StorageError
            If one doesn't.
        """


def destination(place: Path | Address) -> Destination:
    """Tell the one from the other.

    Raises
    ------
    UsageError
        If other processes wouldn't see it.
    """
    if isinstance(place, Path):
        return _Folder(place)
    if place.protocol == "memory":
        raise UsageError(
            f"{place}: what is kept in memory is seen by one process, and not by a cluster's",
            hint="name a folder that all workers see, or an address such as s3://bucket/name",
        )
    return _Stored(place)


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        was_there = self._path.exists()
        with locked(self._path):
            try:
                yield
            finally:
                if not was_there:
                    with contextlib.suppress(OSError):  # something came into it
                        self._path.rmdir()

    def check(self, n_shards: int) -> None:
        there = shard_files(self._path) if self._path.is_dir() else ()
        for _, of, path in there:
            _check_division(path, of, n_shards)
        ShardNumber(1, n_shards).path_in(self._path)  # refuses a file of that name
        check_manifest(self._path)
        with storage_errors(self._path):
            self._path.mkdir(parents=True, exist_ok=True)

    def seal(self, settings: Mapping[str, str], shards: Iterable[ShardEntry]) -> None:
        remove_abandoned_folders(self._path)  # of workers that were lost
        write_inventory(self._path, settings, _present(self, self._size, shards))

    def _size(self, name: str) -> int | None:
        """Ask for each by its name: a listing may be older, and all of it takes memory."""
        with storage_errors(self._path):
            try:
                return (self._path / name).stat().st_size
            except FileNotFoundError:
                return None


class _Stored:
    def __init__(self, address: Address) -> None:
        self._address = address

    def __str__(self) -> str:
        return str(self._address)

    def held(self) -> AbstractContextManager[None]:
        check_bucket(self._address)
        return held(self._address)  # of other machines' the first that puts a shard wins

    def check(self, n_shards: int) -> None:
        there = list_objects(self._address, may_be_none=True)
        if "" in there:
            raise OutputExistsError(
                f"{self._address} is an object, and shards go into a folder",
                hint="name a folder with -o",
            )
        for name in there:
            if numbers := numbers_in(name):
                _check_division(self._address / name, numbers[1], n_shards)
        if (entry := there.get(MANIFEST)) is not None:
            manifest = self._address / MANIFEST
            head = read_object(manifest, 0, min(HEAD_BYTES, entry.size_bytes))
            if not begins_as_manifest(head):
                raise not_a_manifest(manifest)

    def seal(self, settings: Mapping[str, str], shards: Iterable[ShardEntry]) -> None:
        there = list_objects(self._address, may_be_none=True)
        sizes = {name: entry.size_bytes for name, entry in there.items()}
        with temporary_folder() as folder:
            write_inventory(folder, settings, _present(self, sizes.get, shards))
            put_object(folder / MANIFEST, self._address / MANIFEST, overwrite=True)


def _check_division(path: Path | Address, of: int, n_shards: int) -> None:
    if of != n_shards:
        raise OutputExistsError(
            f"{path} is one of {of:,} shards, and {n_shards:,} are asked for",
            hint=f"go on with --shards {of}, or name another folder with -o",
        )


def _present(
    place: Destination, size: Callable[[str], int | None], shards: Iterable[ShardEntry]
) -> Iterator[ShardEntry]:
    """Yield shards as long as each is there, in the size that was reported."""
    for shard in shards:
        if size(shard.name) != shard.size_bytes:
            raise StorageError(
                f"{place}: {shard.name} was written, and isn't there as it was",
                hint="the same command makes what is missing",
            )
        yield shard
