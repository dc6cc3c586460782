"""Networks in several files: packed ones, weights apart from their architecture, TensorFlow.js."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from cnnfeat.errors import MissingInputError, NetworkError, UntrustedModelError
from cnnfeat.network import load_network

L, Q = keras.layers, tf_keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
UNIT = IMAGES / np.float32(255)


def features(path: Path, layer: str, **how: object) -> np.ndarray:
    network = load_network(str(path), **how)
    return network.probe(network.find([layer]), image_shape=(8, 8, 3))(IMAGES)[0]


@pytest.fixture(scope="module")
def teachable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """What Teachable Machine gives, unpacked; and the features of its layer "c"."""
    folder = tmp_path_factory.mktemp("teachable") / "converted_keras"
    folder.mkdir()
    model = tf_keras.Sequential([Q.Input((8, 8, 3)), Q.Conv2D(2, 3, name="c"), Q.Flatten()])
    with warnings.catch_warnings(action="ignore"):  # of an old format
        model.save(folder / "keras_model.h5")
    (folder / "labels.txt").write_text("0 cat\n1 big dog\n")
    return folder, model.layers[0](UNIT).numpy()


@pytest.mark.parametrize("packed", [False, True])
def test_a_download_of_teachable_machine(teachable, packed: bool, tmp_path: Path) -> None:
    folder, expected = teachable
    if packed:
        with zipfile.ZipFile(tmp_path / "converted_keras.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        folder = tmp_path / "converted_keras.zip"
    network = load_network(str(folder))
    assert network.classes == ("cat", "big dog")
    assert np.allclose(features(folder, "c"), expected, atol=1e-5)


def test_several_networks_in_one_folder_are_named(teachable, tmp_path: Path) -> None:
    data = (teachable[0] / "keras_model.h5").read_bytes()
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(NetworkError, match=r"several networks: a\.h5, b\.h5"):
        load_network(str(tmp_path))


def test_an_archive_that_leads_outside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../keras_model.h5", b"x")
    with pytest.raises(UntrustedModelError, match="outside the archive"):
        load_network(str(tmp_path / "a.zip"))


def test_an_archive_in_an_archive(teachable, tmp_path: Path) -> None:
    """One with a `.keras` file in it is read; what is packed twice isn't unpacked further."""
    keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3, name="c")]).save(tmp_path / "m.keras")
    inner, outer = tmp_path / "once.zip", tmp_path / "twice.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.write(tmp_path / "m.keras", "folder\\m.keras")
    assert features(inner, "c").shape == (4, 6, 6, 2)
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(inner, "once.zip")
    with pytest.raises(NetworkError, match="a zip archive without a model"):
        load_network(str(outer))


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5"])
def test_weights_with_their_architecture(library, name: str, tmp_path: Path) -> None:
    if library is keras and name == "w.h5":
        pytest.skip("Keras 3 writes no such file")
    layers = library.layers
    model = library.Sequential([
        library.Input((8, 8, 3)), layers.Conv2D(2, 3, name="c"), layers.BatchNormalization(name="n")
    ])  # fmt: skip
    model.save_weights(tmp_path / name)
    (tmp_path / "model.json").write_text(model.to_json())
    with pytest.raises(NetworkError, match="holds weights only") as refused:
        load_network(str(tmp_path / name))
    assert "--architecture" in refused.value.hint
    found = features(tmp_path / name, "n", architecture=str(tmp_path / "model.json"))
    assert np.allclose(found, np.asarray(model(UNIT)), atol=1e-5)
    other = library.Sequential([library.Input((8, 8, 3)), layers.Conv2D(5, 3, name="c")])
    (tmp_path / "other.json").write_text(other.to_json())
    with pytest.raises(NetworkError, match="no weights of the model in"):
        load_network(str(tmp_path / name), architecture=str(tmp_path / "other.json"))
    with pytest.raises(MissingInputError, match="no architecture"):
        load_network(str(tmp_path / name), architecture="nowhere.json")


