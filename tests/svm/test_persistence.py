"""Reading machines: what is loaded, and what is refused unloaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.svm import load_svm
from cnnfeat.svm.persistence import save_svm

METADATA = {"layer": "fc1", "classes": ["a", "b"], "n_features": 3}
SIGMOID = {"method": "sigmoid", "slopes": [-1.0], "offsets": [0.5], "n_samples": 9}
ROWS = np.random.default_rng(0).standard_normal((60, 3))


def machine() -> Pipeline:
    steps = [("scale", StandardScaler()), ("svm", LinearSVC())]
    return Pipeline(steps).fit(ROWS, (ROWS[:, 0] > 0).astype(int))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "svm.skops"
    save_svm(machine(), path, metadata=METADATA)
    return path


def _refused(path: Path, words: str) -> FeatureFileError:
    with pytest.raises(FeatureFileError) as caught:
        load_svm(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


def test_what_was_saved_is_read(saved):
    found = load_svm(saved)
    assert found.layer == "fc1"
    assert found.classes == ("a", "b")
    X = np.random.default_rng(1).standard_normal((9, 3))
    np.testing.assert_array_equal(found.pipeline.predict(X), machine().predict(X))


def test_no_file_names_the_command(tmp_path):
    with pytest.raises(MissingInputError, match=r"no SVM file .*svm\.skops") as caught:
        load_svm(tmp_path / "svm.skops")
    assert "cnnfeat svm" in caught.value.hint


class Evil:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_unloaded(tmp_path, protocol):
    path = tmp_path / "svm.skops"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "made"), protocol=protocol))
    _refused(path, "only skops files are read")
    assert not (tmp_path / "made").exists()


def test_an_untrusted_type_is_named_and_not_loaded(tmp_path):
    path = tmp_path / "svm.skops"
    pipeline = Pipeline([("run", FunctionTransformer(os.getcwd)), ("svm", LinearSVC())])
    pipeline.cnnfeat_ = {"format": "cnnfeat-svm", "format_version": 1, **METADATA}
    skops.io.dump(pipeline, path)
    error = _refused(path, "types that are not trusted, and was not loaded: posix.getcwd, ")
    assert "FunctionTransformer" in str(error)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data))])
    _refused(saved, "skops file")


@pytest.mark.parametrize("n_flips", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_nothing(saved, n_flips):
    data, X = saved.read_bytes(), np.random.default_rng(1).standard_normal((9, 3))
    whole = load_svm(saved)
    random = np.random.default_rng(n_flips)
    refused = 0
    for place in random.choice(len(data), n_flips, replace=False):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(8))
        saved.write_bytes(flipped)
        try:
            found = load_svm(saved)
        except FeatureFileError as error:
            assert str(saved) in str(error)
            refused += 1
        else:
            assert found.metadata == whole.metadata
            values = found.pipeline.decision_function(X)
            np.testing.assert_array_equal(values, whole.pipeline.decision_function(X))
    assert refused > n_flips / 2


def test_another_zip_is_refused(tmp_path):
    path = tmp_path / "svm.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    _refused(path, "not an skops file")


@pytest.mark.parametrize("schema", ["[]", "{}", '{"__class__": "x"}', "null", "not json"])
def test_a_strange_schema_is_refused(tmp_path, schema):
    path = tmp_path / "svm.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", schema)
    _refused(path, "svm.skops")


def test_a_foreign_machine_is_refused(tmp_path):
    path = tmp_path / "svm.skops"
    skops.io.dump(LinearSVC(), path)
    _refused(path, "is not an SVM of cnnfeat: it holds a LinearSVC")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "its format is 'other', not 'cnnfeat-svm'"),
        ({"format_version": 2}, "format version 2; this cnnfeat reads 1"),
        ({"classes": None}, "damaged"),
    ],
)
def test_other_metadata_are_refused(tmp_path, change, words):
    path = tmp_path / "svm.skops"
    pipeline = machine()
    metadata = {"format": "cnnfeat-svm", "format_version": 1, **METADATA, **change}
    pipeline.cnnfeat_ = {key: value for key, value in metadata.items() if value is not None}
    skops.io.dump(pipeline, path)
    _refused(path, words)


def test_a_declared_bomb_is_refused(saved, monkeypatch):
    monkeypatch.setattr("cnnfeat.archives._SLACK_BYTES", 100)
    with zipfile.ZipFile(saved, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.npy", bytes(10_000_000))
    _refused(saved, "would unpack from")


def _repack(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change the members of an archive, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _npy(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + data


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (_npy("<f8", (10**12,), bytes(8)), "its header declares (1000000000000,) of float64"),
        (_npy("<f8", (2, -3), bytes(8)), "its shape is (2, -3)"),
        (_npy("<f8", (3,), bytes(8)), "its header declares (3,)"),
        (_npy("<U3", (3,), bytes(36)), "is an array of <U3, and should be of numbers"),
        (_npy("<c16", (3,), bytes(48)), "is an array of complex128, and should be of numbers"),
        (_npy("|O", (3,), pickle.dumps([1, 2, 3])), "is an array of object"),
        (_npy("<M8[s]", (3,), bytes(24)), "is an array of datetime64[s]"),
        (b"no array", "not a complete .npy header"),
    ],
    ids=range(8),
)
def test_an_array_that_is_none_of_numbers_is_refused(saved, array, words):
    _repack(saved, lambda name, data: array if name.endswith(".npy") else data)
    _refused(saved, words)


def test_arrays_of_another_byte_order_are_read(saved):
    whole = load_svm(saved)

    def swap(name: str, data: bytes) -> bytes:
        if not name.endswith(".npy"):
            return data
        array, swapped = np.load(io.BytesIO(data)), io.BytesIO()
        np.save(swapped, array.astype(array.dtype.newbyteorder(">")))
        return swapped.getvalue()

    _repack(saved, swap)
    values = load_svm(saved).pipeline.decision_function(ROWS)
    np.testing.assert_array_equal(values, whole.pipeline.decision_function(ROWS))


def test_what_is_no_part_of_the_machine_is_refused(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("1.npz", saved.read_bytes())
    _refused(saved, "it holds '1.npz', which is no part of what was saved")


def _change_node(path: Path, change: Callable[[dict[str, Any]], None], *keys: object) -> None:
    """Change a node of the schema: that of the pipeline's attribute `keys`, from the top."""

    def changed(name: str, data: bytes) -> bytes:
        if name != "schema.json":
            return data
        schema = json.loads(data)
        node = schema["content"]
        for key in keys:
            node = node["content"][key]
            node = node["content"] if node["__loader__"] == "ObjectNode" else node
        change(node)
        return json.dumps(schema).encode()

    _repack(path, changed)


