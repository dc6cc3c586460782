"""Headers of .npy files: what is declared must be numbers, and must follow."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

from cnnfeat.errors import DataError
from cnnfeat.npyheader import read_npy_header


def written(text: str, *, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    size = 2 if version == (1, 0) else 4
    data = text.encode("utf-8" if version == (3, 0) else "latin-1")
    declared = len(data) if length is None else length
    return b"\x93NUMPY" + bytes(version) + declared.to_bytes(size, "little") + data


def fields(
    descr: str = "'|u1'", shape: str = "(2, 3)", order: str = "False", *, more: str = ""
) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


def read(data: bytes, *, size_bytes: int | None = None):
    size = len(data) if size_bytes is None else size_bytes
    return read_npy_header(io.BytesIO(data), "a.npy", size_bytes=size)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["|u1", ">f8", "<f2", "|b1", "<c8", "<U3", "|S2", "<M8[ns]"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(version: tuple[int, int], dtype: str, order: str) -> None:
    array = np.zeros((2, 3, 4), dtype, order)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    header = read(file.getvalue())
    assert header.shape == (2, 3, 4)
    assert header.dtype == array.dtype
    assert header.fortran_order == (order == "F")
    assert header.length + array.nbytes == len(file.getvalue())
    assert header.data_bytes == array.nbytes


def test_what_others_write_is_read() -> None:
    """Keys in another order and quotes, no space, names of types, no number at all."""
    text = '{"shape":(3,),"descr":"float32","fortran_order":False}'
    assert read(written(text) + bytes(12)).dtype == np.float32
    assert read(written(fields(shape="()")) + b"1").shape == ()
    assert read(written(fields("[('a', '<u2'), ('b', '|u1', (2,))]")) + bytes(24)).data_bytes == 24
    assert read(written(fields("'|O'")) + b"a pickle").dtype.hasobject


NONE = "not a complete .npy header"
TAKES = "its header declares"
BAD = {
    "empty": (b"", NONE),
    "other-mark": (b"\x93NUMPX\1\0", NONE),
    "mark-alone": (b"\x93NUMPY", NONE),
    "version": (written("", version=(4, 0)), ".npy version 4.0; 1.0 to 3.0 are read"),
    "cut-short": (written(fields())[:40], "it ends after 30 of 60 bytes"),
    "long": (written(fields(), version=(2, 0), length=10**9), "1,000,000,000 bytes long; at most"),
    "long-indeed": (written(" " * 10_001, version=(2, 0)), "10,001 bytes long"),
    "no-literal": (written("import os"), NONE),
    "a-call": (written(fields("__import__('os').getcwd()")), NONE),
    "no-record": (written("[1, 2]"), "no record of descr"),
    "a-field-more": (written(fields(more="'x': 1")), "no record of descr"),
    "nested": (written("(" * 5000), NONE),
    "nested-lists": (written(fields("[" * 90 + "]" * 90)), NONE),
    "signs": (written("-" * 9000 + "1"), NONE),
    "half-an-if": (written("1if 1else 2"), NONE),
    "no-text": (written("'\\d'"), "no record of descr"),
    "not-utf-8": (written(fields()[:-1], version=(3, 0)) [:-1] + b"\xff", "can't decode"),
    "order": (written(fields(order="1")), "its fortran_order is 1"),
    "type-no-text": (written(fields("1")), "its type is 1"),
    "type-of-several": (written(fields("'u1,u1'")), "its type is 'u1,u1'"),
    "type-with-shape": (written(fields("'(2,3)f4'")), "its type is '(2,3)f4'"),
    "type-unknown": (written(fields("'<u3'")), NONE),
    "type-of-too-much": (written(fields("'|S99999999999999'")), NONE),
    "type-of-nothing": (written(fields("'|V0'")), "it declares (2, 3) of |V0"),
    "record-of-nothing": (written(fields("[]")), "it declares (2, 3) of []"),
    "record-of-no-names": (written(fields("[(1, 2)]")), NONE),
    "record-twice": (written(fields("[('a', '|u1'), ('a', '|u1')]")), NONE),
    "record-huge": (written(fields("[('a', '|u1', (1000000000,) * 2)]")), NONE),
    "shape-list": (written(fields(shape="[2, 3]")), "its shape is [2, 3]"),
    "shape-negative": (written(fields(shape="(2, -3)")), "its shape is (2, -3)"),
    "shape-twice-negative": (written(fields(shape="(-2, -3)")), "its shape is (-2, -3)"),
    "shape-truth": (written(fields(shape="(True, 3)")), "its shape is (True, 3)"),
    "shape-fraction": (written(fields(shape="(2.0, 3)")), "its shape is (2.0, 3)"),
    "shape-nested": (written(fields(shape="(2, (3,))")), "its shape is (2, (3,))"),
    "axes": (written(fields(shape="(" + "1, " * 33 + ")")), "its shape is (1, 1, 1, "),
    "overflow": (written(fields(shape="(4294967296, 4294967296)")), "it declares (4294967296, 4"),
    "overflow-of-nothing": (written(fields(shape="(0, 2305843009213693952, 4)")), "it declares"),
    "digits": (written(fields(shape="(" + "9" * 5000 + ",)")), NONE),
    "too-little": (written(fields()) + bytes(5), TAKES),
    "too-much": (written(fields()) + bytes(7), TAKES),
    "long-texts": (written(fields("'|S1000000000'")) + bytes(6), "which takes 6,000,000,0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_headers_are_refused(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(DataError) as caught:
        read(data)
    assert caught.value.message.startswith("a.npy: ")
    assert words in caught.value.message


def test_a_changed_header_is_read_or_refused() -> None:
    """Of 2,000 changes none ends in anything else, or declares what doesn't follow."""
    sound = written(fields("'<u2'", "(20, 30)")) + bytes(1200)
    draw = random.Random(3)
    for _ in range(2000):
        data = bytearray(sound)
        for _ in range(draw.choice((1, 2, 3))):
            data[draw.randrange(75)] = draw.choice((draw.randrange(256), *b"0123456789(),'-[]{}"))
        try:
            header = read(bytes(data))
        except DataError:
            continue
        assert header.dtype.hasobject or header.length + header.data_bytes == len(data)
