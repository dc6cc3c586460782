"""Networks whose layers nobody named: their blocks, against the graph's own session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import LayerLookupError
from cnnfeat.network import Network, load_network

v1 = tf.compat.v1
KEEP_ALL = {"keep_prob": 1.0}


def weights(*shape: int) -> tf.Variable:
    return v1.Variable(tf.random.normal(shape, stddev=0.1, seed=sum(shape)))


def convolved(x: tf.Tensor, filters: int, *, size: int = 5) -> tf.Tensor:
    return tf.nn.conv2d(x, weights(size, size, int(x.shape[-1]), filters), 1, "SAME")


def pooled(x: tf.Tensor) -> tf.Tensor:
    return v1.nn.max_pool(x, 2, 2, "SAME")


def dense(x: tf.Tensor, units: int) -> tf.Tensor:
    return tf.matmul(x, weights(int(x.shape[-1]), units)) + weights(units)


def flat(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])


def images(*shape: int | None) -> tf.Tensor:
    return v1.placeholder(tf.float32, [None, *(shape or (28, 28, 1))], name="x")


def tutorial_without_names() -> None:
    """As in "02_Convolutional_Neural_Network" of the TensorFlow tutorials of Hvass Laboratories."""
    x = v1.placeholder(tf.float32, [None, 784], name="x")
    y_true = v1.placeholder(tf.float32, [None, 10], name="y_true")
    true_class = tf.argmax(y_true, axis=1)
    h = tf.reshape(x, [-1, 28, 28, 1])
    for filters in (16, 36):
        h = tf.nn.relu(pooled(convolved(h, filters) + weights(filters)))
    h = tf.nn.relu(dense(flat(h), 128))
    logits = dense(h, 10)
    found = tf.argmax(tf.nn.softmax(logits), axis=1)
    losses = tf.nn.softmax_cross_entropy_with_logits(labels=y_true, logits=logits)
    v1.train.AdamOptimizer(1e-4).minimize(tf.reduce_mean(losses))
    tf.reduce_mean(tf.cast(tf.equal(found, true_class), tf.float32))


TUTORIAL = {
    "conv1": "1st convolution block: Conv2D → add → MaxPool → Relu, filters 5×5×1×16, "
    "output (n, 14, 14, 16)",
    "conv2": "2nd convolution block: Conv2D_1 → add_1 → MaxPool_1 → Relu_1, filters 5×5×16×36, "
    "output (n, 7, 7, 36)",
    "fc1": "1st dense block: MatMul → add_2 → Relu_2, weights 1764×128, output (n, 128)",
    "fc2": "2nd dense block: MatMul_1 → add_3, weights 128×10, output (n, 10)",
}
ENDS = {"conv1": "Relu", "conv2": "Relu_1", "fc1": "Relu_2", "fc2": "add_3"}


@pytest.fixture
def digits() -> np.ndarray:
    return np.random.default_rng(1).random((4, 28, 28, 1), dtype=np.float32)


@pytest.fixture
def frozen(tf1, tmp_path: Path) -> Callable[..., Network]:
    """Build a graph, freeze it and open it."""

    def make(build: Callable[[], object], *outputs: str, **options: object) -> Network:
        def built() -> None:
            build()
            last.append(v1.get_default_graph().get_operations()[-1].name)

        last: list[str] = []
        graph = tf1(built)
        path = graph.freeze(tmp_path / "frozen.pb", outputs=outputs or last)
        network = load_network(str(path), **options)
        network.graph = graph
        return network

    return make


def paths(network: Network) -> dict[str, str]:
    return {block.layer.name: block.path_text for block in network.blocks}


def described(network: Network) -> dict[str, str]:
    return {block.layer.name: str(block) for block in network.blocks}


@pytest.mark.parametrize("resource", [False, True], ids=["ref", "resource"])
@pytest.mark.parametrize("kind", ["pb", "checkpoint", "savedmodel"])
def test_the_tutorial_in_every_format(  # noqa: PLR0917
    kind: str, resource: bool, tf1, digits, tmp_path: Path, agree
) -> None:
    def build() -> None:
        with v1.variable_scope("", use_resource=resource):
            tutorial_without_names()

    graph = tf1(build)
    if kind == "pb":
        path = graph.freeze(tmp_path / "frozen.pb", outputs=["ArgMax_1"])
    elif kind == "checkpoint":
        path = graph.checkpoint(tmp_path)
    else:
        path = graph.save_model(tmp_path / "saved", inputs=["x"], outputs=["Softmax"])
    network = load_network(str(path))
    assert described(network) == TUTORIAL
    values = graph.run(list(ENDS.values()), {"x": digits.reshape(-1, 784)})
    agree(network, digits, dict(zip(ENDS, values, strict=True)))
    (layer,) = network.find(["conv2"])
    assert (layer.name, layer.tensor.name, layer.kind) == ("conv2", "Relu_1:0", "Conv2D")
    assert network.kernel(layer).weights.shape == (5, 5, 16, 36)


def test_the_end_of_a_block_is_said_once(frozen, caplog) -> None:
    network = frozen(tutorial_without_names, "Softmax")
    with caplog.at_level(logging.INFO, "cnnfeat"):
        for _ in range(2):
            network.find(["conv2"])
    (line,) = [record.getMessage() for record in caplog.records if "conv2" in record.getMessage()]
    assert line == f"conv2: the {TUTORIAL['conv2']}; its end is Relu_1:0"


@pytest.mark.parametrize("name", ["conv3", "conv_3", "Conv3", "conv0", "fc3"])
def test_a_miss_lists_the_blocks_and_offers_no_other_one(name: str, frozen) -> None:
    network = frozen(tutorial_without_names, "Softmax")
    with pytest.raises(LayerLookupError, match=f"no layer or tensor is called '{name}'") as caught:
        network.find([name])
    for block, path in paths(network).items():
        assert f"{block} ({path})" in str(caught.value)
    assert caught.value.hint == "`cnnfeat layers` lists them"


def test_other_ways_to_name_a_block(frozen) -> None:
    network = frozen(tutorial_without_names, "Softmax")

    def ends(name: str) -> list[str]:
        return [layer.tensor.name for layer in network.find([name])]

    assert ends("CONV2") == ["Relu_1:0"]
    assert ends("conv*") == ends("conv?") == ["Relu:0", "Relu_1:0"]
    assert ends("fc[12]") == ["Relu_2:0", "add_3:0"]
    assert ends("Conv*") == ["Conv2D:0", "Conv2D_1:0"]  # layers of that spelling go before
    assert "conv2" not in [layer.name for layer in network.find(["*"])]
    with pytest.raises(LayerLookupError) as caught:
        network.find(["covn2"])
    assert "did you mean 'conv2'?" in caught.value.hint


def test_pooling_after_the_activation_and_a_fed_dropout(frozen, digits, agree) -> None:
    """As in "Deep MNIST for Experts"."""

    def build() -> None:
        keep_prob = v1.placeholder(tf.float32, name="keep_prob")
        h = tf.reshape(v1.placeholder(tf.float32, [None, 784], name="x"), [-1, 28, 28, 1])
        h = pooled(v1.nn.dropout(tf.nn.relu(convolved(h, 4) + weights(4)), keep_prob))
        h = pooled(tf.identity(tf.nn.relu(convolved(h, 6) + weights(6))))
        h = v1.nn.dropout(tf.nn.relu(dense(flat(tf.identity(h)), 16)), rate=1 - keep_prob)
        v1.summary.histogram("logits", dense(h, 10))

    network = frozen(build, "add_3", feeds=KEEP_ALL)
    found = {name: path.split(" → ") for name, path in paths(network).items()}
    assert found["conv1"][:3] == ["Conv2D", "add", "Relu"]
    assert found["conv1"][3].startswith("dropout/") and found["conv1"][-1] == "MaxPool"
    assert found["conv2"] == ["Conv2D_1", "add_1", "Relu_1", "Identity", "MaxPool_1"]
    assert found["fc1"] == ["MatMul", "add_2", "Relu_2"]
    assert found["fc2"] == ["MatMul_1", "add_3"]
    names = ["MaxPool", "MaxPool_1", "Relu_2", "add_3"]
    values = network.graph.run(names, {"x": digits.reshape(-1, 784), "keep_prob": 1.0})
    agree(network, digits, dict(zip(found, values, strict=True)))


@pytest.mark.parametrize("old", [True, False])
def test_a_dropout_behind_a_switch_or_of_one_s_own(old: bool, frozen) -> None:
    def build() -> None:
        training = v1.placeholder(tf.bool, [], name="is_training")
        h = tf.nn.relu(convolved(images(), 4))
        with v1.variable_scope("drop"):
            h = v1.cond(training, lambda: v1.nn.dropout(h, rate=0.5), lambda: tf.identity(h))
        h = tf.nn.relu(convolved(h, 5))
        with v1.variable_scope("mine"):
            h = h / 0.5 * tf.floor(tf.random.uniform(tf.shape(h)) + 0.5)
        convolved(h, 6)

    if old:
        v1.disable_control_flow_v2()
    try:
        network = frozen(build)
    finally:
        v1.enable_control_flow_v2()
    assert paths(network)["conv2"] == "Conv2D_1 → Relu_1"
    assert paths(network)["conv3"] == "Conv2D_2"
    if old:
        assert paths(network)["conv1"] == "Conv2D → Relu"


def test_activations_and_norms_of_several_operations(frozen, digits, agree) -> None:
    def build() -> None:
        h = convolved(images(), 4)
        mean, variance = tf.nn.moments(h, [0, 1, 2])
        h = tf.nn.batch_normalization(h, mean, variance, weights(4), weights(4), 1e-3)
        h = tf.nn.lrn(tf.maximum(0.2 * h, h, name="leaky"))
        h = convolved(h, 6)
        h = pooled(tf.multiply(h, tf.sigmoid(h), name="swish"))
        h = dense(flat(h), 5)
        tf.maximum(0.1 * h, h, name="last")

    network = frozen(build)
    found = paths(network)
    assert list(found) == ["conv1", "conv2", "fc1"]
    assert found["conv1"].startswith("Conv2D → batchnorm/")
    assert found["conv1"].endswith(" → leaky → LRN")
    assert found["conv2"] == "Conv2D_1 → swish → MaxPool"
    assert found["fc1"].endswith(" → last")
    values = network.graph.run(["LRN", "MaxPool", "last"], {"x": digits})
    agree(network, digits, dict(zip(found, values, strict=True)))


def test_channels_first(frozen) -> None:
    def build() -> None:
        h = v1.placeholder(tf.float32, [None, 3, 16, 20], name="x")
        for before, filters in ((3, 4), (4, 6)):
            h = tf.nn.conv2d(h, weights(3, 3, before, filters), 1, "SAME", data_format="NCHW")
            h = tf.nn.bias_add(h, weights(filters), data_format="NCHW")
            h = v1.nn.max_pool(tf.nn.relu(h), 2, 2, "SAME", data_format="NCHW")

    assert described(frozen(build))["conv2"] == (
        "2nd convolution block: Conv2D_1 → BiasAdd_1 → Relu_1 → MaxPool_1, filters 3×3×4×6, "
        "output (n, 6, 4, 5)"
    )


def test_shapes_that_no_one_knows_before_an_image(frozen) -> None:
    def build() -> None:
        h = pooled(tf.nn.relu(convolved(images(None, None, 3), 4)))
        convolved(v1.image.resize_bilinear(h, tf.shape(h, out_type=tf.int32)[1:3] * 2), 2)

    assert described(frozen(build)) == {
        "conv1": "1st convolution block: Conv2D → Relu → MaxPool, filters 5×5×3×4, "
        "output (n, ?, ?, 4)",
        "conv2": "2nd convolution block: Conv2D_1, filters 5×5×4×2, output (n, ?, ?, 2)",
    }


def test_shapes_of_64_bits_and_a_fixed_batch(frozen, digits, agree) -> None:
    def build() -> None:
        h = tf.nn.relu(convolved(v1.placeholder(tf.float32, [2, 28, 28, 1], name="x"), 4))
        n = tf.shape(h, out_type=tf.int64)[0]
        h = tf.reshape(h, tf.stack([n, tf.constant(28 * 28 * 4, tf.int64)]))
        tf.nn.relu(tf.matmul(h, weights(28 * 28 * 4, 3)))

    network = frozen(build)
    assert paths(network) == {"conv1": "Conv2D → Relu", "fc1": "MatMul → Relu_1"}
    halves = [network.graph.run(["Relu_1"], {"x": digits[i : i + 2]})[0] for i in (0, 2)]
    agree(network, digits, {"fc1": np.concatenate(halves)})


def test_a_separable_convolution_is_one_block(frozen) -> None:
    def build() -> None:
        h = tf.nn.relu(convolved(images(), 4))
        h = tf.nn.separable_conv2d(
            h, weights(3, 3, 4, 1), weights(1, 1, 4, 6), [1, 1, 1, 1], "SAME"
        )
        tf.nn.relu(h + weights(6))

    assert described(frozen(build))["conv2"] == (
        "2nd convolution block: separable_conv2d/depthwise → separable_conv2d → add → Relu_1, "
        "filters 3×3×4×1 and 1×1×4×6, output (n, 28, 28, 6)"
    )


def test_operations_in_one_scope_for_all(frozen, digits, agree) -> None:
    def build() -> None:
        x = images()
        with v1.variable_scope("CNN"):
            h = x
            for filters in (3, 4):
                h = pooled(tf.nn.relu(convolved(h, filters)))

    network = frozen(build)
    assert paths(network)["conv2"] == "CNN/Conv2D_1 → CNN/Relu_1 → CNN/MaxPool_1"
    (value,) = network.graph.run(["CNN/MaxPool_1"], {"x": digits})
    agree(network, digits, {"conv2": value})


def test_numbers_end_where_two_ways_begin(frozen) -> None:
    """The first convolution of a residual network is the first, but which is the second?"""

    def build() -> None:
        h = pooled(tf.nn.relu(convolved(images(), 4)))
        h = tf.nn.relu(h + convolved(tf.nn.relu(convolved(h, 4)), 4))
        dense(flat(h), 3)

    network = frozen(build)
    assert paths(network) == {"conv1": "Conv2D → Relu → MaxPool"}
    with pytest.raises(LayerLookupError, match=r"the blocks of the network are conv1 \(Conv2D"):
        network.find(["conv2"])


def test_a_sum_with_something_before_ends_the_last_block(frozen) -> None:
    def build() -> None:
        h = tf.nn.relu(convolved(images(), 4))
        tf.nn.relu(h + convolved(h, 4))

    assert paths(frozen(build)) == {"conv1": "Conv2D → Relu", "conv2": "Conv2D_1"}


def test_two_networks_on_one_input_have_no_blocks(frozen) -> None:
    def build() -> None:
        x = images()
        towers = [flat(tf.nn.relu(convolved(x, 2))) for _ in range(2)]
        dense(tf.concat(towers, axis=1), 3)

    assert frozen(build).blocks == ()


def test_products_of_activations_are_no_dense_layer(frozen) -> None:
    def build() -> None:
        h = flat(tf.nn.relu(convolved(images(), 2)))
        tf.matmul(h, h, transpose_b=True)

    assert list(paths(frozen(build))) == ["conv1"]


def test_a_name_that_somebody_gave_goes_before(frozen, digits, agree) -> None:
    def build() -> None:
        h = tf.nn.conv2d(images(), weights(5, 5, 1, 3), 1, "SAME", name="conv1")
        h = tf.nn.relu(h + weights(3))
        h = tf.nn.relu(convolved(h, 4) - 0.1, name="conv2")
        tf.nn.relu(convolved(h, 5))

    network = frozen(build)
    assert paths(network) == {
        "Relu": "conv1 → add → Relu",
        "conv2": "Conv2D → sub → conv2",
        "conv3": "Conv2D_1 → Relu_1",
    }
    names = ["conv1", "conv2", "Relu_1"]
    values = network.graph.run(names, {"x": digits})
    agree(network, digits, dict(zip(["conv1", "conv2", "conv3"], values, strict=True)))


@pytest.mark.parametrize(
    ("names", "second"), [(["conv2d", "conv2d_1"], "conv2d_1"), (["Conv", "Conv_1"], "Conv_1")]
)
def test_scopes_are_names_and_a_miss_says_which_is_the_second(
    names: list[str], second: str, frozen
) -> None:
    def build() -> None:
        h = images()
        for name in names:
            with v1.variable_scope(name):
                h = pooled(tf.nn.relu(convolved(h, 3)))
        with v1.variable_scope("dense"):
            dense(flat(h), 3)

    network = frozen(build)
    assert network.blocks == ()
    for asked, answer in [
        ("conv2", f"the 2nd convolution is {second!r}"),
        ("fc1", "the 1st dense layer is 'dense'"),
    ]:
        with pytest.raises(LayerLookupError) as caught:
            network.find([asked])
        assert caught.value.hint == f"{answer}; `cnnfeat layers` lists them"
    with pytest.raises(LayerLookupError) as caught:
        network.find(["conv3"])
    assert "did you mean" not in caught.value.hint


def test_a_keras_network_keeps_its_names(tmp_path: Path) -> None:
    layers = keras.layers
    image = keras.Input((16, 16, 1), name="image")
    h = layers.Conv2D(2, 3, activation="relu", name="conv2d_7")(image)
    h = layers.Conv2D(3, 3, name="conv2d_8")(layers.MaxPooling2D(name="pool")(h))
    path = tmp_path / "net.keras"
    keras.Model(image, layers.Dense(3, name="out")(layers.Flatten()(h))).save(path)
    network = load_network(str(path))
    assert network.blocks == ()
    with pytest.raises(LayerLookupError) as caught:
        network.find(["conv2"])
    assert "the 2nd convolution is 'conv2d_8'" in caught.value.hint
    assert "conv2d_7" not in caught.value.hint


def test_a_placeholder_that_the_signature_leaves_out(tf1, digits, tmp_path: Path, agree) -> None:
    """What an output needs is no label."""

    def build() -> None:
        keep_prob = v1.placeholder(tf.float32, name="keep_prob")
        h = tf.nn.dropout(tf.nn.relu(convolved(images(), 2)), rate=1 - keep_prob)
        h = tf.nn.relu(dense(flat(h), 4))
        tf.nn.softmax(h, name="scores")

    graph = tf1(build)
    path = graph.save_model(tmp_path / "saved", inputs=["x"], outputs=["scores"])
    network = load_network(str(path), feeds=KEEP_ALL)
    assert paths(network) == {"conv1": "Conv2D → Relu", "fc1": "MatMul → add → Relu_1"}
    assert "MatMul" in [layer.name for layer in network.layers]
    (value,) = graph.run(["Relu_1"], {"x": digits, "keep_prob": 1.0})
    agree(network, digits, {"fc1": value})