SCALER = ("steps", 0, 1)


@pytest.mark.parametrize(
    ("keys", "change", "words"),
    [
        ((*SCALER, "mean_"), {"__class__": "matrix"}, "was not loaded: numpy.matrix"),
        ((*SCALER, "mean_"), {"__class__": "float64"}, "is one number, and its array has the"),
        ((*SCALER, "mean_"), {"file": "x.npy"}, "mean_ is an array without its file"),
        ((*SCALER, "mean_"), {"type": "json", "content": []}, "is an array without its file"),
        ((*SCALER, "mean_"), {"__loader__": 7}, "mean_.__loader__ must be text"),
        ((*SCALER, "copy"), {"__loader__": "CachedNode"}, "not loaded: builtins.str"),
        ((*SCALER, "copy"), {"content": "[" * 100_000}, "it nests more than 64 levels deep"),
        ((*SCALER, "copy"), {"content": "[1]"}, "copy is no plain value: '[1]'"),
        ((*SCALER, "copy"), {"content": True}, "copy is no plain value: True"),
        ((*SCALER, "copy"), {"content": "NaN"}, "it holds NaN"),
        (("steps",), {"content": {}}, "schema.steps is no list"),
        (("steps",), {"content": [3]}, "schema.steps[0] is no node of skops: 3"),
        (("cnnfeat_",), {"content": {}}, "schema.cnnfeat_ is no dictionary of 5 keys"),
        (("cnnfeat_",), {"key_types": None}, "is a dictionary without the types of its keys"),
        (
            ("cnnfeat_",),
            {"key_types": {"content": [{"__class__": "eval", "__module__": "builtins"}]}},
            "schema.cnnfeat_",
        ),
        (
            ("cnnfeat_",),
            {"__class__": "OrderedDict", "__module__": "collections"},
            "not loaded: collections.OrderedDict",
        ),
    ],
    ids=range(16),
)
def test_a_node_that_skops_would_not_write_is_refused(saved, keys, change, words):
    _change_node(saved, lambda node: node.update(change), *keys)
    _refused(saved, words)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cnnfeat.svm.persistence.skops_io.dump", fail)
    with pytest.raises(OSError, match="No space left"):
        save_svm(machine(), saved, metadata=METADATA)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["svm.skops"]


