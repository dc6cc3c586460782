"""Picture files as a source: a single one, or those a folder holds.

A folder says which pictures there are, in which order, with which labels; several threads decode
them at once.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from cnnfeat.data.decode import decode_stream, is_image, prepare_pillow
from cnnfeat.data.fitting import fit_depth, fit_to_target
from cnnfeat.data.source import (
    FileStates,
    OpenedSource,
    RowRequest,
    file_states,
    open_regular,
    printable,
    unreadable,
)
from cnnfeat.errors import DataError, ImageError, UsageError
from cnnfeat.records import Batch, ImageTarget, SkippedSample, SplitInfo

if TYPE_CHECKING:
    from cnnfeat.records import Array, Groups, Labels, RowNumbers

_MAX_WORKERS = 16
_READ_AHEAD_BYTES = 128 * 2**20  # of decoded images, if all are like the first
_SMALL_PIXELS = 4096  # below, decoding is mostly Python, and threads get in each other's way
_MAX_CHUNK = 16  # images a thread decodes before it is asked again
# A file with one of these endings claims to be a picture, and is an error if it isn't one.
_ENDINGS = frozenset(
    f".{ending}"
    for endings in (
        *("png jpg jpeg jpe jfif", "bmp gif webp tif tiff", "pgm ppm pbm pnm"),
        *("avif heic heif hif", "dcm"),
    )
    for ending in endings.split()
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FOLDER = "folder"  # --group-by: the folder that a picture lies in
_NOT_OURS = ("__MACOSX", "__pycache__")
_NUMBER = re.compile(r"([0-9]+)")
_log = logging.getLogger("cnnfeat")


class EncodedImage(Protocol):
    """One picture of a source, not decoded yet."""

    @property
    def id(self) -> str: ...

    @property
    def label(self) -> int | None: ...

    @property
    def name(self) -> str: ...  # for messages

    def open(self) -> BinaryIO: ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture that is a file."""

    id: str  # relative to the source, with `/` between folders
    path: Path
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
        if not _is_utf8(self.id):
            raise ImageError(
                f"{printable(self.name)}: the name is not UTF-8", hint="rename the file"
            )
        return open_regular(self.path, error=ImageError)


@dataclass(frozen=True, slots=True)
class Listing:
    """All pictures of a source."""

    splits: dict[str, tuple[ImageFile, ...]]
    classes: tuple[str, ...]


def open_image_folder(
    folder: Path, *, max_pixels: int, group_by: str | None = None
) -> ImageFileSource:
    """Open a folder of pictures; see `list_folder` for its layout.

    Raises
    ------
    UsageError
        If they shall be grouped by anything but "folder".
    """
    if group_by not in (None, FOLDER):
        raise UsageError(
            f"--group-by {group_by}: {folder} is a folder, and its pictures go by {FOLDER} alone",
            hint=f"--group-by {FOLDER}, or list the pictures in a CSV file with such a column",
        )
    listing = list_folder(folder, grouped=group_by is not None)
    return _open(folder, "folder", listing=listing, max_pixels=max_pixels)


def open_image(path: Path, *, max_pixels: int) -> ImageFileSource:
    """Open a single picture as a source of one."""
    listing = Listing({"all": (ImageFile(path.name, path, None),)}, ())
    return _open(path, "image", listing=listing, max_pixels=max_pixels)


def _open(path: Path, kind: str, *, listing: Listing, max_pixels: int) -> ImageFileSource:
    files = {file.id: file.path for split in listing.splits.values() for file in split}
    return ImageFileSource(
        printable(str(path)),
        kind,
        images=listing.splits,
        classes=listing.classes,
        states=lambda: file_states(files),
        max_pixels=max_pixels,
    )


