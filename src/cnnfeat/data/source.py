"""What a source of any kind is made of: splits of which rows are asked for, and files.

Only regular files are opened, so that no pipe is waited for. Each is digested; the digests together
are the source's fingerprint. Kept as 16 bytes a file, they say later which file has changed since.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

import numpy as np

from cnnfeat import regular
from cnnfeat.documents import printable
from cnnfeat.errors import DataError, ImageError, UsageError, near_names
from cnnfeat.pixels import unusable
from cnnfeat.records import (
    Batch,
    Fingerprint,
    ImageTarget,
    OnError,
    SkippedSample,
    SplitInfo,
    shown_source,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cnnfeat.data.remote import AnyPath
    from cnnfeat.records import Array, Groups, Json, Labels, Parts, RowNumbers

CONTENTS = "file contents"
LISTED = "names, sizes and tags as a store lists them"
SIZES_AND_TIMES = "names, sizes and times"
CONTENTS_MAX_BYTES = 64 * 2**20  # larger sources go by names, sizes and times
CONTENTS_MAX_FILES = 10_000
_UNREADABLE = bytes(32)
_NAME_BYTES = 8
_STATE_BYTES = 8
_RECORD_BYTES = _NAME_BYTES + _STATE_BYTES
_TAR_PLACE, _TAR_MARK = 257, b"ustar"
_PACKED = (
    *(("gzip", b"\x1f\x8b"), ("bzip2", b"BZh"), ("xz", b"\xfd7zXZ\0"), ("zstd", b"(\xb5/\xfd")),
    *(("7z", b"7z\xbc\xaf\x27\x1c"), ("rar", b"Rar!\x1a\x07"), ("zip", b"PK\x03\x04")),
    *(("zlib", mark) for mark in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")),
)
_UNPACKED_BY = {
    "7z": "7z x FILE",
    "rar": "unrar x FILE",
    "zip": "unzip FILE",
    "zlib": "Python's zlib.decompress does it",
}


class Rows(Protocol):
    """An array read in slices of its first axis: NumPy's, an HDF5 data set, `npy.StoredRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.generic]: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, slots=True)
class RowRequest:
    """Which rows of a split are asked for, and how; see `records.Source.batches`."""

    split: SplitInfo
    rows: range
    batch_size: int
    target: ImageTarget | None
    on_error: OnError


