"""Changed IDX files, plain and packed: each folder of them is read, or refused by name."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]
EDGES = (0, 1, 2, 3, 255, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
TYPES = (0, 8, 9, 11, 12, 13, 14, 255)
NAMES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


def _idx(array: np.ndarray) -> bytes:
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim])
    swapped = array.astype(array.dtype.newbyteorder(">"))
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + swapped.tobytes()


def _sound(random: Random) -> dict[str, bytes]:
    noise = np.random.default_rng(random.randrange(3))
    kind = random.choice(("uint8",) * 4 + ("int16", "int32", "float32", "float64"))
    n_train, n_test = random.choice((1, 9)), 4
    arrays = (
        noise.integers(0, 200, (n_train, 5, 4)).astype(kind), np.arange(n_train) % 3,
        noise.integers(0, 200, (n_test, 5, 4)).astype(kind), np.arange(n_test) % 3,
    )  # fmt: skip
    return {
        name: _idx(array if array.ndim > 1 else array.astype(np.uint8))
        for name, array in zip(NAMES, arrays, strict=True)
    }


def _change_head(random: Random, data: bytes) -> bytes:
    """Change the type, the number of axes or a length, and now and then the bytes with it."""
    how = random.randrange(5)
    if how == 0:
        return data[:2] + bytes([random.choice(TYPES)]) + data[3:]
    if how == 1:
        return data[:3] + bytes([random.choice((0, 1, 2, 3, 4, 5, 32, 255))]) + data[4:]
    axis = 4 + 4 * random.randrange(data[3] or 1)
    if how in (2, 3):
        return data[:axis] + struct.pack(">I", random.choice(EDGES)) + data[axis + 4 :]
    return data[: random.randrange(len(data))] if random.random() < 0.5 else data + b"\0"


def _pack(random: Random, data: bytes) -> bytes:  # noqa: PLR0911 - a way each
    """Pack a file, well or as some program would that broke off."""
    packed, how = gzip.compress(data, mtime=0), random.randrange(24)
    if how == 0:
        return packed[: random.randrange(len(packed))]
    if how == 1:  # the checksum or the length at the end
        return packed[: -random.choice((4, 8))] + random.randbytes(8)
    if how == 2:  # a bomb: far more than the header declares
        return gzip.compress(data + bytes(random.choice((1, 1 << 20, 1 << 24))), 9)
    if how == 3:  # two members, or something else after the first
        return packed + random.choice((gzip.compress(b""), packed, b"\0" * 9, b"words"))
    if how == 4:  # a header that goes on: names, comments
        return packed[:3] + bytes([random.randrange(256)]) + packed[4:]
    if how == 5:
        return gzip.compress(packed)
    if how == 6:
        return packed[:10] + zlib.compress(data)
    return packed


@pytest.mark.parametrize("n_inputs", [150, pytest.param(10_000, marks=SLOW)])
def test_changed_idx_files_are_read_or_refused_by_name(fuzz, mutators, n_inputs):
    def make(random: Random, folder: Path) -> list[list[str]]:
        files = _sound(random)
        for name in random.sample(NAMES, random.choice((0, 1, 2))):
            how = random.randrange(8)
            if how < 4:
                files[name] = _change_head(random, files[name])
            elif how < 6:
                files[name] = mutators.change_bytes(random, files[name])
            elif how == 6:
                del files[name]
            else:
                files[name] = files[random.choice(sorted(files))]
        for name, data in files.items():
            if random.random() < 0.4:
                (folder / f"{name}.gz").write_bytes(_pack(random, data))
            else:
                (folder / name).write_bytes(data)
        return [["read", "."]]

    outcomes = fuzz(make, n_inputs)
    assert min(outcomes[0], outcomes[3]) > n_inputs / 20
