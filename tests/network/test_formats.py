"""What kind of file a model is, by content; other frameworks refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.errors import MissingInputError, NetworkError
from cnnfeat.network import open_network
from cnnfeat.network.formats import sniff


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def onnx() -> bytes:
    return b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\x80\x01" + bytes(128)


FOREIGN = [
    (onnx(), "an ONNX model", "onnx2tf"),
    (b"\x08\x0a\x3a\x10" + bytes(128), "an ONNX model", "onnx2tf"),
    (b"\x08" + bytes(7) + b'{"a": 1}', "a safetensors file", "model.save"),
    (b"\x08\xbd\xef\x91\xd2\x05\x10\x01", "no model this program knows", "models are"),
    (zipped("archive/data.pkl", "archive/data/0"), "a PyTorch file", "ONNX"),
    (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "an old PyTorch file", "ONNX"),
    (b"sys_info".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"), "an old PyTorch file", "ONNX"),
    (pickle.dumps({"a": 1}), "a Python pickle", "nothing is unpickled"),
    (pickle.dumps([1, 2], protocol=0), "a Python pickle", "nothing is unpickled"),
    (pickle.dumps(np.ones(3), protocol=2), "a Python pickle", "nothing is unpickled"),
    (zipped("a.npy"), "NumPy arrays", "--data"),
    (zipped("model/saved_model.pb"), "a packed SavedModel", "unpack"),
    (b"\x1f\x8b\x08" + bytes(64), "a packed file", "unpack"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
    (json.dumps({"class_name": "Sequential"}).encode(), "a JSON file", "model.save"),
    (b"", "is empty", "models are"),
    (b"just some words\n", "no model this program knows", "models are"),
    (bytes(range(1, 200)), "no model this program knows", "models are"),
    (zipped("a.txt"), "a zip archive without a model", "models are"),
]


@pytest.mark.parametrize(("content", "what", "hint"), FOREIGN, ids=[item[1] for item in FOREIGN])
def test_other_files_are_refused_by_name(
    content: bytes, what: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=what) as caught:
        sniff(path)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 4


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="there is no model"):
        sniff(tmp_path / "a")


def test_a_folder_with_no_model_names_one_inside(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"neither saved_model\.pb nor a checkpoint"):
        sniff(tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(NetworkError) as caught:
        sniff(tmp_path)
    assert f"did you mean {tmp_path / '1'}" in caught.value.hint


def test_a_feature_file_is_no_network(tmp_path: Path) -> None:
    from cnnfeat.network import load_network

    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "cnnfeat-features"
    with pytest.raises(NetworkError, match="a file of features, no network"):
        load_network(str(path))


def test_another_hdf5_file(tmp_path: Path) -> None:
    from cnnfeat.network import load_network

    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(NetworkError, match="no Keras model"):
        load_network(str(path))


def test_a_link_to_a_file_is_followed(seed_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(seed_file)
    assert sniff(link).value == "keras"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt", "checkpoint", "m.meta"])
def test_a_pipe_among_a_networks_files_is_not_waited_for(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    with pytest.raises(NetworkError, match=f"{tmp_path / name}: is a pipe"):
        open_network(str(tmp_path))


def test_a_shard_that_leads_back_to_itself_is_missing(tmp_path: Path):
    (tmp_path / "shard").symlink_to("shard")
    manifest = [{"paths": ["shard"], "weights": []}]
    model = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(NetworkError, match="shard"):
        open_network(str(tmp_path / "model.json"))