class OpenedSource(ABC):
    """What all sources share. A kind of source says how labels and batches are read.

    Parameters
    ----------
    name, kind : str
        As in `records.Source`.
    splits : mapping of str to SplitInfo
    classes : sequence of str
    states : callable
        Makes the states of the files; called when first needed.
    labels_from : str
        As in `records.Source`.
    close : sequence of callable
        Called on leaving the context.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        splits: Mapping[str, SplitInfo],
        classes: Sequence[str],
        states: Callable[[], FileStates],
        labels_from: str = "",
        close: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.name = name
        self.kind = kind
        self.splits = splits
        self._own = splits  # as the images are, whatever they are brought to
        self._prepared = ImageTarget()
        self.classes = tuple(classes)
        self.labels_from = labels_from
        self.options: Mapping[str, Json] = {}  # set by what opens it
        self.division: Mapping[str, Json] | None = None
        self._states = functools.cache(states)
        self._close = close

    def prepare(self, target: ImageTarget) -> None:
        """Bring every image to a target, unless `batches` is asked for another one."""
        self._prepared = target
        settled = target.size is not None and target.channels is not None
        self.splits = {
            name: dataclasses.replace(
                info,
                image_shape=target.shape_of(info.image_shape),
                uniform=info.uniform or settled,
            )
            for name, info in self._own.items()
        }

    def fingerprint(self) -> Fingerprint:
        """See `records.Source`."""
        return self._states().fingerprint()

    def state(self) -> bytes:
        """See `records.Source`."""
        return self._states().pack()

    def changed_since(self, state: bytes) -> str | None:
        """See `records.Source`."""
        return self._states().changed_since(state)

    def labels(self, split: str) -> Labels | None:
        """See `records.Source`."""
        return self._labels(self._find(split).name)

    def parts(self, split: str) -> Parts | None:
        """See `records.Source`: a source by itself knows of no network."""
        self._find(split)
        return None

    def groups(self, split: str) -> Groups | None:
        """See `records.Source`."""
        return self._groups(self._find(split).name)

    def channels(self, split: str) -> int:
        """See `records.Source`."""
        return self._channels(self._find(split))

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        rows: RowNumbers | None = None,
        target: ImageTarget | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Batch]:
        """See `records.Source`.

        Raises
        ------
        UsageError
            With the splits there are; if `start` and `stop` aren't rows of the split, or
            `batch_size` is less than 1.
        ImageError
            If an image holds NaN, infinite or immense numbers, and isn't to be skipped.
        """
        info = self._find(split)
        if batch_size < 1:
            raise UsageError(f"batch size must be at least 1, not {batch_size}")
        n_rows = info.n_samples if rows is None else len(rows)
        end = n_rows if stop is None else min(stop, n_rows)
        if start < 0 or end < 0:
            raise UsageError(f"rows {start} to {end}: {split} has rows 0 to {n_rows - 1}")
        whole = self._prepared if target is None else target.over(self._prepared)
        asked = RowRequest(info, range(start, end), batch_size, whole, on_error)
        for batch in self._read(asked) if rows is None else self._read_some(asked, rows):
            yield _usable(batch, source=self.name, on_error=on_error)

    def __repr__(self) -> str:
        return shown_source(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for close in self._close:
            close()

    @abstractmethod
    def _labels(self, split: str) -> Labels | None:
        """Read the labels of a split there is."""

    def _groups(self, split: str) -> Groups | None:  # noqa: ARG002 - most sources have none
        """Say which rows of a split there is belong together."""
        return None

    def _channels(self, info: SplitInfo) -> int:
        """Say how many channels hold every image of a split there is."""
        channels = info.image_shape[2]
        return channels - 1 if channels in (2, 4) else channels  # without opacity

    @abstractmethod
    def _read(self, asked: RowRequest) -> Iterator[Batch]:
        """Read rows that are there."""

    def _read_some(self, asked: RowRequest, rows: RowNumbers) -> Iterator[Batch]:
        """Read some rows of a split, runs of neighbours together; `asked` counts among them."""
        for begin in asked.rows[:: asked.batch_size]:
            chosen = rows[begin : min(begin + asked.batch_size, asked.rows.stop)]
            read = (self._read(replace(asked, rows=run)) for run in _runs(chosen))
            pieces = (_renumbered(piece, chosen, begin) for piece in itertools.chain(*read))
            yield from _joined(pieces)

    def _find(self, split: str) -> SplitInfo:
        if split not in self._own:
            raise UsageError(
                f"no split {split!r}; this source has: {', '.join(self._own)}",
                hint=near_names(split, self._own),
            )
        return self._own[split]


def _usable(batch: Batch, *, source: str, on_error: OnError) -> Batch:
    """Leave out images that hold no pixels, or refuse the first of them."""
    bad = unusable(batch.images)
    if not bad:
        return batch
    if on_error == "raise":
        row, reason = next(iter(bad.items()))
        raise ImageError(
            f"{source}, {batch.ids[row]}: {reason}",
            hint="put numbers in their place, or leave such images out",
        )
    return batch.without(bad)


def _runs(rows: RowNumbers) -> Iterator[range]:
    """Find the neighbours in ascending rows: 3, 4, 5, 9 are 3 to 5, and 9."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    for begin, end in itertools.pairwise([0, *ends.tolist(), len(rows)]):
        yield range(int(rows[begin]), int(rows[end - 1]) + 1)


def _renumbered(piece: Batch, chosen: RowNumbers, begin: int) -> Batch:
    """Count a batch among chosen rows, the first of which is number `begin`."""
    start = begin + int(np.searchsorted(chosen, piece.start))
    skipped = tuple(
        SkippedSample(start + one.row - piece.start, one.id, one.reason) for one in piece.skipped
    )
    stop = start + piece.stop - piece.start
    return replace(piece, start=start, stop=stop, skipped=skipped)


def _joined(pieces: Iterable[Batch]) -> Iterator[Batch]:
    """Join consecutive batches whose images have one shape."""
    group: list[Batch] = []
    for piece in pieces:
        known = next((one.images.shape[1:] for one in group if len(one)), None)
        if known is not None and len(piece) and piece.images.shape[1:] != known:
            yield _whole(group)
            group = []
        group.append(piece)
    if group:
        yield _whole(group)


