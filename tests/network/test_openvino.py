"""OpenVINO beside TensorFlow: the same values, what it can't run, and what it is kept from."""

from __future__ import annotations

import builtins
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import Network, engines, open_network, openvino
from cnnfeat.network.engine import UnservedError
from cnnfeat.options import ProbeOptions

pytest.importorskip("openvino")
layers = keras.layers


def probe_of(network: Network, *names: str, shape=(28, 28, 1), dtype="uint8", **options):
    options = ProbeOptions(**{"engine": "openvino", **options})
    return network.probe(network.find(names), options, image_shape=shape, image_dtype=dtype)


def compare(model: keras.Model, images: np.ndarray, *names: str, engine: str = "openvino") -> None:
    """Hold features by OpenVINO against what Keras computes of the same layers."""
    keras_outputs = [model.get_layer(name).output for name in names]
    wanted = keras.Model(model.inputs, keras_outputs).predict(images, verbose=0)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    probe = probe_of(
        open_network(model), *names,
        shape=images.shape[1:], dtype=images.dtype.name, scale="raw", engine=engine,
    )  # fmt: skip
    assert engine == "auto" or probe.engine.startswith("openvino 20")
    for found, one in zip(probe(images), wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=0, atol=1e-5 * np.abs(one).max())


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)


# ---- the same values ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_it_gives_what_keras_gives(n: int, seed_network: Network, seed_model: keras.Model) -> None:
    images = np.random.default_rng(n).integers(0, 256, (n, 28, 28, 1), np.uint8)
    wanted = seed_model(images).numpy() if n else np.empty((0, 10))
    (found,) = probe_of(seed_network, "fc2")(images)
    assert found.shape == (n, 10)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1))


@pytest.mark.parametrize(
    ("shape", "batch_size", "wanted"),
    [
        ((224, 224, 3), 4, 2),
        ((224, 224, 3), 3, 1),  # two at a time would compute four
        ((224, 224, 3), 512, 2),
        ((28, 28, 1), 512, 128),
        ((28, 28, 1), 1, 1),
        ((600, 400, 3), 4, 1),
    ],
)
def test_a_batch_goes_through_in_pieces(
    shape: tuple[int, ...], batch_size: int, wanted: int
) -> None:
    assert openvino._piece(shape, batch_size) == wanted


def test_pieces_of_several_batches_at_a_time(
    seed_network: Network, seed_model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_PIECE_PIXELS", 4 * 28 * 28)
    probe = probe_of(seed_network, "fc2")
    images = np.random.default_rng(5).integers(0, 256, (90, 28, 28, 1), np.uint8)
    batches = [images[start : start + 15] for start in range(0, 90, 15)]
    with ThreadPoolExecutor(3) as pool:
        found = np.concatenate([found for (found,) in pool.map(probe, batches)])
    wanted = seed_model(images).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_all_images_of_a_batch_make_is_for_tensorflow() -> None:
    image = keras.Input((8, 8, 1))
    less = layers.Lambda(lambda x: x - keras.ops.cumsum(x, axis=0), name="less")
    network = open_network(keras.Model(image, less(image)))
    with pytest.raises(NetworkError, match="it computes other values of"):
        probe_of(network, "less", shape=(8, 8, 1))


def test_features_do_not_change_with_later_images(seed_network: Network, pixels) -> None:
    probe = probe_of(seed_network, "conv2")
    first = probe(pixels)[0]
    kept = first.copy()
    probe(255 - pixels)
    np.testing.assert_array_equal(first, kept)


def test_images_of_a_map_and_of_every_other_row(seed_network: Network, pixels) -> None:
    probe = probe_of(seed_network, "fc1")
    (wanted,) = probe(pixels)
    fixed = pixels.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(probe(fixed)[0], wanted)
    np.testing.assert_array_equal(probe(pixels[::2])[0], wanted[::2])


def test_a_tensor_asked_for_twice_and_pooled(seed_network: Network, pixels) -> None:
    twice = probe_of(seed_network, "conv2", "conv2/relu/Relu:0", "image", pool="avg")(pixels)
    (whole,) = probe_of(seed_network, "conv2")(pixels)
    np.testing.assert_allclose(twice[0], whole.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(twice[0], twice[1])
    np.testing.assert_allclose(twice[2], pixels.mean((1, 2)), rtol=1e-6)


def _u_net() -> keras.Model:
    image = keras.Input((16, 16, 3))
    down = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="low")(down)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(x)
    x = layers.Concatenate(name="joined")([x, down, layers.UpSampling2D(2)(image[:, ::2, ::2])])
    return keras.Model(image, layers.Conv2D(2, 1, activation="softmax", name="mask")(x))


def _recurrent(cell: type) -> keras.Model:
    image = keras.Input((8, 6, 1))
    x = layers.Reshape((8, 6))(image)
    x = cell(5, return_sequences=True, name="steps")(x)
    return keras.Model(image, layers.Bidirectional(cell(3), name="last")(x))


def _blocks() -> keras.Model:
    """What ConvNeXt, EfficientNet and transformers are made of."""
    image = keras.Input((16, 16, 4))
    x = layers.DepthwiseConv2D(7, padding="same")(image)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(8, activation="gelu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.SeparableConv2D(6, 3, activation="swish", name="separable")(x)
    x = layers.GroupNormalization(2, name="groups")(x)
    x = layers.Reshape((-1, 6))(x)
    return keras.Model(image, layers.MultiHeadAttention(2, 4, name="attention")(x, x))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (_u_net, ("low", "up", "joined", "mask")),
        (_blocks, ("norm", "gated", "separable", "groups", "attention")),
    ],
    ids=["u-net", "blocks"],
)
def test_kinds_of_networks(build, names: tuple[str, ...]) -> None:
    keras.utils.set_random_seed(7)
    model = build()
    compare(model, floats(3, *model.input_shape[1:]), *names)


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU], ids=["lstm", "gru"])
def test_recurrent_layers(cell: type) -> None:
    keras.utils.set_random_seed(7)
    compare(_recurrent(cell), floats(3, 8, 6, 1), "steps", "last")


