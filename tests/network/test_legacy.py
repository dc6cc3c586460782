"""Keras 2: whole models in HDF5, and SavedModels with their optimizer."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import load_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tf_keras

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras 2's own
NAMES = ["picture", "conv1", "norm", "act", "pool", "flat", "drop", "head"]


@pytest.fixture(scope="module")
def old_model() -> tf_keras.Model:
    """A functional model with batch norm and dropout, trained with Adam."""
    random = np.random.default_rng(0)
    layers = tf_keras.layers
    image = tf_keras.Input((12, 12, 1), name="picture")
    x = layers.Conv2D(3, 3, name="conv1")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu", name="act")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    model = tf_keras.Model(image, layers.Dense(4, name="head")(x), name="oldie")
    model.compile("adam", "mse")
    model.fit(random.random((32, 12, 12, 1)) * 5, random.random((32, 4)), epochs=2, verbose=0)
    return model


def expected(model: tf_keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    wanted = ["conv1", "norm", "act", "drop", "head"]
    outputs = [model.get_layer(name).output for name in wanted]
    values = tf_keras.Model(model.input, outputs)(images, training=False)
    return dict(zip(wanted, values, strict=True))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).random((3, 12, 12, 1), dtype=np.float32)


@pytest.mark.parametrize("kind", ["h5", "tf", "keras"])
def test_every_format_of_keras_2(kind: str, old_model, images, tmp_path: Path, agree) -> None:
    path = tmp_path / {"h5": "model.h5", "tf": "saved", "keras": "model.keras"}[kind]
    old_model.save(path, save_format=kind)
    network = load_network(str(path))
    assert [layer.name for layer in network.layers] == NAMES
    agree(network, images, expected(old_model, images))


def test_what_only_keras_2_reads(images, tmp_path: Path, agree, monkeypatch) -> None:
    tf_keras.utils.set_random_seed(1)  # whose images go through the ReLU
    image = tf_keras.Input((12, 12, 1), name="picture")
    x = tf_keras.layers.Conv2D(3, 3, name="conv1")(image)
    x = tf.nn.relu(x * 2.0 - 0.5)  # operations as layers: TFOpLambda
    model = tf_keras.Model(image, tf_keras.layers.Flatten(name="flat")(x))
    path = tmp_path / "model.h5"
    model.save(path)
    network = load_network(str(path))
    agree(network, images, {"conv1": model.get_layer("conv1")(images), "flat": model(images)})
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(NetworkError, match="a Keras 2 file that Keras 3") as caught:
        load_network(str(path))
    assert "pip install 'cnnfeat[legacy]'" in caught.value.hint


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_a_function_that_changed_its_meaning(ending: str, images, tmp_path, agree, monkeypatch):
    """Keras 3 reads the file, and computes something else."""
    image = tf_keras.Input((12, 12, 1), name="picture")
    x = tf_keras.layers.Conv2D(3, 3, activation="hard_sigmoid", name="conv1")(image)
    model = tf_keras.Model(image, x)
    path = tmp_path / f"model.{ending}"
    model.save(path)
    agree(load_network(str(path)), images, {"conv1": model(images)})
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(NetworkError, match="hard_sigmoid is another function in Keras 3"):
        load_network(str(path))


def test_axes_that_keras_3_leaves_out(images, tmp_path: Path, agree, monkeypatch) -> None:
    """Keras 3 reads the file, and takes the last axis in their place."""
    image = tf_keras.Input((12, 12, 1), name="picture")
    model = tf_keras.Model(image, tf_keras.layers.UnitNormalization([1, 2], name="unit")(image))
    path = tmp_path / "model.h5"
    model.save(path)
    agree(load_network(str(path)), images, {"unit": model(images)})
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(NetworkError, match=r"Keras 3 leaves out the axes \[1, 2\]"):
        load_network(str(path))


@pytest.mark.parametrize("kind", ["h5", "tf"])
def test_a_cropping_is_a_layer(kind: str, images, tmp_path: Path, agree) -> None:
    image = tf_keras.Input((12, 12, 1), name="picture")
    x = tf_keras.layers.Cropping2D(2, name="crop")(image)
    x = tf.ensure_shape(x, [None, 8, 8, 1])
    model = tf_keras.Model(image, tf_keras.layers.Conv2D(2, 3, name="conv1")(x))
    path = tmp_path / ("model.h5" if kind == "h5" else "saved")
    model.save(path, save_format=kind)
    cropped = images[:, 2:-2, 2:-2]
    agree(load_network(str(path)), images, {"crop": cropped, "conv1": model(images)})


@pytest.mark.parametrize("kind", ["h5", "tf"])
def test_nested_and_shared(kind: str, images, tmp_path: Path, agree) -> None:
    layers = tf_keras.layers
    inner_in = tf_keras.Input((12, 12, 2))
    inner_out = layers.ReLU(name="relu")(layers.Conv2D(2, 3, padding="same", name="conv")(inner_in))
    inner = tf_keras.Model(inner_in, inner_out, name="inner")
    image = tf_keras.Input((12, 12, 1), name="picture")
    x = layers.Conv2D(2, 3, padding="same", name="start")(image)
    model = tf_keras.Model(image, layers.Add(name="sum")([inner(x), inner(inner(x))]))
    path = tmp_path / ("model.h5" if kind == "h5" else "saved")
    model.save(path, save_format=kind)
    network = load_network(str(path))
    names = [layer.name for layer in network.layers]
    assert {"start", "inner", "inner/conv", "inner/relu", "sum"} <= set(names)
    if kind == "h5":
        assert {"inner@2", "inner@2/conv", "inner@3"} <= set(names)
    start = model.get_layer("start")(images)
    agree(network, images, {"start": start, "inner": inner(start), "sum": model(images)})


def test_a_subclassed_model(images, tmp_path: Path, agree) -> None:
    class Own(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = tf_keras.layers.Conv2D(3, 3, activation="relu", name="conv_a")
            self.head = tf_keras.layers.Dense(2, name="head_a")

        def call(self, x):
            return self.head(tf.reduce_mean(self.conv(x), [1, 2]))

    model = Own()
    value = model(images)
    model.save(tmp_path / "saved", save_format="tf")
    network = load_network(str(tmp_path / "saved"))
    agree(network, images, {"conv_a": model.conv(images), "head_a": value})


def test_weights_alone_are_explained(old_model, tmp_path: Path) -> None:
    old_model.save_weights(tmp_path / "old.h5")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "new.weights.h5"
    )
    for name in ("old.h5", "new.weights.h5"):
        with pytest.raises(NetworkError, match="holds weights only") as caught:
            load_network(str(tmp_path / name))
        assert "save('model.keras')" in caught.value.hint


def test_the_same_weights_through_several_formats(old_model, images, tmp_path: Path, agree) -> None:
    old_model.save(tmp_path / "a.h5")
    old_model.save(tmp_path / "b", save_format="tf")
    first = load_network(str(tmp_path / "a.h5"))
    probe = first.probe(first.find(["act", "head"]), image_shape=(12, 12, 1), image_dtype="float32")
    act, head = probe(images)
    agree(load_network(str(tmp_path / "b")), images, {"act": act, "head": head})
