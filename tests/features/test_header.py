"""What a stranger wrote into the attributes of a feature file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile, write_arrays

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small feature file."""
    X = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_arrays(tmp_path / "f.h5", {"all": {"fc": X}}, attributes={"network": "m.keras"})
    return tmp_path / "f.h5"


def _refused(path: Path, change: Callable[[h5py.File], None]) -> str:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(FeatureFileError) as raised, FeatureFile(path) as file:
        file.layer("all", "fc")
    return raised.value.message


BAD_VALUES = {
    "text-for-a-number": ("network_test_accuracy", "</script>", ["a number", "'</script>'"]),
    "accuracy-of-1e300": ("network_test_accuracy", 1e300, ["at most 1", "1e+300"]),
    "accuracy-below-0": ("network_test_accuracy", -0.5, ["at least 0", "-0.5"]),
    "accuracy-of-nan": ("network_test_accuracy", np.nan, ["a number", "nan"]),
    "number-for-a-text": ("network", 3.5, ["text", "3.5"]),
    "broken-json": ("preprocessing", "{", ["no JSON record"]),
    "list-for-a-record": ("preprocessing", "[1]", ["a record", "[1]"]),
    "record-in-a-record": ("preprocessing", '{"resize": {"a": 1}}', ["resize", "{'a': 1}"]),
    "negative-size": ("preprocessing", '{"resize": [-1, 8]}', ["resize", "at least 0", "-1"]),
    "text-for-a-table": ("options", '{"data": "x"}', ["data", "a record", "'x'"]),
    "number-for-a-record": ("division", 1, ["a record", "1"]),
    "seed-of-text": ("division", '{"seed": "x"}', ["seed", "a whole number", "'x'"]),
    "texts-for-lists": ("network_unsteady", '{"conv": "Rand"}', ["conv", "a list", "'Rand'"]),
    "numbers-for-texts": ("settings", '{"seed": 1}', ["seed", "text", "1"]),
    "deep-json": ("options", DEEP, ["levels deep"]),
    "nan-in-json": ("options", '{"data": {"x": NaN}}', ["NaN"]),
    "half-a-pair": ("division", r'{"a": "\ud800"}', ["surrogate"]),
    "long-name": ("source", "x" * 5000, ["at most 4,096 characters"]),
    "array": ("source", np.array(["a", "b"], object), ["an array of 2", "one text or number"]),
    "list-of-one": ("network_test_accuracy", np.array([0.5]), ["an array of 1"]),
    "compound": ("source", np.zeros((), [("a", "f4"), ("b", "i4")]), ["a compound"]),
    "enumeration": ("source", np.True_, ["one of an enumeration"]),
    "opaque": ("source", np.void(b"abc"), ["opaque bytes"]),
    "nothing": ("source", h5py.Empty("f4"), ["nothing"]),
    "complex": ("network_test_accuracy", 0.5j, ["a compound"]),
    "quadruple": ("network_test_accuracy", np.longdouble(0.5), ["a size not known here"]),
    "latin-1": ("source", b"caf\xe9", ["no UTF-8"]),
    "format": ("format", np.array(["a"] * 3, object), ["an array of 3"]),
    "version": ("format_version", "one", ["format version one"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_VALUES)
def test_attributes_of_another_kind_are_refused_by_name_and_value(path, case):
    name, value, words = BAD_VALUES[case]
    message = _refused(path, lambda file: file.attrs.__setitem__(name, value))
    assert message.startswith(str(path))
    for word in (name.removesuffix("_version"), *words):
        assert word in message, message
    assert len(message) < 400


def test_references_and_lists_in_attributes_are_refused(path):
    def point(file: h5py.File) -> None:
        file.attrs.create("network", file["all"].ref, dtype=h5py.ref_dtype)

    assert "'network' of / holds a reference" in _refused(path, point)

    def list_up(file: h5py.File) -> None:
        lists = np.empty(1, object)
        lists[0] = np.arange(3)
        file.attrs.create("network", lists, dtype=h5py.vlen_dtype("i4"))

    assert "'network' of / holds a list of its own length" in _refused(path, list_up)


def test_immense_texts_in_attributes_are_refused(path):
    message = _refused(path, lambda f: f.attrs.__setitem__("options", " " * (20 << 20) + "{}"))
    assert "attribute 'options' of / has 20,971,522 bytes" in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tensor", 7, "tensor must be text"),
        ("op", "x" * 5000, "op must be text (at most 4,096 characters)"),
        ("layer", np.array(["a", "b"], object), "'layer' of /all/fc holds an array of 2"),
        ("original_shape", "8", "'original_shape' of /all/fc holds a text"),
        ("original_shape", np.array([-1, 3]), "is the shape [-1, 3]"),
        ("original_shape", np.ones(999, int), "an array of 999, and should hold a shape"),
    ],
    ids=["number", "long", "array", "no-shape", "negative", "many-axes"],
)
def test_attributes_of_layers_are_refused_likewise(path, name, value, words):
    assert words in _refused(path, lambda file: file["all/fc"].attrs.__setitem__(name, value))


def test_what_the_root_says_is_a_record(tmp_path):
    options = {"data": {"invert": True}}
    said = {
        "network_test_accuracy": 0.75,
        "preprocessing": json.dumps({"scale": "unit", "resize": [8, 9], "fit": None}),
        "network_unsteady": json.dumps({"conv": ["RandomUniform"]}),
        "options": json.dumps(options),
    }
    write_arrays(tmp_path / "f.h5", {"all": {"fc": np.ones((2, 1), "f4")}}, attributes=said)
    with FeatureFile(tmp_path / "f.h5") as file:
        found = file.provenance
        assert {name: file.attributes[name] for name in said} == said
    assert found.network_test_accuracy == 0.75
    assert found.preprocessing == {"scale": "unit", "resize": [8, 9], "fit": None}
    assert found.network_unsteady == {"conv": ("RandomUniform",)}
    assert found.options == options
    assert (found.network, found.division) == ("", None)


def test_attributes_nobody_looks_for_are_left_alone(path):
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = np.zeros(3, [("a", "f4")])
        file["all/fc"].attrs["note"] = np.zeros(3)
    with FeatureFile(path) as file:
        assert "note" not in file.attributes
        assert file.layer("all", "fc").layer == "fc"
