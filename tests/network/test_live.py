"""Networks that live in the program, against what Keras and the graph's own session compute."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError, UsageError
from cnnfeat.network import Network, load_network
from cnnfeat.options import ReadOptions

v1 = tf.compat.v1
KEEP_ALL = {"keep_prob": 1.0}
TUTORIAL = ["conv1/MaxPool", "fc1/Relu", "fc2/MatMul"]


def small(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 5, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(3, name="top")(x), name="small")


def features(network: Network, layer: str, images: np.ndarray) -> np.ndarray:
    shape = images.shape[1:]
    probe = network.probe(network.find([layer]), image_shape=shape, image_dtype=images.dtype.name)
    return probe(images)[0]


def test_a_keras_model_gives_what_keras_computes(pixels, agree):
    model = small()
    network = load_network(model)
    outputs = [model.get_layer(name).output for name in ("conv", "norm", "pool", "top")]
    expected = keras.Model(model.input, outputs)(pixels, training=False)
    agree(network, pixels, dict(zip(("conv", "norm", "pool", "top"), expected, strict=True)))
    assert (network.path, network.format, network.card) == ("live:small", "live", None)


def test_what_is_trained_on_changes_no_feature(pixels):
    model = small()
    network = load_network(model)
    before = features(network, "top", pixels)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(pixels, np.array([0, 1, 2, 0, 1]), verbose=0)
    later = load_network(model)
    np.testing.assert_array_equal(features(network, "top", pixels), before)
    fresh = network.probe(network.find(["top"]), image_shape=(28, 28, 1), batch_size=3)
    np.testing.assert_allclose(fresh(pixels)[0], before, atol=1e-6)
    trained = np.asarray(model(pixels, training=False))
    np.testing.assert_allclose(features(later, "top", pixels), trained, atol=1e-5)
    assert np.abs(trained - before).max() > 1e-3
    assert later.sha256 != network.sha256


def test_the_digest_tells_weights_and_plan(tmp_path: Path):
    model = small()
    digest = load_network(model).sha256
    assert len(bytes.fromhex(digest)) == 32
    assert load_network(model).sha256 == digest
    model.compile("adam", "mse")  # how it is trained makes no features
    assert load_network(model).sha256 == digest
    model.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras", compile=False)
    assert load_network(again).sha256 == digest
    assert load_network(small(seed=2)).sha256 != digest
    other = keras.Model(model.input, keras.layers.ReLU()(model.output), name="small")
    assert load_network(other).sha256 != digest


class Own(keras.Model):
    """A class of the program's own."""

    def __init__(self) -> None:
        super().__init__(name="own")
        self.conv = keras.layers.Conv2D(2, 3, name="conv")
        self.top = keras.layers.Dense(4, name="top")

    def call(self, images):
        return self.top(keras.ops.mean(self.conv(images), axis=(1, 2)))


@pytest.mark.parametrize("kind", ["own class", "sequential"])
def test_a_model_without_inputs_is_called_once_first(kind: str, agree):
    images = np.random.default_rng(2).random((5, 12, 10, 3), np.float32)
    keras.utils.set_random_seed(7)
    layers = [
        keras.layers.Conv2D(2, 3, name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(4, name="top"),
    ]
    model = Own() if kind == "own class" else keras.Sequential(layers)
    with pytest.raises(NetworkError, match="doesn't say what shape its input has") as caught:
        load_network(model)
    assert "call it on images once" in caught.value.hint
    expected = np.asarray(model(images))
    network = load_network(model)
    agree(network, images, {"top": expected}, scale="raw")
    assert network.input.batch is None  # not as many as it was called with
    assert load_network(model).sha256 == network.sha256


def test_a_model_of_keras_2(agree):
    tf_keras = pytest.importorskip("tf_keras")
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(3, 3, input_shape=(9, 9, 1), name="conv"),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(2, name="top"),
        ]
    )
    images = np.random.default_rng(2).random((5, 9, 9, 1), np.float32)
    expected = model(images).numpy()
    network = load_network(model)
    model.set_weights([weight * 2 for weight in model.get_weights()])
    agree(network, images, {"top": expected}, scale="raw")


@pytest.fixture
def digits() -> np.ndarray:
    return np.random.default_rng(1).random((4, 28, 28, 1), dtype=np.float32)


def expected_of(tutorial, digits: np.ndarray) -> dict[str, np.ndarray]:
    values = tutorial.run(TUTORIAL, {"x": digits.reshape(-1, 784), **KEEP_ALL})
    return dict(zip(["conv1", "fc1/Relu", "fc2"], values, strict=True))