def shards(folder: Path, model: tf_keras.Model, *, quantised: bool = False) -> Path:
    """Write a model as TensorFlow.js keeps it; its weights in two shards."""
    specs, data = [], b""
    for layer in model.layers:
        for weight in layer.weights:
            value = weight.numpy()
            spec = {"name": weight.name.removesuffix(":0"), "shape": list(value.shape),
                    "dtype": "float32"}  # fmt: skip
            if quantised:
                low, scale = float(value.min()), float(np.ptp(value)) / 255 or 1.0
                spec["quantization"] = {"dtype": "uint8", "min": low, "scale": scale}
                value = np.round((value - low) / scale).astype(np.uint8)
            specs.append(spec)
            data += value.tobytes()
    names = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    for name, part in zip(names, (data[: len(data) // 3], data[len(data) // 3 :]), strict=True):
        (folder / name).write_bytes(part)
    config = json.loads(model.to_json())
    document = {
        "format": "layers-model",
        "modelTopology": {"keras_version": "2.15.0", "backend": "tensorflow",
                          "model_config": config},
        "weightsManifest": [{"paths": names, "weights": specs}],
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(document))
    return folder / "model.json"


def nested() -> tf_keras.Model:
    body = tf_keras.Sequential(
        [Q.Input((8, 8, 3)), Q.Conv2D(2, 3, name="c"), Q.BatchNormalization(name="n")], name="body"
    )
    head = tf_keras.Sequential([Q.Input((6, 6, 2)), Q.Flatten(), Q.Dense(2, name="d")], name="head")
    return tf_keras.Sequential([body, head])


def test_a_model_whose_file_lacks_weights_is_refused(tmp_path: Path) -> None:
    body = tf_keras.Sequential([Q.Input((8, 8, 3)), Q.Conv2D(2, 3, name="c")], name="body")
    lacking = tf_keras.Sequential([body, Q.Flatten(), Q.Dense(2, name="d")])  # not called: no "d"
    with pytest.raises(NetworkError, match="no weights of some of its layers"):
        load_network(str(shards(tmp_path, lacking)))


@pytest.mark.parametrize("quantised", [False, True])
def test_a_layers_model_of_tensorflow_js(quantised: bool, tmp_path: Path) -> None:
    model = nested()
    path = shards(tmp_path, model, quantised=quantised)
    expected = model(UNIT).numpy()
    close = 0.02 * np.abs(expected).max() if quantised else 1e-5
    assert np.allclose(features(path, "head"), expected, atol=close)
    assert load_network(str(path)).format == "tfjs"
    if not quantised:
        (tmp_path / "group1-shard2of2.bin").unlink()
        with pytest.raises(NetworkError, match=r"there is no .*group1-shard2of2\.bin"):
            load_network(str(path))


def test_a_graph_model_of_tensorflow_js_is_named(tmp_path: Path) -> None:
    document = {"format": "graph-model", "modelTopology": None, "weightsManifest": []}
    (tmp_path / "model.json").write_text(json.dumps(document))
    with pytest.raises(NetworkError, match="a graph model"):
        load_network(str(tmp_path / "model.json"))


def test_what_was_read_apart_is_found_again(cnnfeat, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3, name="c")])
    model.save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "model.json").write_text(model.to_json())
    np.save(tmp_path / "x.npy", IMAGES)
    done = cnnfeat(
        "extract", "--model", "w.weights.h5", "--architecture", "model.json", "--layer", "c",
        "--data", "x.npy", "-o", "o.h5", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    with h5py.File(tmp_path / "o.h5") as file:
        assert np.allclose(file["all/c"][:], model(UNIT), atol=1e-5)
    drawn = cnnfeat("plot", "activations", "--features", "o.h5", "--layer", "c", "-o", "a.png")
    assert drawn.returncode == 0