class ImageFileSource(OpenedSource):
    """A source made of encoded pictures.

    Pixels of a split are brought to the depth of its first picture: 8-bit pictures among 16-bit
    ones become 16-bit, and the other way round.

    Parameters
    ----------
    name, kind : str
        As in `records.Source`.
    images : mapping of str to sequence of EncodedImage
        The pictures of each split.
    classes, states, close
        As in `OpenedSource`.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        images: Mapping[str, Sequence[EncodedImage]],
        classes: Sequence[str],
        states: Callable[[], FileStates],
        max_pixels: int,
        close: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._files = images
        self._max_pixels = max_pixels
        splits = {split: self._describe(split, name=name) for split in self._files}
        super().__init__(name, kind, splits=splits, classes=classes, states=states, close=close)

    def _labels(self, split: str) -> Labels | None:
        return _labels(self._files[split])

    def _groups(self, split: str) -> Groups | None:
        if _group_of(self._files[split][0]) is None:
            return None
        return np.array([self._group_numbers[_group_of(one)] for one in self._files[split]])

    @functools.cached_property
    def _group_numbers(self) -> dict[str | None, int]:
        """Number the groups of all splits."""
        groups = {_group_of(one) or "" for files in self._files.values() for one in files}
        return {group: number for number, group in enumerate(sorted(groups))}

    def _read(self, asked: RowRequest) -> Iterator[Batch]:
        files = self._files[asked.split.name]
        return self._read_files(asked, files[asked.rows.start : asked.rows.stop])

    def _read_some(self, asked: RowRequest, rows: RowNumbers) -> Iterator[Batch]:
        files = self._files[asked.split.name]
        chosen = rows[asked.rows.start : asked.rows.stop].tolist()
        return self._read_files(asked, [files[row] for row in chosen])

    def _read_files(self, asked: RowRequest, files: Sequence[EncodedImage]) -> Iterator[Batch]:
        info, target = asked.split, asked.target
        prepare_pillow(self._max_pixels)
        read = functools.partial(self._read_file, dtype=np.dtype(info.dtype), target=target)
        pending = _Pending(position=asked.rows.start)
        small = info.image_shape[0] * info.image_shape[1] < _SMALL_PIXELS
        for file, image in _decoded(
            files,
            read,
            image_bytes=max(_n_bytes(info, None), _n_bytes(info, target)),
            n_workers=1 if small else min(_MAX_WORKERS, _n_cpus()),
        ):
            if isinstance(image, ImageError):
                if asked.on_error == "raise":
                    raise image
                pending.skip(file, image)
            else:
                if not pending.takes(image):
                    yield pending.batch(info, target)
                    pending = _Pending(position=pending.stop)
                pending.add(file, image)
            if pending.n_positions == asked.batch_size:
                yield pending.batch(info, target)
                pending = _Pending(position=pending.stop)
        if pending.n_positions:
            yield pending.batch(info, target)

    def _read_file(
        self, file: EncodedImage, *, dtype: np.dtype[np.generic], target: ImageTarget | None
    ) -> Array:
        image = self._decode(file)
        try:
            fitted: Array = fit_to_target(fit_depth(image[np.newaxis], dtype), target)[0]
        except DataError as error:
            raise ImageError(f"{file.name}: {error.message}", hint=error.hint) from error
        return fitted

    def _decode(self, file: EncodedImage) -> Array:
        with file.open() as stream:
            return decode_stream(stream, name=file.name, max_pixels=self._max_pixels)

    def _describe(self, split: str, *, name: str) -> SplitInfo:
        """Describe a split by its first picture that can be read."""
        prepare_pillow(self._max_pixels)
        files = self._files[split]
        first_error: ImageError | None = None
        for file in files:
            try:
                image = self._decode(file)
            except ImageError as error:
                first_error = first_error or error
                continue
            height, width, channels = image.shape
            return SplitInfo(
                name=split,
                n_samples=len(files),
                image_shape=(height, width, channels),
                dtype=image.dtype.name,
                has_labels=file.label is not None,
            )
        raise DataError(
            f"{name}: none of the {len(files):,} pictures can be read; the first: {first_error}",
            hint=first_error.hint if first_error else "",
        ) from first_error


@dataclass(slots=True)
class _Pending:
    """A batch that is being filled."""

    position: int
    files: list[EncodedImage] = field(default_factory=list)
    images: list[Array] = field(default_factory=list)
    skipped: list[SkippedSample] = field(default_factory=list)

    @property
    def n_positions(self) -> int:
        return len(self.files) + len(self.skipped)

    @property
    def stop(self) -> int:
        return self.position + self.n_positions

    def takes(self, image: Array) -> bool:
        return not self.images or self.images[0].shape == image.shape

    def add(self, file: EncodedImage, image: Array) -> None:
        self.files.append(file)
        self.images.append(image)

    def skip(self, file: EncodedImage, error: ImageError) -> None:
        reason = printable(error.message).removeprefix(f"{printable(file.name)}: ")
        self.skipped.append(SkippedSample(self.stop, printable(file.id), reason))
        _log.debug("left out %s: %s", printable(file.id), reason)

    def batch(self, info: SplitInfo, target: ImageTarget | None) -> Batch:
        shape = _fitted_shape(info, target)
        return Batch(
            images=np.stack(self.images) if self.images else np.empty((0, *shape), info.dtype),
            labels=_labels(self.files) if info.has_labels else None,
            ids=tuple(file.id for file in self.files),
            start=self.position,
            stop=self.stop,
            skipped=tuple(self.skipped),
        )


def _labels(files: Sequence[EncodedImage]) -> Labels | None:
    labels = [file.label for file in files]
    if None in labels:
        return None
    return np.array(labels, np.int64)


def _fitted_shape(info: SplitInfo, target: ImageTarget | None) -> tuple[int, int, int]:
    height, width, channels = info.image_shape
    if target is None:
        return height, width, channels
    return *(target.size or (height, width)), target.channels or channels


def _n_bytes(info: SplitInfo, target: ImageTarget | None) -> int:
    return math.prod(_fitted_shape(info, target)) * np.dtype(info.dtype).itemsize


def _decoded(
    files: Sequence[EncodedImage],
    read: Callable[[EncodedImage], Array],
    *,
    image_bytes: int,
    n_workers: int,
) -> Iterator[tuple[EncodedImage, Array | ImageError]]:
    """Decode pictures in several threads, in order, a bounded number of them ahead."""

    def read_chunk(
        chunk: Sequence[EncodedImage],
    ) -> list[tuple[EncodedImage, Array | ImageError]]:
        return [(file, _read_or_error(file, read)) for file in chunk]

    ahead = 2 * n_workers
    chunk_size = max(1, min(_MAX_CHUNK, _READ_AHEAD_BYTES // (ahead * image_bytes)))
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="cnnfeat-decode")
    waiting: deque[Future[list[tuple[EncodedImage, Array | ImageError]]]] = deque()
    try:
        for begin in range(0, len(files), chunk_size):
            waiting.append(pool.submit(read_chunk, list(files[begin : begin + chunk_size])))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_or_error(file: EncodedImage, read: Callable[[EncodedImage], Array]) -> Array | ImageError:
    try:
        return read(file)
    except ImageError as error:
        return error


def _n_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Sort key that puts `2.png` before `10.png`; texts and numbers alternate, the name ends ties.

    A number is a run of the digits 0 to 9. Of two without leading zeros the longer is the larger,
    so that no run is too long to be compared.
    """
    parts = enumerate(_NUMBER.split(name))
    return tuple(_number(part) if i % 2 else part for i, part in parts), name


