"""Reading machines: what is loaded, and what is refused unloaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

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


def machine() -> Pipeline:
    X = np.random.default_rng(0).standard_normal((20, 3))
    return Pipeline([("scale", StandardScaler()), ("svm", LinearSVC())]).fit(X, X[:, 0] > 0)


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
    _refused(path, "types that are not trusted, and was not loaded: posix.getcwd")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data))])
    _refused(saved, "skops file")


def test_flipped_bytes_are_refused_or_harmless(saved):
    data = saved.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        saved.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert load_svm(saved).layer == "fc1"
        except FeatureFileError as error:
            assert str(saved) in str(error)


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


@pytest.mark.parametrize("shape", [(10**12,), (2, -3), (3,)])
def test_an_array_that_declares_what_it_does_not_hold_is_refused(saved, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("1.npy", header.getvalue() + bytes(8))
    _refused(saved, "not an skops file")


def test_an_archive_in_the_archive_is_refused(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("1.npz", saved.read_bytes())
    _refused(saved, "not an skops file")


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
    json.dumps(load_svm(saved).metadata)


@pytest.mark.parametrize(
    "calibration", [7, {"method": "sigmoid"}, {"method": "other", "slopes": [1.0]}]
)
def test_a_strange_calibration_is_refused(tmp_path, calibration):
    path = tmp_path / "svm.skops"
    save_svm(machine(), path, metadata={**METADATA, "calibration": calibration})
    _refused(path, "damaged: its calibration")
