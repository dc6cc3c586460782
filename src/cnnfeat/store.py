"""Object stores, through fsspec: what is listed, read and put there, and how refusals are told.

The clients try time-outs, broken connections and answers of 5xx again, with growing pauses; what
is forbidden or missing is told at once. Credentials are the environment's, as the client of the
store takes them; none is asked for here, kept or shown.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Protocol

from cnnfeat.address import PACKAGES, Address, scrubbed
from cnnfeat.errors import OutputExistsError, StorageError, UsageError

REQUESTS = 32  # at one time
_TRIES = 3  # of what a client's own attempts don't cover: an answer that is cut short
_PIECE_BYTES = 8 * 2**20
_TAKEN = re.compile(r"\((PreconditionFailed|412)\)")  # as a client says it
_TAGS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
_FAILURES = {  # beside OSError, by module
    "s3": (
        "botocore.exceptions:BotoCoreError",
        "botocore.exceptions:ClientError",
        "botocore.parsers:ResponseParserError",
    ),
    "gs": ("google.auth.exceptions:GoogleAuthError", "gcsfs.retry:HttpError"),
    "memory": (),
}
_CREDENTIALS = {
    "s3": "credentials are taken from the environment: AWS_PROFILE, AWS_ACCESS_KEY_ID and others",
    "gs": "credentials are taken from the environment: GOOGLE_APPLICATION_CREDENTIALS and others",
    "memory": "",
}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object, as a listing shows it."""

    size_bytes: int
    tag: str  # changes with the contents: an ETag, else a time


class _Files(Protocol):
    """What is used of fsspec's file systems."""

    def find(self, path: str, *, detail: bool) -> Mapping[str, Mapping[str, object]]: ...

    def cat_file(self, path: str, *, start: int, end: int) -> bytes: ...

    def put_file(self, lpath: str, rpath: str, *, mode: str) -> None: ...

    def info(self, path: str) -> Mapping[str, object]: ...


def list_objects(address: Address, *, may_be_none: bool = False) -> dict[str, StoredObject]:
    """List all that is below an address, by key relative to it; an object is "" in itself.

    Raises
    ------
    StorageError
        If there is nothing, unless there `may_be_none`; if the store refuses.
    """
    with _told(address) as files:
        found = files.find(address.path, detail=True)
    entries = {}
    for name, info in found.items():
        key = name.strip("/").removeprefix(address.path).removeprefix("/")
        if info["type"] == "file" and not name.endswith("/"):
            entries[key] = _entry(info)
    if not entries and not may_be_none:
        raise StorageError(f"{address}: there is nothing there")
    return entries


def _entry(info: Mapping[str, object]) -> StoredObject:
    tag = next((info[name] for name in _TAGS if info.get(name)), "")
    if isinstance(tag, datetime):  # or seconds, by the way that it was asked for
        tag = tag.timestamp()
    return StoredObject(int(str(info["size"])), str(tag).strip('"'))


def stat_object(address: Address) -> StoredObject | None:
    """What a listing would show of an object; None: there is none.

    Raises
    ------
    StorageError
        If the store refuses.
    """
    with _told(address) as files:
        try:
            info = files.info(address.path)
        except FileNotFoundError:
            return None
    return _entry(info) if info["type"] == "file" else None


def check_bucket(address: Address) -> None:
    """Make sure that there is a bucket; in memory, it comes with what is put there.

    Raises
    ------
    StorageError
        If there is none, or the store refuses.
    """
    bucket = Address(address.protocol, address.path.partition("/")[0])
    if address.protocol != "memory":
        with _told(bucket) as files:
            files.info(bucket.path)


def read_object(address: Address, start: int, stop: int) -> bytes:
    """Read bytes of an object.

    Raises
    ------
    StorageError
        If the store refuses, or the object has become shorter.
    """
    if start == stop:
        return b""
    with _told(address) as files:
        data = files.cat_file(address.path, start=start, end=stop)
    if len(data) != stop - start:
        raise StorageError(f"{address}: has changed since it was listed")
    return data


def copy_object(address: Address, entry: StoredObject, path: Path) -> None:
    """Copy an object into a local file, a piece at a time.

    Raises
    ------
    StorageError
        As `read_object` does; if the disk refuses.
    """
    try:
        with path.open("wb") as file:
            for start in range(0, entry.size_bytes, _PIECE_BYTES):
                stop = min(start + _PIECE_BYTES, entry.size_bytes)
                file.write(read_object(address, start, stop))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error
    if stat_object(address) != entry:
        raise StorageError(f"{address}: has changed while it was read")


