"""Small networks in every format, made by the frameworks themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network import Network, load_network
from cnnfeat.options import ProbeOptions

Compare = Callable[..., None]


def block(shape: tuple[int, int, int], *, filters: int, name: str) -> keras.Model:
    image = keras.Input(shape)
    x = keras.layers.Conv2D(filters, 5, padding="same", name="conv")(image)
    x = keras.layers.MaxPooling2D(2, name="pool")(x)
    return keras.Model(image, keras.layers.ReLU(name="relu")(x), name=name)


@pytest.fixture(scope="session")
def seed_model() -> keras.Model:
    """A network of the seed's shape, with random weights."""
    keras.utils.set_random_seed(3)
    image = keras.Input((28, 28, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(image)
    x = block((28, 28, 1), filters=4, name="conv1")(x)
    x = block((14, 14, 4), filters=6, name="conv2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(16, activation="relu", name="fc1")(x)
    return keras.Model(image, keras.layers.Dense(10, name="fc2")(x), name="seed")


@pytest.fixture(scope="session")
def seed_file(seed_model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seed") / "seed.keras"
    seed_model.save(path)
    return path


@pytest.fixture(scope="session")
def seed_network(seed_file: Path) -> Network:
    return load_network(str(seed_file))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)


@pytest.fixture
def agree() -> Compare:
    """Compare activations with expected ones, within 1e-5 of the largest value."""

    def compare(
        network: Network,
        images: np.ndarray,
        expected: Mapping[str, np.ndarray],
        **options: object,
    ) -> None:
        layers = network.find(list(expected))
        probe = network.probe(
            layers,
            ProbeOptions(**options),
            image_shape=images.shape[1:],
            image_dtype=images.dtype.name,
        )
        values = [np.asarray(value) for value in expected.values()]
        for layer, value, wanted in zip(layers, probe(images), values, strict=True):
            assert value.shape == wanted.shape, layer.name
            scale = np.abs(wanted.astype(np.float64)).max()
            assert scale > 0, f"{layer.name}: a test of zeros"
            assert np.abs(value - wanted).max() <= 1e-5 * scale, layer.name

    return compare


class Tf1:
    """A TF1 graph in a session of its own, saved in every way TF1 had."""

    def __init__(self, build: Callable[[], Sequence[tf.Tensor]]) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.compat.v1.set_random_seed(1)
            build()
            self.session = tf.compat.v1.Session(graph=self.graph)
            if tf.compat.v1.global_variables():
                self.session.run(tf.compat.v1.global_variables_initializer())

    def run(self, fetches: Sequence[str], feeds: Mapping[str, object]) -> list[np.ndarray]:
        names = [name if ":" in name else f"{name}:0" for name in fetches]
        return self.session.run(names, {f"{name}:0": value for name, value in feeds.items()})

    def freeze(self, path: Path, *, outputs: Sequence[str]) -> Path:
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            self.session, self.graph.as_graph_def(), list(outputs)
        )
        path.write_bytes(frozen.SerializeToString())
        return path

    def checkpoint(self, folder: Path, **options: object) -> Path:
        with self.graph.as_default():
            saver = tf.compat.v1.train.Saver(**options)
            return Path(saver.save(self.session, str(folder / "model.ckpt"), global_step=7))

    def save_model(self, folder: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> Path:
        tensors = self.graph.get_tensor_by_name
        with self.graph.as_default():
            tf.compat.v1.saved_model.simple_save(
                self.session,
                str(folder),
                {name: tensors(f"{name}:0") for name in inputs},
                {name.replace("/", "_"): tensors(f"{name}:0") for name in outputs},
            )
        return folder


def tutorial_graph() -> None:
    """The network of a hundred tutorials: x, y_, keep_prob, two scopes, a loss and Adam."""
    v1 = tf.compat.v1
    x = v1.placeholder(tf.float32, [None, 784], name="x")
    labels = v1.placeholder(tf.float32, [None, 10], name="y_")
    keep_prob = v1.placeholder(tf.float32, name="keep_prob")
    image = tf.reshape(x, [-1, 28, 28, 1])
    with v1.variable_scope("conv1"):
        w = v1.get_variable("w", [5, 5, 1, 4])
        b = v1.get_variable("b", [4], initializer=v1.random_normal_initializer())
        h = v1.nn.max_pool(tf.nn.relu(tf.nn.conv2d(image, w, 1, "SAME") + b), 2, 2, "SAME")
    with v1.variable_scope("fc1"):
        w = v1.get_variable("w", [14 * 14 * 4, 16])
        h = tf.nn.relu(tf.matmul(tf.reshape(h, [-1, 14 * 14 * 4]), w))
        h = v1.nn.dropout(h, rate=1 - keep_prob)
    with v1.variable_scope("fc2"):
        logits = tf.matmul(h, v1.get_variable("w", [16, 10]))
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    v1.summary.scalar("loss", loss)
    v1.train.AdamOptimizer(1e-3).minimize(loss)


@pytest.fixture(params=[False, True], ids=["ref", "resource"])
def tutorial(request: pytest.FixtureRequest) -> Tf1:
    """The tutorial's graph, with variables of both kinds."""

    def build() -> None:
        with tf.compat.v1.variable_scope("", use_resource=request.param):
            tutorial_graph()

    return Tf1(build)


@pytest.fixture
def tf1() -> type[Tf1]:
    return Tf1