def test_metadata_are_plain_json(saved):
    metadata = load_svm(saved).metadata
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": None}, "damaged: it lacks layer"),
        ({"format_version": np.ones(2)}, "damaged: cnnfeat_.format_version must be a plain value"),
        ({"parts": {"a": (1, 2)}}, "damaged: cnnfeat_.parts.a must be a plain value, not (1, 2)"),
        ({"classes": ["a", LinearSVC()]}, "cnnfeat_.classes[1] must be a plain value, not Stored("),
        ({"parts": {1: "x"}}, "damaged: cnnfeat_.parts has the key 1, which is no text"),
        ({"layer": 3}, "damaged: layer must be text (at most 4,096 characters), not 3"),
        ({"n_features": 3.0}, "n_features must be a whole number (at least 1), not 3.0"),
        ({"n_features": 0}, "n_features must be a whole number (at least 1), not 0"),
        ({"n_features": 4}, "scale is of 3 features, and 4 come to it"),
        ({"shape": [3, 2]}, "n_features is 3, and shape is (3, 2)"),
        ({"classes": ["a"]}, "a machine tells classes apart, and classes is ('a',)"),
        ({"classes": ["a", ["b"]]}, "classes[1] must be text"),
        ({"classes": ["a", "b", "c"]}, "svm.coef_ has the shape (1, 3), and should have (3, 3)"),
        ({"parts": ["x"]}, "parts must be a record or null, not ['x']"),
        ({"parts": {"train": 1}}, "parts['train'] must be text"),
        ({"calibration": 7}, "calibration must be a record or null, not 7"),
        ({"calibration": {"method": "sigmoid"}}, "calibration lacks slopes, offsets, n_samples"),
        ({"calibration": {**SIGMOID, "method": "other"}}, "method must be 'sigmoid', not 'other'"),
        ({"calibration": {**SIGMOID, "slopes": ["1"]}}, "slopes[0] must be a number, not '1'"),
        ({"calibration": {**SIGMOID, "slopes": [1, 2]}}, "a calibration of (2,) and (1,), not"),
        ({"network": 3}, "network must be text"),
        ({"options": "{"}, "options holds no JSON record"),
        ({"options": "[" * 100_000}, "options holds no JSON record: it nests more than 64 levels"),
        ({"preprocessing": '{"scale": [[]]}'}, "preprocessing['scale']"),
        ({"division": '{"seed": -1}'}, "division.seed must be a whole number (at least 0), not -1"),
    ],
    ids=range(25),
)
def test_metadata_that_cannot_be_are_refused(tmp_path, change, words):
    path = tmp_path / "svm.skops"
    known = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    save_svm(machine(), path, metadata=known)
    _refused(path, words)