def _number(digits: str) -> tuple[int, str]:
    significant = digits.lstrip("0")
    return len(significant), significant


def list_folder(root: Path, *, grouped: bool = False) -> Listing:
    """List the pictures below a folder.

    Sub-folders are classes; where all of them have names like `train`, `val` and `test`, they are
    splits, and theirs are classes. A folder without sub-folders has no labels. Hidden files and
    folders are left out; so are files that neither claim to be pictures by their ending nor are. A
    picture's group, if asked for, is the folder that it lies in, seen from its class: those called
    `patient7` in two classes are one.

    Raises
    ------
    DataError
        If there are no pictures, a class has none, or pictures lie beside class folders.
    """
    folders, _ = _scan(root)
    splits = _find_splits([folder for folder in folders if not folder.samefile(root)])
    found = {
        split: _list_split(folder, root) for split, folder in (splits or {"all": root}).items()
    }
    names = sorted({name for classes in found.values() for name in classes or ()}, key=natural_key)
    if any(classes is None for classes in found.values()) and names:
        raise DataError(
            f"{root}: some splits have class folders and some have not: {', '.join(found)}"
        )
    if not names:
        return Listing(
            {split: _flat(splits.get(split, root), root, grouped=grouped) for split in found}, ()
        )
    labels = {name: label for label, name in enumerate(names)}
    return Listing(
        {
            split: tuple(
                ImageFile(
                    _id(path, root),
                    path,
                    labels[name],
                    _group(path, splits.get(split, root) / name) if grouped else None,
                )
                for name in sorted(classes or {}, key=natural_key)
                for path in (classes or {})[name]
            )
            for split, classes in found.items()
        },
        tuple(names),
    )


