"""Fitting images to an input: shapes, layouts, scales, and what doesn't fit."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network.feeding import image_input
from cnnfeat.network.graph import GraphInput
from cnnfeat.network.preprocessing import Preprocessing, fit_images, size_taken
from cnnfeat.options import ProbeOptions
from cnnfeat.records import ImageTarget


def take(shape: tuple[int | None, ...] | None, dtype: tf.DType = tf.float32):
    return image_input([GraphInput("images", "images:0", dtype, shape)])


def fitted(shape, *, images: np.ndarray, scale: str = "raw", dtype=tf.float32) -> np.ndarray:
    plan: Preprocessing = fit_images(
        take(shape, dtype),
        ProbeOptions(scale=scale),
        image_shape=images.shape[1:],
        image_dtype=images.dtype.name,
        default_scale="raw",
    )
    return plan(tf.constant(images)).numpy()


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 4, 6, 1), dtype=np.uint8)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)


def test_the_layouts(grey: np.ndarray, rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(fitted((None, 4, 6, 1), images=grey), grey)
    np.testing.assert_array_equal(fitted((None, 4, 6), images=grey), grey[..., 0])
    np.testing.assert_array_equal(fitted((None, 24), images=grey), grey.reshape(2, 24))
    np.testing.assert_array_equal(fitted((None, 72), images=rgb), rgb.reshape(2, 72))
    np.testing.assert_array_equal(fitted((None, 3, 4, 6), images=rgb), rgb.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(fitted((None, None, None, 3), images=rgb), rgb)
    np.testing.assert_array_equal(fitted(None, images=rgb), rgb)
    np.testing.assert_array_equal(fitted((None, None, 3), images=rgb[:1]), rgb[0])


def test_the_scales_are_those_of_keras(rgb: np.ndarray) -> None:
    from keras.src.applications.imagenet_utils import preprocess_input

    def close(scale: str, wanted: np.ndarray) -> None:
        value = fitted((None, 4, 6, 3), images=rgb, scale=scale)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-5)

    pixels = rgb.astype(np.float32)
    close("raw", pixels)
    close("unit", pixels / 255)
    close("symmetric", preprocess_input(pixels.copy(), mode="tf"))
    close("imagenet", preprocess_input(pixels.copy(), mode="torch"))
    close("caffe", preprocess_input(pixels.copy(), mode="caffe"))


def test_sixteen_bits_are_scaled_by_their_own_range() -> None:
    images = np.array([0, 257, 65_535], np.uint16).reshape(3, 1, 1, 1)
    value = fitted((None, 1, 1, 1), images=images, scale="unit")
    np.testing.assert_allclose(value.ravel(), [0, 1 / 255, 1], rtol=1e-6)


@pytest.mark.parametrize("given", ["float32", "float64", "uint16"])
def test_values_an_integer_input_would_cut_or_wrap_are_refused(given: str) -> None:
    with pytest.raises(NetworkError, match=f"images of {given} don't fit .* uint8"):
        fit_images(
            take((None, 8, 8, 1), tf.uint8),
            ProbeOptions(),
            image_shape=(8, 8, 1),
            image_dtype=given,
            default_scale="raw",
        )


def test_float_images_count_as_scaled() -> None:
    images = np.array([0, 0.25, 1], np.float32).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(
        fitted((None, 1, 1, 1), images=images, scale="symmetric").ravel(), [-1, -0.5, 1]
    )


def plan(shape, image_shape, **options) -> Preprocessing:
    return fit_images(
        take(shape),
        ProbeOptions(**options),
        image_shape=image_shape,
        image_dtype="uint8",
        default_scale="unit",
    )


def test_the_source_is_told_what_to_bring_images_to() -> None:
    assert plan((None, 8, 8, 3), (8, 8, 1)).target.channels == 3
    assert plan((None, 8, 8, 1), (8, 8, 3)).target.channels == 1
    assert plan((None, 64), (8, 8, 3)).target.channels == 1
    resized = plan((None, 8, 8, 3), (20, 30, 3), resize=(8, 8))
    assert (resized.target.size, resized.target.channels) == ((8, 8), 3)


def test_a_fit_goes_with_the_size() -> None:
    fitted = plan((None, 8, 8, 3), (20, 30, 3), resize=(8, 8), fit="pad")
    assert fitted.target == ImageTarget((8, 8), 3, "pad")
    assert fitted.record["fit"] == "pad"
    assert "resized to 8×8 (--fit pad)" in str(fitted)
    flat = plan((None, 64), (20, 30, 3), resize=(8, 8))
    assert flat.target == ImageTarget((8, 8), 1)


@pytest.mark.parametrize(
    ("shape", "image_shape", "size"),
    [
        ((None, 8, 9, 3), (20, 30, 1), (8, 9)),
        ((None, 3, 8, 9), (20, 30, 1), (8, 9)),
        ((None, 8, 9), (20, 30, 1), (8, 9)),
        ((None, None, None, 3), (20, 30, 3), None),
        ((None, 8, None, 3), (20, 30, 3), (8, 30)),
        ((None, 784), (100, 80, 3), (28, 28)),
        ((None, 3072), (100, 80, 1), (32, 32)),
        ((None, 600), (20, 30, 3), (20, 30)),
        ((None, 10), (20, 30, 3), None),
    ],
)
def test_the_size_a_network_takes(shape, image_shape, size) -> None:
    assert size_taken(take(shape), image_shape) == size


def test_what_was_done_is_recorded() -> None:
    assert plan((None, 8, 8, 3), (20, 30, 1), resize=(8, 8)).record == {
        "input": "images:0",
        "layout": "NHWC",
        "dtype": "float32",
        "scale": "unit",
        "resize": [8, 8],
        "fit": None,
        "channels": 3,
        "pixels": "uint8",
    }


@pytest.mark.parametrize(
    ("shape", "image_shape", "message", "hint"),
    [
        ((None, 8, 8, 3), (9, 8, 3), r"\(9, 8, 3\) don't fit .* takes \(8, 8, 3\)", "--resize 8x8"),
        ((None, 784), (8, 8, 1), r"\(8, 8, 1\) don't fit .* takes \(784,\)", "--resize 28x28"),
        ((None, 3, 8, 8), (4, 4, 3), r"takes \(3, 8, 8\)", "--resize 8x8"),
        ((None, 10), (4, 4, 1), r"takes \(10,\)", "images of 10 numbers"),
        ((None, 8, 8, 4), (8, 8, 3), "takes 4 channels, .* have 3", "(n, height, width, 4)"),
    ],
)
def test_images_that_dont_fit(shape, image_shape, message: str, hint: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        plan(shape, image_shape)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 4


def test_scales_that_dont_go() -> None:
    with pytest.raises(NetworkError, match="must be one of unit, symmetric"):
        plan((None, 8, 8, 3), (8, 8, 3), scale="huge")
    with pytest.raises(NetworkError, match="--scale caffe is for RGB"):
        plan((None, 8, 8, 1), (8, 8, 1), scale="caffe")
    with pytest.raises(NetworkError, match="makes fractions"):
        fit_images(
            take((None, 8, 8, 1), tf.uint8),
            ProbeOptions(scale="unit"),
            image_shape=(8, 8, 1),
            image_dtype="uint8",
            default_scale="raw",
        )


@pytest.mark.parametrize(
    ("layers", "dtype", "scale"),
    [
        ([], "uint8", "raw"),
        ([], "float32", "unit"),
        ([keras.layers.Rescaling(1 / 255)], "float32", "raw"),
        ([keras.layers.Normalization(mean=0.5, variance=2.0)], "float32", "raw"),
    ],
)
def test_the_default_scale(layers, dtype: str, scale: str, tmp_path) -> None:
    from cnnfeat.network import load_network

    head = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((6, 6, 1), dtype=dtype), *layers, head])
    model.save(tmp_path / "model.keras")
    assert load_network(str(tmp_path / "model.keras")).default_scale == scale


@pytest.mark.parametrize(
    ("body", "scale"),
    [
        (lambda x: x, "unit"),
        (lambda x: x * 2.0 - 1.0, "unit"),
        (lambda x: (x - 128.0) / 128.0, "raw"),
        (lambda x: x * (1 / 255), "raw"),
        (lambda x: tf.compat.v1.image.resize_bilinear(x, [4, 4]) / 255.0, "raw"),
        (lambda x: tf.nn.relu(x) / 255.0, "unit"),
    ],
)
def test_a_graph_that_scales_by_itself(body, scale: str, tf1, tmp_path) -> None:
    from cnnfeat.network import load_network

    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        tf.nn.relu(body(x), name="out")

    path = tf1(build).freeze(tmp_path / "a.pb", outputs=["out"])
    assert load_network(str(path)).default_scale == scale


@pytest.mark.filterwarnings("ignore")  # Keras 2's own
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_keras_model_that_scales_by_arithmetic(ending: str, tmp_path) -> None:
    from cnnfeat.network import load_network

    tf_keras = pytest.importorskip("tf_keras")
    layers = keras if ending == "keras" else tf_keras
    image = layers.Input((6, 6, 1))
    out = layers.layers.GlobalAveragePooling2D()(image / 127.5 - 1.0)
    path = tmp_path / f"model.{ending}"
    layers.Model(image, out).save(path)
    assert load_network(str(path)).default_scale == "raw"


def test_what_was_chosen_is_said(seed_network, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("cnnfeat").propagate = True
    with caplog.at_level(logging.INFO, "cnnfeat"):
        seed_network.probe(
            seed_network.find(["fc1"]), ProbeOptions(resize=(28, 28)), image_shape=(8, 8, 3)
        )
    assert "images: to 'image', (28, 28, 1) uint8, --scale raw, resized to 28×28" in caplog.text


def preprocessed(name: str):
    return getattr(keras.applications, name).preprocess_input


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(
    "before",
    [
        preprocessed("resnet50"),
        preprocessed("mobilenet_v2"),
        preprocessed("densenet"),
        lambda x: keras.layers.Rescaling(1 / 255)(x[:, ::-1]),
        keras.layers.Normalization(mean=[120.0, 115.0, 100.0], variance=[900.0] * 3),
    ],
    ids=["caffe", "tf", "torch", "flipped", "normalized"],
)
def test_what_is_scaled_inside_takes_pixels_as_they_are(before, exported, tmp_path) -> None:
    from cnnfeat.network import load_network

    image = keras.Input((6, 6, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="c")(before(image)))
    path = tmp_path / "m.keras"
    model.save(path)
    if exported:
        path = tmp_path / "export"
        model.export(str(path), verbose=False)
    network = load_network(str(path))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    (found,) = network.probe(network.find(["c"]), image_shape=(6, 6, 3))(pixels)
    assert network.default_scale == "raw"
    assert np.allclose(found, model(pixels.astype("float32")).numpy(), rtol=1e-4, atol=1e-3)


def test_a_chosen_scale_is_said_with_its_reason(cnnfeat, tmp_path) -> None:
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(2, 3, name="c")])
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", np.zeros((2, 6, 6, 3), np.uint8))
    words = ["--model", "m.keras", "--layer", "c", "--data", "x.npy", "-o", "o.h5"]
    said = cnnfeat("extract", *words, folder=tmp_path).stderr
    assert "--scale unit (a guess, as nothing in the network shows what it takes" in said
    assert "a guess" not in cnnfeat("extract", *words, "--scale", "unit", "--overwrite").stderr
    assert "--scale unit (a guess" in cnnfeat("layers", "m.keras").stdout
