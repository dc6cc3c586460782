from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from cnnfeat.data import open_source
from cnnfeat.data.mat5 import read_array, stored_arrays
from cnnfeat.errors import DataError

KINDS = {
    "uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16,
    "uint32": np.uint32, "int32": np.int32, "uint64": np.uint64, "int64": np.int64,
    "single": np.float32, "double": np.float64,
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_arrays_are_what_scipy_reads(tmp_path: Path, rng, packed):
    made = {kind: rng.integers(0, 99, (3, 4, 2)).astype(dtype) for kind, dtype in KINDS.items()}
    made |= {"one": np.float32(7), "v": np.arange(5), "none": np.zeros((0, 3))}
    path = tmp_path / "a.mat"
    savemat(path, {**made, "logical": np.array([[True, False]])}, do_compression=packed)
    expected = loadmat(path)
    with path.open("rb") as file:
        found = {one.name: one for one in stored_arrays(file)}
        assert {name: one.kind for name, one in found.items() if name in KINDS} == {
            name: name for name in KINDS
        }
        assert found["logical"].kind == "logical"
        for name in (*made, "logical"):
            array = read_array(file, found[name])
            np.testing.assert_array_equal(array, expected[name])
            assert array.dtype == expected[name].dtype or name == "logical"


def test_what_holds_no_plain_numbers_is_told_by_its_kind(tmp_path: Path):
    things = {"c": np.array([1 + 2j]), "s": {"a": 1}, "t": "words", "l": np.array(["a"], object)}
    savemat(tmp_path / "a.mat", things)
    with (tmp_path / "a.mat").open("rb") as file:
        found = {one.name: one.kind for one in stored_arrays(file)}
    assert found == {"c": "complex double", "s": "struct", "t": "char", "l": "cell"}


def element(kind: int, data: bytes, *, size: int | None = None) -> bytes:
    """An element of a big-endian file, as the format's description has it."""
    padded = data + bytes(-len(data) % 8)
    return struct.pack(">II", kind, len(data) if size is None else size) + padded


def matrix(
    *, number: int = 9, lengths: tuple[int, ...] = (1, 2), stored: int = 2, numbers: bytes = b"\1\2"
) -> bytes:
    """The array X: by default two bytes."""
    flags = element(6, struct.pack(">II", number, 0))
    shape = element(5, struct.pack(f">{len(lengths)}i", *lengths))
    return flags + shape + element(1, b"X") + element(stored, numbers)


def file_of(*elements: bytes, mark: bytes = b"MI") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0" + mark + b"".join(elements)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_big_endian_numbers_are_read(tmp_path: Path, packed):
    inner = element(14, matrix(number=10, stored=4, numbers=b"\1\2\0\3"))
    data = zlib.compress(inner)
    outer = struct.pack(">II", 15, len(data)) + data if packed else inner
    (tmp_path / "a.mat").write_bytes(file_of(outer))
    with (tmp_path / "a.mat").open("rb") as file:
        (one,) = stored_arrays(file)
        assert one.kind == "int16"
        np.testing.assert_array_equal(read_array(file, one), [[0x102, 3]])


def _packed(inner: bytes, *, cut: int = 0) -> bytes:
    data = zlib.compress(inner)[: -cut or None]
    return struct.pack(">II", 15, len(data)) + data


FULL = element(14, matrix())
DAMAGED = {
    "byte order": (file_of(FULL, mark=b"XX"), "byte order is b'XX'"),
    "cut": (file_of(element(14, matrix(), size=999)), "bytes before an array does"),
    "cut tag": (file_of(FULL, b"\0\0\0"), "ends within an element's tag"),
    "class": (file_of(element(14, matrix(number=99))), "of class 99, which there isn't"),
    "shape": (file_of(element(14, matrix(lengths=(-1, 2)))), r"has the shape \(-1, 2\)"),
    "no axes": (file_of(element(14, matrix(lengths=()))), r"has the shape \(\)"),
    "one axis": (file_of(element(14, matrix(lengths=(6,)))), r"has the shape \(6,\)"),
    "axes": (file_of(element(14, matrix(lengths=(1,) * 40))), "has the shape"),
    "flags": (file_of(element(14, element(6, b"\0"))), "doesn't say of which class"),
    "name": (file_of(element(14, matrix()[:24])), "before what an array says of itself"),
    "type": (file_of(element(14, matrix(stored=99))), "of type 99, which there isn't"),
    "too few": (file_of(element(14, matrix(numbers=b"\1"))), "1 bytes aren't 2 numbers"),
    "packed cut": (file_of(_packed(FULL, cut=5)), "a packed array ends early"),
    "packed no array": (file_of(_packed(element(1, b"X"))), "which is no array"),
    "packed too long": (file_of(_packed(FULL + bytes(999))), "unpacks to more than"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(tmp_path: Path, damage):
    data, words = DAMAGED[damage]
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.mat.*{words}"):
        open_source(str(tmp_path / "a.mat"))


def test_an_array_that_unpacks_without_end_is_not_unpacked(tmp_path: Path):
    packing = zlib.compressobj(9)
    file = io.BytesIO()
    file.write(packing.compress(FULL[:-8]))
    for _ in range(64):
        file.write(packing.compress(bytes(1 << 20)))
    file.write(packing.flush())
    data = file.getvalue()
    (tmp_path / "a.mat").write_bytes(file_of(struct.pack(">II", 15, len(data)) + data))
    with pytest.raises(DataError, match=r"unpacks to more than the \d{2,3} bytes"):
        open_source(str(tmp_path / "a.mat"))
