"""Pictures in TFRecord files of `tf.train.Example`, read without TensorFlow.

https://www.tensorflow.org/tutorials/load_data/tfrecord (section "TFRecords format details"): each
record is its length, 64 bits, a checksum of that, its bytes, a checksum of those. A file is gone
through once when it is opened, all checksums are verified, and where each record lies is kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cnnfeat.data.arrays import index_labels
from cnnfeat.data.example import Feature, read_example
from cnnfeat.data.packed import PackedSource, given_labels, opened_shards
from cnnfeat.data.source import open_file
from cnnfeat.errors import DataError, UsageError, near_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # CRC-32C, bits reversed
_CRC_BLOCK = 1024
CRC_GROUP = 256  # blocks at a time
_MASK = 0xA282EAD8
_IMAGES = ("image/encoded", "image", "image_raw", "img")
_LABELS = ("image/class/label", "label", "class", "target")
_TEXTS = ("image/class/text",)
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class _Keys:
    """Which features of a record are read."""

    image: str
    label: str | None
    text: str | None  # the name of its class


def is_tfrecord(path: Path) -> bool:
    """Whether a file begins with a length and its checksum."""
    with open_file(path) as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return False
    return bool(_HEADER.unpack(header)[1] == masked_crc32c(header[:8]))


def open_tfrecord(
    path: Path, files: Mapping[str, Sequence[Path]], *, labels: str | None, max_pixels: int
) -> PackedSource:
    """Open TFRecord files as a source.

    Parameters
    ----------
    path : Path
        The file, or their folder.
    files : mapping of str to sequence of Path
        The files of each split, in order.
    labels : str or None
        The feature that is the label, as ":/image/class/label". None chooses by the names people
        use.
    max_pixels : int
        Larger pictures are refused before they are decoded.

    Raises
    ------
    DataError
        With the number of the record, counted from 0, where a file is cut short or damaged, or a
        record has no picture or no label where others have one.
    UsageError
        If there is no such feature.
    """
    asked = None if labels is None else labels.removeprefix(":").strip("/")
    with opened_shards(files, functools.partial(TFRecordShard, label=asked)) as shards:
        together = [shard for of_split in shards.values() for shard in of_split if len(shard)]
        raw = {
            split: found
            for split, of in shards.items()
            if (found := _labels(of, split)) is not None
        }
        indices, classes = index_labels(raw, name=str(path))
        if raw and all(values.dtype.kind == "i" for values in raw.values()):
            classes = _named(classes, together, path)
        return PackedSource(
            path,
            "tfrecord",
            shards=shards,
            labels=indices,
            classes=classes,
            labels_from=labels or "",
            max_pixels=max_pixels,
        )


class TFRecordShard:
    """One TFRecord file: where its records lie, and their labels.

    Parameters
    ----------
    path : Path
    label : str or None
        The feature that is the label; None chooses.
    """

    noun = "record"

    def __init__(self, path: Path, *, label: str | None) -> None:
        self.path = path
        self.labels: list[int | str] = []  # of all records, or of none
        self.texts: list[str] = []
        self._asked = label
        self._keys: _Keys | None = None
        self._spans: list[tuple[int, int]] = []
        with open_file(path) as file:
            for number, (offset, record) in enumerate(_records(file, path)):
                self._spans.append((offset, len(record)))
                self._index(number, record)
            self._descriptor = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, start: int, stop: int) -> Sequence[bytes | None]:
        """Read the encoded pictures of some records."""
        return [self._picture(number) for number in range(start, stop)]

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def _picture(self, number: int) -> bytes | None:
        offset, length = self._spans[number]
        record = os.pread(self._descriptor, length, offset)
        if len(record) < length or self._keys is None:
            raise self._wrong(number, "the file was cut short while being read")
        with self._told(number):
            (data,) = read_example(record)[self._keys.image]
        return data if isinstance(data, bytes) else None

    def _index(self, number: int, record: bytes) -> None:
        """Take up a record's label, and see that there is a picture."""
        with self._told(number):
            features = read_example(record)
        if self._keys is None:
            self._keys = _choose(features, self._asked, f"{self.path}, record {number}")
        keys = self._keys
        pictures = features.get(keys.image, [])
        if len(pictures) != 1 or not isinstance(pictures[0], bytes):
            raise self._wrong(number, f"one picture is needed in {keys.image}; {_said(features)}")
        if keys.label is not None:
            self.labels.append(self._value(features, keys.label, number))
        if keys.text is not None:
            text = next(iter(features.get(keys.text, [])), b"")
            self.texts.append(text.decode("utf-8", "replace") if isinstance(text, bytes) else "")

    def _value(self, features: Mapping[str, Feature], key: str, number: int) -> int | str:
        """The one value of a feature; of floats only whole numbers."""
        values = features.get(key, [])
        if len(values) != 1:
            raise self._wrong(
                number, f"{len(values)} values of {key}; one for each picture is needed"
            )
        value = values[0]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, float) and not value.is_integer():
            raise self._wrong(number, f"{key} is {value}; a whole number or a text is needed")
        return int(value)

    def _wrong(self, number: int, message: str) -> DataError:
        return DataError(f"{self.path}, record {number}: {message}")

    @contextlib.contextmanager
    def _told(self, number: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, struct.error) as error:
            raise self._wrong(number, f"no tf.train.Example: {error}") from error


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Go through the records of a file: where the bytes of each begin, and these."""
    size = os.fstat(file.fileno()).st_size
    offset = 0
    for number in itertools.count():
        header = file.read(_HEADER.size)
        if not header:
            return
        if len(header) < _HEADER.size:
            raise DataError(f"{path}, record {number}: the file ends within its length")
        length, check = _HEADER.unpack(header)
        if check != masked_crc32c(header[:8]):
            raise DataError(f"{path}, record {number}: its length doesn't match its checksum")
        offset += _HEADER.size
        if offset + length + _FOOTER.size > size:
            raise DataError(
                f"{path}, record {number}: has {length:,} bytes, of which the file, which is cut "
                f"short, holds {max(0, size - offset):,}"
            )
        record, footer = file.read(length), file.read(_FOOTER.size)
        if footer != _FOOTER.pack(masked_crc32c(record)):
            raise DataError(f"{path}, record {number}: its bytes don't match their checksum")
        yield offset, record
        offset += length + _FOOTER.size


def _choose(features: Mapping[str, Feature], label: str | None, name: str) -> _Keys:
    """Find picture, label and the name of the class among the features of the first record."""
    image = next((key for key in _IMAGES if key in features), None)
    if image is None:
        raise DataError(f"{name}: no picture in {' or '.join(_IMAGES[:2])}; {_said(features)}")
    if label is not None and label not in features:
        raise UsageError(
            f"{name}: no feature {label!r} for labels; {_said(features)}",
            hint=near_names(label, features),
        )
    text = next((key for key in _TEXTS if features.get(key)), None)
    found = label or next((key for key in _LABELS if key in features), None)
    if label is None and found is None and text is not None:
        return _Keys(image, text, None)
    return _Keys(image, found, text if label is None else None)


def _said(features: Mapping[str, Feature]) -> str:
    return f"its features: {', '.join(list(features)[:20]) or 'none'}"


def _labels(shards: Sequence[TFRecordShard], split: str) -> Array | None:
    """Labels of a split; None where its records have none."""
    values = [value for shard in shards for value in shard.labels]
    missing = next((shard for shard in shards if len(shard.labels) < len(shard)), None)
    if not values:
        return None
    if missing is not None:
        raise DataError(f"{missing.path}: has no labels; other files of its split have")
    if any(isinstance(value, str) for value in values):
        return np.array([str(value) for value in values], np.str_)
    return given_labels(np.array(values, np.int64), shards, split)


def _named(
    classes: tuple[str, ...],
    shards: Sequence[TFRecordShard],
    path: Path,
) -> tuple[str, ...]:
    """Give classes the names that stand beside their numbers, where each has just one."""
    names: dict[str, set[str]] = {}
    for shard in shards:
        for label, text in zip(shard.labels, shard.texts, strict=False):
            if text:
                names.setdefault(str(label), set()).add(text)
    if not names:
        return classes
    if any(len(found) > 1 for found in names.values()):
        label = next(label for label, found in names.items() if len(found) > 1)
        _log.info("%s: class %s has several names; numbers are used", path, label)
        return classes
    return tuple(next(iter(names.get(name, {name}))) for name in classes)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) as TFRecord stores it: turned by 15 bits, and added to."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes.

    What each byte of a block contributes depends on its value and on how many come after it in the
    block alone; blocks are joined from the first to the last.
    """
    if len(data) < 4:  # the register's first value, four bytes of ones, reaches beyond them
        return _short_crc32c(data)
    n_blocks = -(-len(data) // _CRC_BLOCK)
    blocks = np.zeros((n_blocks, _CRC_BLOCK), np.uint8)  # zeros in front change nothing
    begin = blocks.size - len(data)
    flat = blocks.reshape(-1)
    flat[begin:] = np.frombuffer(data, np.uint8)
    flat[begin : begin + 4] ^= 0xFF
    tables, shifts = _tables(), _block_shifts()
    places = np.arange(_CRC_BLOCK - 1, -1, -1) * 256
    register = 0
    for first in range(0, n_blocks, CRC_GROUP):
        entries = tables.reshape(-1).take(places + blocks[first : first + CRC_GROUP])
        for part in np.bitwise_xor.reduce(entries, axis=1).tolist():
            register = (
                shifts[3][register & 255]
                ^ shifts[2][register >> 8 & 255]
                ^ shifts[1][register >> 16 & 255]
                ^ shifts[0][register >> 24]
                ^ part
            )
    return register ^ 0xFFFFFFFF


def _short_crc32c(data: bytes) -> int:
    table = _tables()[0]
    register = 0xFFFFFFFF
    for byte in data:
        register = int(table[(register ^ byte) & 255]) ^ (register >> 8)
    return register ^ 0xFFFFFFFF


@functools.cache
def _tables() -> NDArray[np.uint32]:
    """What a byte leaves in the register: by how many bytes come after it, and its value."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ np.uint32(_POLYNOMIAL), first >> 1)
    tables = np.empty((_CRC_BLOCK, 256), np.uint32)
    tables[0] = first
    for row in range(1, len(tables)):
        tables[row] = first[tables[row - 1] & 255] ^ (tables[row - 1] >> 8)
    return tables


@functools.cache
def _block_shifts() -> tuple[list[int], ...]:
    """What a register's four bytes become once a whole block has gone by; the last byte first."""
    return tuple(table.tolist() for table in _tables()[-4:])
