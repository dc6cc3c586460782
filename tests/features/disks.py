"""Disks for tests: one that writes down what is done to it, one that fails, and the replay."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from cnnfeat.features import Disk
from cnnfeat.features.journal import Journal


@dataclass(frozen=True)
class Step:
    """One system call. `path` is a file's name at the time of the call."""

    kind: str
    path: str = ""
    data: bytes = b""
    offset: int = 0  # or the size
    target: str = ""


class RecordingDisk(Disk):
    """The real disk, and a list of what was done."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._names: dict[int, str] = {}

    def _add(self, kind: str, handle: int, **values: object) -> None:
        self.steps.append(Step(kind, self._names[handle], **values))

    def open(self, path: Path, *, create: bool = False) -> int:
        handle = super().open(path, create=create)
        self._names[handle] = path.name
        self._add("open", handle)
        return handle

    def write(self, handle: int, data: bytes | memoryview, *, offset: int) -> None:
        super().write(handle, data, offset=offset)
        self._add("write", handle, data=bytes(data), offset=offset)

    def truncate(self, handle: int, size: int) -> None:
        super().truncate(handle, size)
        self._add("truncate", handle, offset=size)

    def allocate(self, handle: int, size: int) -> None:
        super().allocate(handle, size)
        self._add("allocate", handle, offset=size)

    def sync(self, handle: int) -> None:
        # Written down before it is done: what another thread writes meanwhile isn't synced.
        self._add("sync", handle)
        super().sync(handle)

    def sync_folder(self, folder: Path) -> None:
        self.steps.append(Step("sync_folder"))
        super().sync_folder(folder)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.steps.append(Step("replace", source.name, target=target.name))
        for handle, name in self._names.items():
            if name == source.name:
                self._names[handle] = target.name

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.steps.append(Step("remove", path.name))


class QuickDisk(Disk):
    """The real disk without waiting for it: what the system has is enough for most tests."""

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class FailingDisk(QuickDisk):
    """The real disk until its n-th change, which fails, as all after it do."""

    def __init__(self, n_good: int, *, code: int = errno.ENOSPC) -> None:
        self.left = n_good
        self.code = code
        self.failed = 0

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed += 1
            raise OSError(self.code, os.strerror(self.code))

    def write(self, handle: int, data: bytes | memoryview, *, offset: int) -> None:
        if self.left == 0 and len(data) > 1:  # the last write before is torn
            super().write(handle, memoryview(data).cast("B")[: len(data) // 2], offset=offset)
        self._count()
        super().write(handle, data, offset=offset)

    def truncate(self, handle: int, size: int) -> None:
        self._count()
        super().truncate(handle, size)

    def allocate(self, handle: int, size: int) -> None:
        self._count()
        super().allocate(handle, size)

    def sync(self, handle: int) -> None:
        self._count()

    def replace(self, source: Path, target: Path) -> None:
        self._count()
        super().replace(source, target)


class File:
    """The bytes of a file: all of them, and those that a loss of power can't take."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""

    def write(self, data: bytes, offset: int) -> None:
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        self.data = self.data[:size] + bytearray(max(0, size - len(self.data)))


class Replay:
    """The state of a folder after some steps; what it would be after a loss of power, too."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}
        self.synced_names: dict[str, File] = {}

    def apply(self, step: Step) -> None:
        file = self.names.get(step.path)
        if step.kind == "open":
            self.names.setdefault(step.path, File())
        elif step.kind == "write":
            file.write(step.data, step.offset)
        elif step.kind == "truncate":
            file.resize(step.offset)
        elif step.kind == "allocate":
            file.resize(max(step.offset, len(file.data)))
        elif step.kind == "sync":
            file.synced = bytes(file.data)
        elif step.kind == "sync_folder":
            self.synced_names = dict(self.names)
        elif step.kind == "replace":
            self.names[step.target] = self.names.pop(step.path)
        elif step.kind == "remove":
            self.names.pop(step.path, None)
        else:
            raise AssertionError(step.kind)

    def save(self, folder: Path, *, synced_data: bool = False, synced_names: bool = False) -> None:
        folder.mkdir(parents=True)
        for name, file in (self.synced_names if synced_names else self.names).items():
            (folder / name).write_bytes(file.synced if synced_data else file.data)


def n_blocks(path: Path) -> int | None:
    """How many blocks a journal holds."""
    if not path.exists():
        return None
    journal = Journal(path, disk=Disk())
    try:
        return len(journal.read()[1])
    finally:
        journal.close()