@pytest.mark.slow
def test_all_layers_of_mobilenet() -> None:
    keras.utils.set_random_seed(7)
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35)
    names = [layer.name for layer in model.layers[1:]]
    compare(model, floats(2, 32, 32, 3), *names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "EfficientNetB0", "VGG16", "ConvNeXtTiny"])
def test_networks_of_the_table(name: str) -> None:
    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, name)(weights=None, include_top=False, pooling="avg",
                                              input_shape=(224, 224, 3))  # fmt: skip
    compare(model, floats(2, 224, 224, 3), model.layers[-1].name)


# ---- which one runs -----------------------------------------------------------------------------


def test_auto_takes_it_and_says_so(
    seed_network: Network, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "_DEEP", 1)
    with caplog.at_level(logging.INFO, "cnnfeat"):
        probe = probe_of(seed_network, "conv1", engine="auto")
    assert probe.engine == f"openvino {openvino.load().__version__.split('-')[0]}"
    assert f"engine: {probe.engine}" in caplog.messages


@pytest.mark.parametrize("why", ["absent", "machine", "asked", "shallow"])
def test_tensorflow_runs_without_a_look_at_it(
    why: str, seed_network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "load", lambda: pytest.fail("it is loaded"))
    if why != "shallow":
        monkeypatch.setattr(engines, "_DEEP", 1)
    if why == "absent":
        monkeypatch.setattr(engines, "installed", lambda: False)
    if why == "machine":
        monkeypatch.setattr("platform.machine", lambda: "riscv64")
    engine = "tensorflow" if why == "asked" else "auto"
    probe = probe_of(seed_network, "conv1", engine=engine, pool="max")
    assert probe.engine == f"tensorflow {tf.__version__}"


def test_it_has_to_be_installed(seed_network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.partition(".")[0] == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'")
        return real(name, *args)

    openvino.load.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NetworkError, match="needs OpenVINO, which can't be loaded") as caught:
        probe_of(seed_network, "conv1", pool="avg")
    assert "pip install 'cnnfeat[openvino]'" in caught.value.hint


def _random(tf1) -> Network:
    def build() -> list[tf.Tensor]:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], name="x")
        noise = tf.random.uniform(tf.shape(x), name="noise")
        return [tf.add(x, noise, name="noisy")]

    return open_network(tf1(build).graph)


def test_what_is_random_is_for_tensorflow(tf1, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _random(tf1)
    monkeypatch.setattr(engines, "_DEEP", 0)
    assert probe_of(network, "noisy", shape=(8, 8, 1), engine="auto").engine.startswith("tensor")
    with pytest.raises(NetworkError, match="can't run this network: its features depend on chance"):
        probe_of(network, "noisy", shape=(8, 8, 1))


def _unsupported(tf1) -> Network:
    def build() -> list[tf.Tensor]:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], name="x")
        flat = tf.reshape(x, [-1, 64])
        return [tf.raw_ops.Betainc(a=flat + 1.0, b=flat + 2.0, x=flat / 300.0, name="beta")]

    return open_network(tf1(build).graph)


def test_what_it_cannot_run_is_for_tensorflow(
    tf1, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _unsupported(tf1)
    monkeypatch.setattr(engines, "_DEEP", 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with caplog.at_level(logging.INFO, "cnnfeat"):
        probe = probe_of(network, "beta", shape=(8, 8, 1), engine="auto")
    assert probe.engine.startswith("tensorflow ")
    (line,) = [text for text in caplog.messages if text.startswith("TensorFlow runs it")]
    assert "Betainc" in line and "\n" not in line
    with pytest.raises(NetworkError, match=r"--engine openvino can't run 'beta' of .*Betainc"):
        probe_of(network, "beta", shape=(8, 8, 1))


def test_other_values_than_tensorflow_are_none(
    seed_network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = openvino._Pieces.__call__
    monkeypatch.setattr(
        openvino._Pieces, "__call__", lambda self, x: [one * 1.01 for one in run(self, x)]
    )
    with pytest.raises(NetworkError, match="it computes other values of"):
        probe_of(seed_network, "fc1", pool="flatten")
    monkeypatch.setattr(engines, "_DEEP", 1)
    found = probe_of(seed_network, "fc1", pool="flatten", engine="auto")
    assert found.engine.startswith("tensorflow")


# ---- what it is kept from -----------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_told_to_its_makers(tmp_path: Path) -> None:
    code = """
import os, socket, sys
def refuse(*args): raise SystemExit("the network is asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from cnnfeat.network import openvino
openvino.load()
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
print("intel" in os.listdir(os.environ["HOME"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path),
             "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_it_computes_in_single_precision(seed_network: Network, pixels) -> None:
    probe = probe_of(seed_network, "fc1")
    (run,) = probe._functions.values()
    assert run._requests._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_what_ran_the_first_images_runs_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "_DEEP", 0)
    image = keras.Input((None, None, 1))
    network = open_network(keras.Model(image, layers.Conv2D(2, 3, name="conv")(image)))
    probe = probe_of(network, "conv", shape=(12, 12, 1), engine="auto", pool="avg")

    def refuse(*_: object, **__: object) -> None:
        raise UnservedError("no")

    monkeypatch.setattr(openvino.OpenVino, "compile", refuse)
    with pytest.raises(NetworkError, match=r"openvino, .* can't for those of shape \(20, 9, 1\)"):
        probe(np.zeros((2, 20, 9, 1), np.uint8))
