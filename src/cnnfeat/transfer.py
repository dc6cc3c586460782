"""Whole files between a store and this machine: outputs are written here and put there when they
are complete, inputs are copied to here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnfeat.address import Address, is_address, place_of
from cnnfeat.errors import StorageError, UsageError
from cnnfeat.files import check_space, locked
from cnnfeat.store import (
    StoredObject,
    check_bucket,
    copy_object,
    exists_error,
    list_objects,
    put_object,
    stat_object,
)
from cnnfeat.temporary import temporary_folder

_COPIED = (".h5", ".json")  # of a folder
_log = logging.getLogger("cnnfeat")
_addresses: dict[Path, Address] = {}  # of copies that are there


def check_address(address: Address, *, overwrite: bool, resume: bool = False) -> None:
    """Make sure, before any long work, that something can be put at an address.

    Raises
    ------
    OutputExistsError
        If an object stands there, and neither `overwrite` nor `resume` says what to do.
    StorageError
        If there is no such bucket, or it is out of reach.
    """
    check_bucket(address)
    if not overwrite and not resume and stat_object(address) is not None:
        raise exists_error(address)


@contextmanager
def outgoing(address: Address, *, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """Yield where a file is to be written; what is there at the end is put at its address.

    The object is there whole or not at all. What an interrupted run leaves on this machine,
    `resume` goes on with; a file that is complete and could not be put is kept, too.

    Raises
    ------
    OutputExistsError, StorageError
        As `check_address` does; if the file can't be put.
    """
    check_address(address, overwrite=overwrite, resume=resume)
    local = _local_of(address.parent) / address.name
    if resume and not local.exists() and (entry := stat_object(address)) is not None:
        _copy(address, entry, local)
    _log.info("%s is written to %s first", address, local.parent)
    yield local
    try:
        put_object(local, address, overwrite=overwrite)
    except StorageError as error:
        raise StorageError(
            f"{error.message}; the file is complete, and kept: {local}",
            hint=error.hint or "the same command with --resume puts it there",
        ) from error
    local.unlink()
    with contextlib.suppress(OSError):  # there may be others
        local.parent.rmdir()
    _log.info("%s is put there whole", address)


@contextmanager
def held(folder: Address) -> Iterator[None]:
    """Let no other process of this user and machine write to a folder of a store meanwhile.

    Raises
    ------
    LockedError
        At once, if one does.
    """
    with locked(_local_of(folder), name=folder):
        yield


def _local_of(folder: Address) -> Path:
    """Where what goes into a folder of a store lies on this machine."""
    return _own_folder() / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def _own_folder() -> Path:
    """A folder that is found again, and that nobody else can write to."""
    folder = Path(tempfile.gettempdir()) / f"cnnfeat-outgoing-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise StorageError(f"can't write {folder}: {error.strerror}") from error
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise StorageError(
            f"{folder}: others can write to it", hint="let TMPDIR name a folder of your own"
        )
    return folder


@contextmanager
def incoming(place: Path | str | Address) -> Iterator[Path]:
    """Yield a path as it is; of an address, that of a copy, which is removed at the end.

    Of a folder, the shards right in it and their manifest are copied.

    Raises
    ------
    StorageError
        If there is nothing at the address, the store refuses, or the disk is full.
    UsageError
        If it is no address that is read here.
    """
    if isinstance(place, str) and is_address(place):
        place = place_of(place)
    if not isinstance(place, Address):
        yield Path(place)
        return
    entries = list_objects(place)
    with temporary_folder() as scratch:
        local = scratch / place.protocol / place.path
        if "" in entries:
            _copy(place, entries[""], local)
        else:
            for name, entry in _right_in(place, entries).items():
                _copy(place / name, entry, local / name)
        _addresses[local] = place
        try:
            yield local
        finally:
            del _addresses[local]


def send_back(folder: Path, name: str) -> None:
    """Put a file that was made in a copy of a folder into the folder; elsewhere it is there.

    Raises
    ------
    StorageError
        If the store refuses.
    """
    if (address := _addresses.get(folder)) is not None:
        put_object(folder / name, address / name, overwrite=True)


def name_of(path: Path) -> str:
    """What a file is called in what is written of it: by its address, if it is a copy."""
    return str(_addresses.get(path, path))


def _right_in(folder: Address, entries: dict[str, StoredObject]) -> dict[str, StoredObject]:
    found = {
        name: entry
        for name, entry in entries.items()
        if "/" not in name and name.endswith(_COPIED) and name.isprintable()
    }
    if not found:
        raise UsageError(f"{folder}: is a folder, and there is no feature file right in it")
    return found


def _copy(address: Address, entry: StoredObject, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path, entry.size_bytes)
    _log.info("%s: copying %s bytes", address, f"{entry.size_bytes:,}")
    part = path.with_name(f"{path.name}.copied")
    copy_object(address, entry, part)
    part.replace(path)