def _find_splits(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders that are splits, `train` first; none if any folder isn't one."""
    found: dict[str, Path] = {}
    for folder in folders:
        split = _SPLITS.get(folder.name.lower())
        if split is None or split in found:
            return {}
        found[split] = folder
    if found.keys() <= {"validation"}:
        return {}
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _list_split(folder: Path, root: Path) -> dict[str, list[Path]] | None:
    """Pictures by class; None where there are no class folders."""
    found, files = _scan(folder)
    above = (_identity(root), _identity(folder))
    folders = [sub for sub in found if not _leads_back(sub, above)]
    if not folders:
        return None
    classes = {_utf8_name(sub): list(_walk(sub, above)) for sub in folders}
    if not any(classes.values()):
        if any(_is_candidate(path) for path in files):
            return None
        raise _empty(root)
    loose = [path for path in files if _is_candidate(path)]
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} pictures lie beside {len(folders)} class folders, for example "
            f"{loose[0].name!r}",
            hint="move them into class folders, or the folders away",
        )
    if not all(classes.values()):
        counts = ", ".join(f"{name}: {len(paths):,}" for name, paths in classes.items())
        raise DataError(
            f"{folder}: a class has no pictures ({counts})",
            hint="remove its folder, or put its pictures there",
        )
    return classes


def _flat(folder: Path, root: Path, *, grouped: bool) -> tuple[ImageFile, ...]:
    _, files = _scan(folder)
    images = tuple(
        ImageFile(_id(path, root), path, None, _group(path, folder) if grouped else None)
        for path in files
        if _is_candidate(path)
    )
    if not images:
        raise _empty(folder)
    return images


def _empty(folder: Path) -> DataError:
    folders, files = _scan(folder)
    return DataError(
        f"{folder}: holds no pictures ({len(files)} other files, {len(folders)} folders)",
        hint="give a folder of pictures, with or without class folders",
    )


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Pictures in a folder and all folders in it."""
    if _leads_back(folder, above):
        return
    folders, files = _scan(folder)
    yield from (path for path in files if _is_candidate(path))
    for sub in folders:
        yield from _walk(sub, (*above, _identity(folder)))


def _leads_back(folder: Path, above: tuple[tuple[int, int], ...]) -> bool:
    """Whether a folder is a link to one it lies in, which is said."""
    if _identity(folder) not in above:
        return False
    _log.warning("%s leads back to a folder it lies in; left out", folder)
    return True


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder, in natural order, without the hidden ones."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
                if entry.name.startswith(".") or entry.name in _NOT_OURS:
                    continue
                (folders if _is_folder(entry) else files).append(folder / entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_candidate(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS or is_image(path)


def _group_of(image: EncodedImage) -> str | None:
    return image.group if isinstance(image, ImageFile) else None


def _group(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _id(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _utf8_name(folder: Path) -> str:
    if not _is_utf8(folder.name):
        raise DataError(
            f"{os.fsencode(folder)!r}: the name of a class must be UTF-8", hint="rename the folder"
        )
    return folder.name


def _is_utf8(name: str) -> bool:
    """Whether a name holds no bytes that the system handed over as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