def test_a_graph_and_its_session(tutorial, digits, agree):
    wanted = expected_of(tutorial, digits)
    network = load_network(tutorial.graph, session=tutorial.session, feeds=KEEP_ALL)
    same = load_network(tutorial.session, feeds=KEEP_ALL)
    with tutorial.graph.as_default():
        for variable in v1.global_variables():
            variable.load(np.full(variable.shape, 0.5, np.float32), tutorial.session)
    agree(network, digits, wanted)  # they are what they were
    later = load_network(tutorial.graph, session=tutorial.session, feeds=KEEP_ALL)
    agree(later, digits, expected_of(tutorial, digits))
    assert network.sha256 == same.sha256 != later.sha256
    assert (network.path, network.format) == ("live:graph", "live")
    assert [layer.name for layer in network.layers if not layer.path] == [
        "x", "Reshape", "conv1", "fc1", "fc2",
    ]  # fmt: skip


def test_in_the_midst_of_a_session(tutorial, digits, agree):
    wanted = expected_of(tutorial, digits)
    with tutorial.graph.as_default(), tutorial.session.as_default():
        assert not tf.executing_eagerly()
        network = load_network(tutorial.graph, feeds=KEEP_ALL)
        agree(network, digits, wanted)
        assert network.read_as.feed == (("keep_prob", 1.0),)
        kernel = network.kernel(network.find(["conv1"])[0])
        assert kernel is not None
    agree(network, digits, wanted)


def test_the_values_of_its_variables(tutorial, digits, agree):
    wanted = expected_of(tutorial, digits)
    with tutorial.graph.as_default():
        names = [variable.name for variable in v1.global_variables()]
        values = dict(zip(names, tutorial.session.run(v1.global_variables()), strict=True))
    network = load_network(tutorial.graph, variables=values, feeds=KEEP_ALL)
    agree(network, digits, wanted)
    by_session = load_network(tutorial.graph, session=tutorial.session, feeds=KEEP_ALL)
    assert network.sha256 == by_session.sha256
    part = {name: value for name, value in values.items() if name.startswith("conv1/")}
    begun = load_network(tutorial.graph, variables=part)
    values["conv1/w:0"][:] = 0  # the networks' are their own
    agree(begun, digits, {"conv1": wanted["conv1"]})
    agree(network, digits, wanted)
    with pytest.raises(NetworkError, match="the variable 'fc1/w' has no value"):
        begun.probe(begun.find(["fc1/Relu"]), image_shape=(28, 28, 1))


def test_a_graph_whose_weights_are_nowhere(tutorial, tf1):
    with pytest.raises(UsageError, match="holds no weights, and there is no session: 'conv1/b'"):
        load_network(tutorial.graph)
    other = tf1(lambda: [v1.placeholder(tf.float32, [None, 4, 4, 1])])
    with pytest.raises(UsageError, match="the session is that of another graph") as caught:
        load_network(tutorial.graph, session=other.session)
    assert "variables={NAME: array}" in caught.value.hint
    bad = [
        ({"conv1/v": 0.0}, "the graph has no variable 'conv1/v'"),
        ({"conv1/w": np.zeros((3, 3, 1, 4))}, r"shape \(5, 5, 1, 4\) in the graph; .* \(3, 3, 1"),
    ]
    for variables, words in bad:
        with pytest.raises(UsageError, match=words):
            load_network(tutorial.graph, variables=variables)


@pytest.mark.parametrize("resource", [False, True])
def test_variables_that_were_never_initialised(tf1, digits, agree, resource: bool):
    def build() -> None:
        with v1.variable_scope("", use_resource=resource):
            x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
            h = tf.multiply(x, v1.get_variable("first", []), name="one")
            tf.multiply(h, v1.get_variable("second", []), name="two")

    graph = tf1(build)
    with graph.graph.as_default(), v1.Session() as session:
        first = next(one for one in v1.global_variables() if one.op.name == "first")
        session.run(first.initializer)
        (wanted,) = session.run(["one:0"], {"images:0": digits})
        network = load_network(graph.graph, session=session)
    agree(network, digits, {"one": wanted}, scale="raw")
    with pytest.raises(NetworkError, match="the variable 'second' has no value") as caught:
        network.probe(network.find(["two"]), image_shape=(28, 28, 1))
    assert "initialised" in caught.value.hint


def test_reading_variables_runs_nothing_else(tf1, digits, agree):
    def build() -> None:
        with v1.variable_scope("", use_resource=True):
            x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
            w = v1.get_variable("w", [], initializer=v1.ones_initializer())
            with tf.control_dependencies([w.assign_add(1.0)]):
                counted = w.read_value()
            tf.multiply(x, counted, name="counted")
            tf.multiply(x, w, name="scaled")

    graph = tf1(build)
    network = load_network(graph.graph, session=graph.session)
    assert graph.session.run("w/Read/ReadVariableOp:0") == 1.0
    agree(network, digits, {"scaled": digits}, scale="raw")


