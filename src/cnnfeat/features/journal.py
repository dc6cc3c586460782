"""The journal beside a file in the making: what was meant, and which blocks are done.

One record a line, with a checksum in front, so that a torn last line is seen and cut off.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from cnnfeat.documents import Count, parse_document, take_up
from cnnfeat.errors import UsageError
from cnnfeat.features.disk import Disk
from cnnfeat.features.format import Block, BlockNames
from cnnfeat.records import Json, SkippedSample
from cnnfeat.regular import open_regular

_KIND, _VERSION = "cnnfeat-journal", 1
T = TypeVar("T")


class _HeaderLine(TypedDict):
    kind: Literal["cnnfeat-journal"]
    version: int
    settings: dict[str, str]
    arrays: dict[str, object]
    created: str
    overwrite: bool
    source_state: str  # in base 64


class _BlockLine(TypedDict):
    split: str
    start: Count
    stop: Count
    rows: Count
    sums: tuple[Count, ...]
    overflows: tuple[Count, ...]
    ids: list[str]
    skipped: list[tuple[Count, str, str]]


@dataclass(frozen=True, slots=True)
class Header:
    """What a run was meant to make."""

    settings: Mapping[str, str]
    arrays: Mapping[str, object]
    created: str
    overwrite: bool
    source_state: bytes

    def check_same(self, path: Path, now: Mapping[str, str]) -> None:
        """Refuse to go on with an output that was begun with other settings; name the first.

        Raises
        ------
        UsageError
            With the setting's name and both values.
        """
        before = self.settings
        if before.keys() != now.keys():
            raise UsageError(
                f"{path} was begun by another version of cnnfeat, which compares other settings",
                hint="start over with --overwrite",
            )
        for name, value in now.items():
            if before[name] != value:
                raise UsageError(
                    f"{path} was begun with another {name}: {before[name]}, and now it is {value}",
                    hint="give the same again, or start over with --overwrite",
                )


class Journal:
    """Read from the start, then appended to."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._handle = disk.open(path, create=True)
        self._end = 0
        self.header_end = 0

    def close(self) -> None:
        """Close the file; what was appended stays."""
        if self._handle >= 0:
            self._disk.close(self._handle)
            self._handle = -1

    @property
    def is_empty(self) -> bool:
        """Whether it holds no block."""
        return self._end == self.header_end

    def remove(self) -> None:
        """Remove the file."""
        self._disk.remove(self.path)

    def begin(self, header: Header) -> None:
        """Empty the journal and write its header."""
        self._disk.truncate(self._handle, 0)
        self._end = 0
        self._append(
            {
                "kind": _KIND,
                "version": _VERSION,
                "settings": dict(header.settings),
                "arrays": header.arrays,  # type: ignore[dict-item]
                "created": header.created,
                "overwrite": header.overwrite,
                "source_state": base64.b64encode(header.source_state).decode("ascii"),
            }
        )
        self.header_end = self._end
        self.sync()

    def append(self, block: Block, names: BlockNames) -> None:
        """Add a finished block."""
        self._append(
            {
                "split": block.split,
                "start": block.start,
                "stop": block.stop,
                "rows": block.n_rows,
                "sums": block.sums,
                "overflows": block.overflows,
                "ids": names.ids,
                "skipped": [[item.row, item.id, item.reason] for item in names.skipped],
            }
        )

    def sync(self) -> None:
        """Bring what was appended to the medium."""
        self._disk.sync(self._handle)

    def read(self) -> tuple[Header | None, list[tuple[Block, int]]]:
        """Read header and blocks; with each block the length of the journal up to and with it.

        Ends at the first line that doesn't hold, as a crash leaves it.
        """
        lines = _lines(self.path)
        body, end = next(lines, (b"", 0))
        header = _header(body)
        if header is None:
            return None, []
        self._end = self.header_end = end
        blocks: list[tuple[Block, int]] = []
        for record, self._end in _blocks(lines):
            block = Block(
                record["split"],
                record["start"],
                record["stop"],
                record["rows"],
                record["sums"],
                record["overflows"],
            )
            blocks.append((block, self._end))
        return header, blocks

    def cut(self, end: int) -> None:
        """Drop everything after byte `end`."""
        self._disk.truncate(self._handle, end)
        self._end = end

    def names(self) -> Iterator[BlockNames]:
        """Read the texts of all blocks, one after the other."""
        lines = _lines(self.path)
        next(lines)
        for record, _ in _blocks(lines):
            yield BlockNames(
                record["split"],
                tuple(record["ids"]),
                tuple(SkippedSample(*item) for item in record["skipped"]),
            )

    def _append(self, record: Mapping[str, Json]) -> None:
        body = json.dumps(record, separators=(",", ":")).encode("ascii")
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        self._disk.write(self._handle, line, offset=self._end)
        self._end += len(line)


def read_header(path: Path) -> Header | None:
    """Read what an interrupted run was meant to make; None where there is no journal of one."""
    body, _ = next(_lines(path), (b"", 0))
    return _header(body)


def _header(body: bytes) -> Header | None:
    record = _taken(_HeaderLine, body)
    if record is None or record["version"] != _VERSION:
        return None
    try:
        state = base64.b64decode(record["source_state"], validate=True)
    except ValueError:
        return None
    return Header(
        settings=record["settings"],
        arrays=record["arrays"],
        created=record["created"],
        overwrite=record["overwrite"],
        source_state=state,
    )


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """The records as they stand there, and where each ends, up to the first that is torn."""
    end = 0
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for line in file:
            end += len(line)
            body = line[9:-1]
            if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
                return
            yield body, end


def _blocks(lines: Iterator[tuple[bytes, int]]) -> Iterator[tuple[_BlockLine, int]]:
    for body, end in lines:
        record = _taken(_BlockLine, body)
        if record is None:
            return
        yield record, end


def _taken(kind: type[T], body: bytes) -> T | None:
    """A record as its kind has it; None where it isn't of that kind."""
    try:
        return take_up(kind, parse_document(body))
    except ValueError:
        return None
