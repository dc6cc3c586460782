"""TensorFlow Lite, float and quantised, against its own interpreter and plain Keras."""

from __future__ import annotations

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import Network, load_network

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
UNIT = IMAGES / np.float32(255)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 3)),
        layers.Conv2D(4, 3, activation="relu", name="c"),
        layers.GlobalAveragePooling2D(name="gap"),
        layers.Dense(3, name="d"),
    ])  # fmt: skip


@pytest.fixture(scope="module", params=["float", "quantised"])
def lite(
    request: pytest.FixtureRequest, model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("lite")
    model.export(str(folder / "export"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "export"))
    if request.param == "quantised":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in UNIT)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    path = folder / f"{request.param}.tflite"
    with warnings.catch_warnings(action="ignore"):
        path.write_bytes(converter.convert())
    return path


def by_kind(network: Network, kind: str) -> str:
    return next(layer.name for layer in network.layers if layer.kind == kind)


def test_every_layer_gives_what_keras_gives(
    lite: Path, model: keras.Model, capfd: pytest.CaptureFixture[str]
) -> None:
    network = load_network(str(lite))
    assert (network.format, network.default_scale) == ("tflite", "unit")
    names = [by_kind(network, kind) for kind in ("CONV_2D", "MEAN", "FULLY_CONNECTED")]
    probe = network.probe(network.find(names), image_shape=(8, 8, 3))
    c = model.layers[0](UNIT)
    gap = model.layers[1](c)
    expected = [np.asarray(one) for one in (c, gap, model.layers[2](gap))]
    for found, wanted in zip(probe(IMAGES), expected, strict=True):
        close = 1e-5 if "float" in lite.name else 0.03 * np.abs(wanted).max()
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= close
    said = capfd.readouterr().err
    assert not any(word in said for word in ("deprecated", "LiteRT", "XNNPACK", "INFO"))


def test_the_last_layer_is_that_of_the_interpreter(lite: Path) -> None:
    network = load_network(str(lite))
    last = by_kind(network, "FULLY_CONNECTED")
    (found,) = network.probe(network.find([last]), image_shape=(8, 8, 3))(IMAGES)
    with warnings.catch_warnings(action="ignore"):
        plain = tf.lite.Interpreter(model_path=str(lite))
    plain.allocate_tensors()
    (given,), (taken,) = plain.get_input_details(), plain.get_output_details()
    for row, image in zip(found, IMAGES, strict=True):
        value = image if given["dtype"] == np.uint8 else image / np.float32(255)
        plain.set_tensor(given["index"], value[None])
        plain.invoke()
        out = plain.get_tensor(taken["index"])[0]
        if given["dtype"] == np.uint8:
            scale, zero = taken["quantization"]
            # The output's own type is made from the layer's by one more operation.
            assert np.abs(row - (out.astype(np.float32) - zero) * scale).max() <= 1.01 * scale
        else:
            assert np.allclose(row, out, atol=1e-5)


def test_the_command_line_takes_it(cnnfeat, lite: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    listed = cnnfeat("layers", lite)
    assert listed.returncode == 0
    assert "CONV_2D" in listed.stdout
    done = cnnfeat(
        "extract", "--model", lite, "--layer", "**", "--data", tmp_path / "x.npy",
        "-o", tmp_path / "o.h5",
    )  # fmt: skip
    assert done.returncode == 0
    missed = cnnfeat("extract", "--model", lite, "--layer", "zzz", "-o", tmp_path / "p.h5")
    assert missed.returncode == 4


def test_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    with pytest.raises(NetworkError, match="can't run it"):
        load_network(str(tmp_path / "m.tflite"))


def test_images_of_any_size(tmp_path: Path) -> None:
    given = keras.Input((None, None, 3))
    values = keras.layers.Conv2D(2, 3, name="c")(given)
    model = keras.Model(given, keras.layers.GlobalAveragePooling2D()(values))
    model.export(str(tmp_path / "export"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "export"))
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    network = load_network(str(tmp_path / "m.tflite"))
    assert network.image_shape == (None, None, 3)
    mean = network.find([by_kind(network, "MEAN")])
    for images in (IMAGES, np.tile(IMAGES, (1, 2, 1, 1))):
        (found,) = network.probe(mean, image_shape=images.shape[1:])(images)
        assert np.allclose(found, model(images / np.float32(255)), atol=1e-5)
