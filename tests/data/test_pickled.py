from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import pickled
from cnnfeat.data.pickled import is_pickle, read_pickle
from cnnfeat.errors import DataError

DTYPES = ("uint8", "int64", ">i4", "float32", "bool")


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "batch"
    path.write_bytes(data)
    return path


def same(found: object, expected: object) -> None:
    """Hold what was read against what was pickled."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", DTYPES)
def test_every_protocol_gives_what_went_in(tmp_path, rng, protocol, kind):
    values = {
        "array": rng.integers(0, 100, (5, 4, 3)).astype(kind),
        "columns": np.asfortranarray(rng.integers(0, 100, (5, 4)).astype(kind)),
        "empty": np.zeros((0, 3), kind),
        "read-only": np.frombuffer(bytes(24), np.int64),
        "numbers": [0, 1, -1, 255, 256, 70_000, -(2**31), 2**40, 2**70, True, False, None],
        "many": list(range(3000)),
        "text": ["", "a'b\"c\n", "größer 猫", "x" * 300],
        "bytes": [b"", b"\x00\xff'\n", bytes(range(256)) * 2],
        "nested": {"a": [{}, [], ()], "b": (1,), "c": (1, 2), "d": (1, 2, 3), "e": (1, 2, 3, 4)},
    }
    values["again"] = values["array"]
    path = saved(tmp_path, pickle.dumps(values, protocol))
    assert is_pickle(path)
    found = read_pickle(path)
    assert list(found) == list(values)
    for name, value in values.items():
        same(found[name], value)


def python_2(data: np.ndarray, labels: list[int], *, protocol: int) -> bytes:
    """What Python 2 and NumPy 1 wrote for {"data": data, "labels": labels}, opcode by opcode."""
    raw, shape = data.tobytes(), data.shape
    if protocol == 2:
        return (
            b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\n"
            b"ndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08(K\x01"
            + b"".join(b"M" + struct.pack("<H", n) for n in shape)
            + b"\x86q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01|q\x0eNNN"
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89T"
            + struct.pack("<I", len(raw))
            + raw
            + b"q\x10tq\x11bU\x06labelsq\x12]q\x13("
            + b"".join(b"K" + bytes([label]) for label in labels)
            + b"eu."
        )
    quoted = repr(raw)[1:].encode()  # Python 2 writes str as Python 3 writes bytes
    return (
        b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n"
        b"(I0\ntp5\nS'b'\np6\ntp7\nRp8\n(I1\n(I%d\nI%d\ntp9\ncnumpy\ndtype\np10\n(S'u1'\np11\n"
        b"I0\nI1\ntp12\nRp13\n(I3\nS'|'\np14\nNNNI-1\nI-1\nI0\ntp15\nbI00\nS"
        % shape
        + quoted
        + b"\np16\ntp17\nbsS'labels'\np18\n(lp19\n"
        + b"".join(b"I%d\na" % label for label in labels)
        + b"s."
    )


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_is_read_as_pickle_reads_it(tmp_path, rng, protocol):
    data, labels = rng.integers(0, 256, (7, 12), np.uint8), [3, 1, 4, 1, 5, 9, 2]
    written = python_2(data, labels, protocol=protocol)
    oracle = pickle.loads(written, encoding="latin1")
    np.testing.assert_array_equal(oracle["data"], data)  # it is a pickle, and says this
    found = read_pickle(saved(tmp_path, written))
    np.testing.assert_array_equal(found["data"], data)
    assert found["labels"] == oracle["labels"] == labels


class _Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["value", "list", "key", "top"])
def test_code_is_refused_by_name_and_does_not_run(tmp_path, protocol, place):
    code = _Code(tmp_path / "made")
    value = {"value": {"data": code}, "list": {"data": [code]}, "key": {code: 1}, "top": code}
    path = saved(tmp_path, pickle.dumps(value[place], protocol))
    with pytest.raises(DataError, match=r"more than data in it: (posix|nt)\.mkdir") as caught:
        read_pickle(path)
    assert caught.value.exit_code == 3
    assert "np.savez" in caught.value.hint
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes()) if place != "key" else None  # it would have
    assert (tmp_path / "made").exists() or place == "key"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}U\x01acos\nsystem\n.", r"os\.system"),
        (b"\x80\x04}\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
        (b"(dp0\n(S'true'\nios\nsystem\n.", "INST os system"),
        (b"}q\x00(cos\nsystem\no.", r"os\.system"),
        (b"\x80\x02}(cnumpy\nndarray\no.", "OBJ"),
        (b"\x80\x02}cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x04}cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02}cnumpy\nndarray\n)R.", "a call of ndarray"),
        (b"\x80\x02}cnumpy.core.multiarray\nscalar\n.", r"numpy\.core\.multiarray\.scalar"),
        (b"\x80\x02}cbuiltins\neval\n.", r"builtins\.eval"),
        (b"\x80\x02}c__builtin__\nbytes\nK\x05\x85R.", "a call of bytes"),
        (b"\x80\x02}c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.", "a call of encode"),
        (b"\x80\x02}U\x01a\x82\x07.", "EXT1"),
        (b"\x80\x02}Pabc\n.", "PERSID abc"),
        (b"\x80\x02}U\x01aQ.", "BINPERSID"),
        (b"\x80\x05}\x97.", "NEXT_BUFFER"),
        (b"\x80\x02}U\x01aG" + bytes(8) + b"s.", "BINFLOAT"),
        (b"\x80\x02}]K\x01b.", "the state of an object"),
        (b"\x80\x02}}(]K\x01u.", "a dict whose keys are neither text nor numbers"),
        (b"\x80\x02}cnumpy\ndtype\nU\x01O\x85R.", "an array of dtype O"),
        (b"\x80\x02}cnumpy\ndtype\nU\x02V8\x85R.", "an array of dtype V8"),
        (b"\x80\x02}]]R.", "a call of what is no name"),
        (b"\x80\x04}]]\x93.", r"more than data in it: \."),
    ],
)
def test_whatever_else_is_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_pickle(saved(tmp_path, data))


def test_arrays_of_objects_are_refused(tmp_path):
    objects = np.array([{}, []], object)
    with pytest.raises(DataError, match=r"an array of dtype O"):
        read_pickle(saved(tmp_path, pickle.dumps({"data": objects}, 2)))


def test_anything_but_a_dict_is_refused(tmp_path):
    with pytest.raises(DataError, match="a pickle of a list; a dict is needed"):
        read_pickle(saved(tmp_path, pickle.dumps([1])))


def test_a_cut_pickle_is_a_data_error(tmp_path, rng):
    whole = pickle.dumps({"data": rng.integers(0, 256, (9, 12), np.uint8), "labels": [1] * 9}, 2)
    for length in range(0, len(whole), 3):
        with pytest.raises(DataError, match=r"a damaged pickle|more than data|a dict is needed"):
            read_pickle(saved(tmp_path, whole[:length]))


@pytest.mark.parametrize("protocol", range(6))
def test_random_damage_is_data_or_a_data_error(tmp_path, rng, protocol):
    values = {"data": rng.integers(0, 256, (4, 12), np.uint8), "labels": [1, 2, 3, 300]}
    whole = pickle.dumps(values, protocol)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=int(rng.integers(1, 4))):
            damaged[place] = rng.integers(256)
        try:
            found = read_pickle(saved(tmp_path, bytes(damaged)))
        except DataError:
            continue
        assert isinstance(found, dict)


def test_small_pickles_cannot_fill_the_memory(tmp_path):
    encode = b"c_codecs\nencode\nq\x01X" + struct.pack("<I", 10**6) + b"a" * 10**6
    copies = b"\x80\x02}(K\x00" + encode + b"q\x02X\x06\0\0\0latin1q\x03" + b"0" * 0
    copies += b"00" + b"h\x01h\x02h\x03\x86R" * 5000 + b"u."
    laughs = b"\x80\x02}K\x00]q\x00" + b"".join(
        b"](" + bytes([104, n]) * 10 + b"eq" + bytes([n + 1]) for n in range(60)
    )
    declared = pickle.dumps({"a": np.zeros(8, np.uint8)}, 2).replace(
        b"K\x08\x85", b"J\xff\xff\xff\x7f\x85"
    )
    tracemalloc.start()
    for data in (copies, laughs + b"s.", laughs + b"R.", declared, b"\x80\x02}T\xff\xff\xff\x7f."):
        with pytest.raises(DataError):
            read_pickle(saved(tmp_path, data))
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_endless_steps_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MAX_STEPS", 1000)
    with pytest.raises(DataError, match="more than 1,000 steps"):
        read_pickle(saved(tmp_path, b"\x80\x02" + b"N0" * 500 + b"}."))


def test_what_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="a pickle of 16 bytes; up to 10 are read"):
        read_pickle(saved(tmp_path, bytes(16)))


def test_text_that_is_no_pickle_is_not_taken_for_one(tmp_path):
    for start in (b"(define x 1)", b"(double)", b"\x80\x09", b"", b"{}", b"}"):
        assert not is_pickle(saved(tmp_path, start))
