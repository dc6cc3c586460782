"""The weights behind a layer are those that plain Keras reads."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network import load_network


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="first", use_bias=False)(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = keras.layers.Conv2D(5, 1, name="second", activation="relu")(x)
    x = keras.layers.MaxPooling2D(2, name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(6, name="dense")(x)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model(image, x).save(path)
    return path


@pytest.mark.parametrize(
    ("layer", "source", "op"),
    [
        ("first", "first", "Conv2D"),
        ("norm", "first", "Conv2D"),
        ("relu", "first", "Conv2D"),
        ("second", "second", "Conv2D"),
        ("pool", "second", "Conv2D"),
        ("flatten", "second", "Conv2D"),
        ("dense", "dense", "MatMul"),
    ],
)
def test_kernel_is_that_of_the_nearest_layer_with_weights(model_path, layer, source, op):
    network = load_network(str(model_path))
    kernel = network.kernel(network.find([layer])[0])
    expected = keras.models.load_model(model_path).get_layer(source).kernel.numpy()
    assert kernel is not None
    np.testing.assert_array_equal(kernel.weights, expected)
    assert kernel.op == op
    assert kernel.is_filters == (op == "Conv2D")


def test_depthwise_filters_stand_one_by_one(model_path):
    network = load_network(str(model_path))
    kernel = network.kernel(network.find(["depthwise"])[0])
    (expected, _) = keras.models.load_model(model_path).get_layer("depthwise").get_weights()
    assert expected.shape == (3, 3, 4, 2)
    assert kernel is not None
    assert kernel.weights.shape == (3, 3, 1, 8)
    np.testing.assert_array_equal(kernel.weights[:, :, 0, 5], expected[:, :, 2, 1])


def test_the_input_has_no_kernel(model_path):
    network = load_network(str(model_path))
    assert network.kernel(network.find(["image"])[0]) is None


def test_kernels_of_a_frozen_graph_are_read_through_identities(tmp_path):
    weights = np.random.default_rng(0).standard_normal((3, 3, 1, 2)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 1), name="x")
        held = tf.identity(tf.constant(weights, name="W"), name="W/read")
        tf.nn.relu(tf.nn.conv2d(image, held, 1, "SAME", name="conv"), name="out")
        computed = tf.tile(image[:1, :3, :3], [1, 1, 1, 1])
        tf.nn.conv2d(image, tf.reshape(computed, (3, 3, 1, 1)), 1, "SAME", name="own")
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    network = load_network(str(path))
    kernel = network.kernel(network.find(["out"])[0])
    assert kernel is not None
    np.testing.assert_array_equal(kernel.weights, weights)
    assert network.kernel(network.find(["own:0"])[0]) is None  # its kernel is the image itself


def test_a_constant_that_tensorflow_cannot_compute_is_none(tmp_path: Path) -> None:
    """Found by changing a configuration: pixels are scaled by a text."""
    layers = [keras.Input((8, 8, 1)), keras.layers.Rescaling(0.5), keras.layers.Conv2D(2, 3)]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as old,
        zipfile.ZipFile(tmp_path / "n.keras", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"scale": 0.5', b'"scale": "half"'))
    network = load_network(str(tmp_path / "n.keras"))
    assert network.default_scale in ("raw", "unit")
