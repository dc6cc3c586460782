"""Addresses: `s3://bucket/folder/name` and its like, apart from what fetches them."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.errors import UsageError, near_names

# What brings each of them, beside fsspec; "": nothing is needed.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "memory": ""}
COPIED_BY = {"s3": "aws s3 cp", "gs": "gcloud storage cp", "memory": "copy"}
FILE = "file"
APPLICATION = "keras:"  # before the name of a model of keras.applications
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_WEB = ("http", "https", "ftp")
# A secret key may have a / in it.
_IN_ADDRESSES = re.compile(r"(?<=://)(?:[^/\s@'\"]*@|[^/\s:'\"]+:[^\s'\"]*@)|(?<=\S)\?[^\s'\"]*")


@dataclass(frozen=True, slots=True)
class Address:
    """A folder or an object in a store; which of them, the store knows.

    `path` is the bucket and the key: "bucket/folder/name", without a `/` at its end.
    """

    protocol: str
    path: str

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The folder that it is in; a bucket's is itself."""
        return Address(self.protocol, self.path.rpartition("/")[0] or self.path)

    def join(self, path: str) -> Address:
        """Follow a relative path from this folder.

        Raises
        ------
        UsageError
            If it leads out of the bucket.
        """
        joined = posixpath.normpath(f"{self.path}/{path}")
        if path.startswith("/") or joined.partition("/")[0] != self.path.partition("/")[0]:
            raise UsageError(f"{path!r} is no path from {self}, within its bucket")
        return Address(self.protocol, joined)

    def __truediv__(self, key: str) -> Address:
        return Address(self.protocol, f"{self.path}/{key}") if key else self

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"


def is_address(text: str) -> bool:
    """Whether a text is written as an address is, of whatever protocol."""
    return _ADDRESS.match(text) is not None


def is_stored(text: str) -> bool:
    """Whether a text is written as an address is, and doesn't name a file of this machine."""
    return is_address(text) and not text.lower().startswith(f"{FILE}://")


def local_name(text: str, what: str) -> str:
    """A path as it is given, or as `file://` has it.

    Raises
    ------
    UsageError
        If it is another address: what is meant (`what`) is read from this machine alone.
    """
    if not is_address(text):
        return text
    place = place_of(text)
    if isinstance(place, Address):
        raise UsageError(
            f"{place}: {what} is read from this machine alone",
            hint=f"download it first: {COPIED_BY[place.protocol]} {place} .",
        )
    return str(place)


def store_address(text: str) -> Address:
    """Read the address of something in a store; raises as `place_of` does."""
    place = place_of(text)
    if isinstance(place, Path):
        raise UsageError(f"{text}: is no address of a store")
    return place


def place_of(text: str) -> Path | Address:
    """What a text names: a path, which `file://` is too, or an address.

    Raises
    ------
    UsageError
        If it is an address that isn't read or written here, or says more than where something is.
    """
    found = _ADDRESS.match(text)
    if found is None:
        return Path(text)
    protocol, rest = found[1].lower(), found[2]
    if protocol in _WEB:
        raise UsageError(
            f"{scrubbed(text)}: nothing is read from web addresses",
            hint="download it first: curl -O ADDRESS; a list of addresses: wget -i LIST",
        )
    if protocol == FILE:
        return _local(rest, text)
    if protocol not in PACKAGES:
        allowed = ", ".join(f"{name}://" for name in (*PACKAGES, FILE))
        raise UsageError(
            f"{scrubbed(text)}: no address known here; {allowed} are",
            hint=near_names(protocol, PACKAGES),
        )
    return Address(protocol, _checked(rest, text))


def _local(rest: str, text: str) -> Path:
    if not rest.startswith("/"):
        raise UsageError(
            f"{scrubbed(text)}: the address of a file has three slashes: file:///folder/name"
        )
    return Path(rest)


def _checked(rest: str, text: str) -> str:
    path = rest.rstrip("/")
    bucket, parts = path.partition("/")[0], path.split("/")
    if "@" in bucket or (":" in bucket and "@" in path) or "?" in path:
        raise UsageError(
            f"{scrubbed(text)}: an address says where something is, and nothing of who asks",
            hint="leave out what stands before @ and after ?; credentials are taken from the "
            "environment",
        )
    if {".", ".."} & set(parts):
        raise UsageError(f"{text}: an address has no folders . and ..")
    if "" in parts[1:]:  # on their way, clients drop them
        raise UsageError(f"{text}: an address has one / between two names, and this has more")
    if not path.strip("/") or path.startswith("/") or not path.isprintable():
        raise UsageError(f"{text!r} names no bucket; s3://bucket/folder does")
    return path


def scrubbed(text: str) -> str:
    """Leave out of the addresses in a text what could be a secret: user:password@, ?query."""
    return _IN_ADDRESSES.sub("", text)