@pytest.mark.slow
def test_a_program_of_tensorflow_1_from_beginning_to_end():
    code = (
        "import numpy as np\n"
        "import tensorflow.compat.v1 as tf\n"
        "tf.disable_v2_behavior()\n"
        "x = tf.placeholder(tf.float32, [None, 8, 8, 1], name='x')\n"
        "w = tf.Variable(tf.random_normal([3, 3, 1, 2]))\n"
        "y = tf.nn.relu(tf.nn.conv2d(x, w, [1, 1, 1, 1], 'SAME'), name='y')\n"
        "z = tf.nn.max_pool(y, [1, 2, 2, 1], [1, 2, 2, 1], 'SAME', name='z')\n"
        "images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)\n"
        "import cnnfeat\n"
        "from cnnfeat.options import ProbeOptions\n"
        "with tf.Session() as sess:\n"
        "    sess.run(tf.global_variables_initializer())\n"
        "    network = cnnfeat.load_network(tf.get_default_graph(), session=sess)\n"
        "    layers = network.find(['y', 'z'])\n"
        "    for pool in ('none', 'avg', 'flatten'):\n"
        "        probe = network.probe(layers, ProbeOptions(pool=pool), image_shape=(8, 8, 1),\n"
        "                              image_dtype='float32')\n"
        "        found = probe(images)\n"
        "        wanted = sess.run([y, z], {x: images})\n"
        "        if pool == 'avg': wanted = [one.mean(axis=(1, 2)) for one in wanted]\n"
        "        for one, two in zip(found, wanted):\n"
        "            assert np.abs(one.ravel() - two.ravel()).max() < 1e-5 * np.abs(two).max()\n"
        "sess = tf.Session()\n"
        "features = cnnfeat.LayerFeatures(network, layer='z').fit_transform(images)\n"
        "assert features.shape == (5, 32)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", [np.zeros((3, 3)), 7, tf.Module()])
def test_what_is_no_network_is_refused(given):
    with pytest.raises(UsageError, match=r"a network is a file, .* not a .*(ndarray|int|Module)"):
        load_network(given)


def test_options_go_with_what_they_are_for(tutorial, seed_file: Path):
    model = small()
    for bad, words in [
        ({"session": tutorial.session}, "go with a graph of TensorFlow 1; a Functional holds"),
        ({"signature": "serve"}, "signature goes with files only"),
        ({"weights": "imagenet"}, "weights goes with files only"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_network(model, **bad)
    with pytest.raises(UsageError, match=r"seed\.keras has its own weights"):
        load_network(seed_file, variables={})


def test_a_network_that_is_open_stays_as_it_is(seed_file: Path):
    network = load_network(seed_file, input_name="image")
    assert network.path == str(seed_file)
    assert load_network(network) is network
    assert load_network(network, input_name="image") is network
    with pytest.raises(UsageError, match="is open already") as caught:
        load_network(network, feeds={"x": 1})
    assert "load_network" in caught.value.hint
    with pytest.raises(UsageError, match="can't be pickled or copied"):
        pickle.dumps(network)


def test_options_made_in_python_may_be_plain(tutorial):
    from cnnfeat.network import open_network

    options = ReadOptions(feed={"keep_prob": 1})
    network = open_network(tutorial.graph, options, session=tutorial.session)
    assert network.read_options.feed == (("keep_prob", 1),)


def test_a_probe_is_compiled_once(seed_network: Network):
    layers = seed_network.find(["fc1"])
    first = seed_network.probe(layers, image_shape=(28, 28, 1))
    assert seed_network.probe(layers, image_shape=(28, 28, 1)) is first
    others = {
        id(seed_network.probe(layers, image_shape=(28, 28, 1), batch_size=size))
        for size in range(1, 7)
    }
    assert len(others) == 6
    assert seed_network.probe(layers, image_shape=(28, 28, 1)) is not first  # only a few are kept


def test_a_network_shows_what_it_is(seed_file: Path):
    shown = repr(load_network(seed_file)).splitlines()
    assert shown[0].startswith(f"Network {seed_file} (keras, SHA-256 ")
    assert shown[1] == "  images  image (28, 28, 1) uint8, scaled 'raw'"
    assert "conv1 (n, 14, 14, 4), conv2 (n, 7, 7, 6)" in shown[2]


def test_a_network_without_names_shows_its_blocks(tf1):
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 8, 8, 1])
        for filters in (2, 3):
            w = tf.random.normal([3, 3, x.shape[3], filters])
            x = tf.nn.relu(tf.nn.conv2d(x, v1.Variable(w), 2, "SAME"))

    shown = repr(load_network(tf1(build).session)).splitlines()
    assert shown[2] == "  blocks  conv1 (n, 4, 4, 2), conv2 (n, 2, 2, 3)"