def _whole(group: Sequence[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    full = [one for one in group if len(one)] or group[:1]
    labels = [one.labels for one in full if one.labels is not None]
    return Batch(
        images=np.concatenate([one.images for one in full]),
        labels=np.concatenate(labels) if labels else None,
        ids=tuple(itertools.chain(*(one.ids for one in group))),
        start=group[0].start,
        stop=group[-1].stop,
        skipped=tuple(itertools.chain(*(one.skipped for one in group))),
    )


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


def file_states(files: Mapping[str, AnyPath], *, always_contents: Iterable[str] = ()) -> FileStates:
    """Digest files, by their contents if they are small together, else by size and time.

    Those in a store go by what its listing says. A file that can't be read has a state too, the
    same for all of them.

    Parameters
    ----------
    files : mapping of str to Path or RemotePath
        By the name that stands for each.
    always_contents : iterable of str
        Names of files that go by their contents in any case (a manifest).
    """
    sizes_and_times = {name: _size_and_time(path) for name, path in files.items()}
    size_bytes = sum(size for size, _ in sizes_and_times.values())
    afar = not all(isinstance(path, Path) for path in files.values())
    if not afar and len(files) <= CONTENTS_MAX_FILES and size_bytes <= CONTENTS_MAX_BYTES:
        return FileStates({name: _contents(path) for name, path in files.items()}, CONTENTS)
    digests = {
        name: hashlib.sha256(f"{size} {time}".encode()).digest()
        for name, (size, time) in sizes_and_times.items()
    }
    exceptions = {name: _contents(files[name]) for name in always_contents}
    return FileStates(digests | exceptions, LISTED if afar else SIZES_AND_TIMES)


def array_states(arrays: Mapping[str, Array]) -> FileStates:
    """Digest arrays in memory, each as a file would be."""
    digests = {}
    for name, array in arrays.items():
        digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
        digests[name] = digest.digest()
    return FileStates(digests, CONTENTS)


def _size_and_time(path: AnyPath) -> tuple[int, int | str]:
    if not isinstance(path, Path):
        return (0, 0) if path.entry is None else (path.entry.size_bytes, path.entry.tag)
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _contents(path: AnyPath) -> bytes:
    try:
        return sha256_of(path)
    except DataError:
        return _UNREADABLE


def sha256_of(path: AnyPath) -> bytes:
    """SHA-256 of a regular file's contents.

    Raises
    ------
    DataError
        If it can't be read.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name_digest(name: str) -> bytes:
    return hashlib.sha256(_encode(name)).digest()[:_NAME_BYTES]


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def open_file(path: AnyPath, *, error: type[DataError] = DataError) -> io.BufferedReader:
    """Open a regular file, or one in a store, for reading.

    Raises
    ------
    DataError
        Or its subclass `error`, if there is no such file, it isn't a regular one, or it can't be
        read.
    StorageError
        If a store refuses.
    """
    if not isinstance(path, Path):
        return io.BufferedReader(io.BytesIO(path.read(error=error)))
    try:
        handle = regular.regular_handle(path)
    except regular.IrregularError as problem:
        raise error(f"{path}: {problem}") from problem
    except OSError as problem:
        raise unreadable(path, problem, error=error) from problem
    return io.BufferedReader(_Told(handle, path, error))


class _Told(io.FileIO):
    """A file on a disk that may fail: what the system says then is told as a `DataError`."""

    def __init__(self, handle: int, path: Path, error: type[DataError]) -> None:
        super().__init__(handle)
        self._path, self._error = path, error

    def readinto(self, buffer: Buffer, /) -> int | None:
        """Fill a buffer."""
        try:
            return super().readinto(buffer)
        except OSError as problem:
            raise unreadable(self._path, problem, error=self._error) from problem

    def readall(self) -> bytes:
        """Read to the end."""
        try:
            return super().readall()
        except OSError as problem:
            raise unreadable(self._path, problem, error=self._error) from problem


def packed_by(path: Path) -> tuple[str, str] | None:
    """What a file was compressed or archived with, and how it is unpacked; None if it wasn't."""
    try:
        with open_file(path) as file:
            start = file.read(_TAR_PLACE + len(_TAR_MARK))
    except DataError:
        return None
    name = next((name for name, mark in _PACKED if start.startswith(mark)), None)
    if start[_TAR_PLACE:] == _TAR_MARK or (name and re.search(r"\.(tar\.|t.z2?$)", path.name)):
        return name or "tar", "tar -xf FILE"
    if name is None:
        return None
    return name, _UNPACKED_BY.get(name, f"{name} -dc < FILE > NEW_FILE")


def unreadable(path: Path, problem: OSError, *, error: type[DataError] = DataError) -> DataError:
    """Make the error for a file the system refuses to read."""
    return error(f"{path}: can't be read: {problem.strerror or problem}")


def is_utf8(name: str) -> bool:
    """Whether a name holds no bytes that the system handed over as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture that is a file."""

    id: str  # relative to the source, with `/` between folders
    path: AnyPath
    label: int | None
    group: str | None = None  # pictures of one group belong together

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """Open the file.

        Raises
        ------
        ImageError
            If it can't be, or its name can't be an identifier.
        """
        if not is_utf8(self.id):
            raise ImageError(
                f"{printable(self.name)}: the name is not UTF-8", hint="rename the file"
            )
        return open_file(self.path, error=ImageError)

    @property
    def bytes_afar(self) -> int:
        """How many bytes a request fetches; 0: it is on this machine."""
        entry = None if isinstance(self.path, Path) else self.path.entry
        return 0 if entry is None else entry.size_bytes
