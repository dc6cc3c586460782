"""Keras's augmentation layers in exports: the same features as without them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from cnnfeat.network import load_network
from cnnfeat.options import ProbeOptions


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def features(path: Path, images: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
    network = load_network(str(path))
    assert network.default_scale == "raw"
    probe = network.probe(network.find(["c"]), image_shape=(16, 16, 3), batch_size=batch_size)
    assert not probe.unsteady
    return np.concatenate(
        [probe(images[i : i + batch_size])[0] for i in range(0, len(images), batch_size)]
    )


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_an_export_gives_what_the_model_gives(
    library: ModuleType, images: np.ndarray, tmp_path: Path
) -> None:
    layers = library.layers
    model = library.Sequential([
        library.Input((16, 16, 3)),
        library.Sequential(
            [layers.RandomFlip("horizontal", name="mirror"), layers.RandomRotation(0.1)],
            name="augment",
        ),
        layers.RandomContrast(0.3),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, name="c"),
    ])  # fmt: skip
    model.export(str(tmp_path / "export"), **({"verbose": False} if library is keras else {}))
    expected = model(images.astype("float32"), training=False).numpy()
    for size in (1, 4):
        found = features(tmp_path / "export", images, batch_size=size)
        assert np.allclose(found, expected, atol=1e-5)


def test_what_is_not_proved_stays_and_is_named(images: np.ndarray, tmp_path: Path) -> None:
    class RandomFlip(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x + keras.random.normal(keras.ops.shape(x), seed=3)

    model = keras.Sequential([
        keras.Input((16, 16, 3)),
        RandomFlip(name="random_flip"),
        keras.layers.Conv2D(2, 3, name="c"),
    ])  # fmt: skip
    model.export(str(tmp_path / "export"), verbose=False)
    network = load_network(str(tmp_path / "export"))
    probe = network.probe(network.find(["c"]), ProbeOptions(), image_shape=(16, 16, 3))
    assert "StatelessRandomNormalV2" in probe.unsteady["c"][0]


def test_dropout_left_on_in_an_export_of_keras_2(tmp_path: Path) -> None:
    given = tf_keras.Input((8, 8, 1))
    values = tf_keras.layers.Conv2D(2, 3, name="c")(given)
    model = tf_keras.Model(given, tf_keras.layers.Dropout(0.5, name="drop")(values, training=True))
    model.export(str(tmp_path / "mc"))
    network = load_network(str(tmp_path / "mc"))
    probe = network.probe(network.find(["c", "drop"]), ProbeOptions(), image_shape=(8, 8, 1))
    assert list(probe.unsteady) == ["drop"]