def put_object(path: Path, address: Address, *, overwrite: bool) -> None:
    """Put a file into a store, whole or not at all.

    Of several that put one object without `overwrite`, the first wins where the store can tell
    (`If-None-Match`).

    Raises
    ------
    OutputExistsError
        If there is another object of that name by now, and it isn't to be replaced.
    StorageError
        If the store refuses.
    """
    with _told(address) as files:
        if overwrite:
            files.put_file(str(path), address.path, mode="overwrite")
        else:
            _create(files, path, address)
    found, size_bytes = stat_object(address), path.stat().st_size
    if found is None or found.size_bytes != size_bytes:
        there = "nothing" if found is None else f"{found.size_bytes:,} bytes"
        raise StorageError(f"{address}: {size_bytes:,} bytes were put there, and it has {there}")


def _create(files: _Files, path: Path, address: Address) -> None:
    """Put a file unless there is an object of its name; that may be our own.

    An attempt whose answer was lost has put it, and the next one finds it.
    """
    try:
        files.put_file(str(path), address.path, mode="create")
    except OSError as error:
        unknown = error.errno == errno.ENOSYS  # If-None-Match, to an older store
        if unknown and stat_object(address) is None:
            files.put_file(str(path), address.path, mode="overwrite")
            return
        told = isinstance(error, FileExistsError) or _TAKEN.search(f"{error} {error.__cause__}")
        if not unknown and not told:
            raise
        if not _holds(address, path):
            raise exists_error(address) from error


def exists_error(address: Address) -> OutputExistsError:
    """Make the error for an object that stands where one would be put."""
    return OutputExistsError(
        f"{address} exists", hint="--overwrite replaces it; -o writes elsewhere"
    )


def _holds(address: Address, path: Path) -> bool:
    """Whether an object has the bytes of a file."""
    entry, size_bytes = stat_object(address), path.stat().st_size
    if entry is None or entry.size_bytes != size_bytes:
        return False
    with path.open("rb") as file:
        return all(
            read_object(address, start, min(start + _PIECE_BYTES, size_bytes))
            == file.read(_PIECE_BYTES)
            for start in range(0, size_bytes, _PIECE_BYTES)
        )


@functools.cache
def _files(protocol: str, process: int) -> _Files:  # noqa: ARG001 - none outlives a fork
    """Make the client of a store, once a process."""
    try:
        import fsspec
        from fsspec.config import conf

        if PACKAGES[protocol]:
            import_module(PACKAGES[protocol])
    except ImportError as error:
        missing = error.name or "fsspec"
        extra = f"cnnfeat[{protocol}]" if PACKAGES[protocol] else "fsspec"
        raise UsageError(
            f"{protocol}:// needs {missing}, which is not installed", hint=f"pip install '{extra}'"
        ) from error
    if protocol == "s3":
        given = conf.get("s3", {}).get("config_kwargs", {})
        connections = {"config_kwargs": {"max_pool_connections": REQUESTS, **given}}
    else:
        connections = {}
    files = fsspec.filesystem(
        protocol, skip_instance_cache=True, use_listings_cache=False, **connections
    )
    if protocol == "s3":
        files.retries = _TRIES
    found: _Files = files
    return found


def forget_clients() -> None:
    """Make them anew when they are next needed: the environment has changed."""
    _files.cache_clear()


@functools.cache
def _failures(protocol: str) -> tuple[type[Exception], ...]:
    """What a client raises where the store, or the way to it, refuses."""
    found: list[type[Exception]] = [OSError]
    for place in _FAILURES[protocol]:
        module, name = place.split(":")
        found.append(getattr(import_module(module), name))
    if protocol != "memory":
        found.append(import_module("aiohttp").ClientError)
    return tuple(found)


@contextmanager
def _told(address: Address) -> Iterator[_Files]:
    """Give the client of an address's store; what it raises becomes ours, with the address."""
    try:
        yield _files(address.protocol, os.getpid())
    except (StorageError, UsageError):
        raise
    except _failures(address.protocol) as error:
        hint = ""
        if isinstance(error, PermissionError) or "redentials" in type(error).__name__:
            hint = _CREDENTIALS[address.protocol]
        raise StorageError(f"{address}: {_reason(error)}", hint=hint) from error


def _reason(error: Exception) -> str:
    """Say in a few words why a store gave or took nothing."""
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(scrubbed(text).split()) or type(error).__name__
    if isinstance(error, PermissionError):
        return f"forbidden: {text}"
    if isinstance(error, FileNotFoundError):
        return f"not found: {text}"
    return text
