"""Folding: fewer operations, and what plain Keras computes."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cnnfeat.network import Network, folding, load_network
from cnnfeat.network.folding import folded
from cnnfeat.network.graph import import_part, tensor_infos
from cnnfeat.options import ProbeOptions
from cnnfeat.records import TensorInfo

v1 = tf.compat.v1
SIZE = (12, 10, 3)
RAW = ProbeOptions(scale="raw")


def model_of(*inner: keras.layers.Layer, inputs: tuple[int | None, ...] = SIZE) -> keras.Model:
    """A model whose batch norms have seen something."""
    images = keras.Input(inputs)
    values = images
    for layer in inner:
        values = layer(values)
    model = keras.Model(images, values)
    chance = np.random.default_rng(0)
    for weight in model.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.6, 0.6)
        weight.assign(chance.uniform(low, high, weight.shape))
    return model


def pictures() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (3, *SIZE)).astype(np.float32)


def computed(model: keras.Model, *names: str) -> list[np.ndarray]:
    network = load_network(model)
    found = network.find(names or [network.layers[-1].name])
    probe = network.probe(found, RAW, image_shape=SIZE, image_dtype="float32")
    return list(probe(pictures()))


def operations(model: keras.Model, *names: str) -> Counter[str]:
    """What is left of a model's graph."""
    network: Network = load_network(model)
    found = network.find(names or [network.layers[-1].name])
    graph, wanted = network._graph, network._wanted(found, RAW)
    result = folded(
        wanted.part,
        graph.weights,
        fetches=[layer.tensor.name for layer in found],
        fed=[network.input.tensor],
        infos=wanted.infos,
    )
    return Counter(node.op for node in result.part.node)


def assert_alike(value: np.ndarray, wanted: np.ndarray) -> None:
    assert value.shape == wanted.shape
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def norm(**options) -> keras.layers.Layer:
    return layers.BatchNormalization(**options)


FOLDED = {
    "conv": [layers.Conv2D(5, 3), norm()],
    "no-bias": [layers.Conv2D(5, 3, use_bias=False), norm()],
    "strided": [layers.Conv2D(5, 3, strides=2, padding="same"), norm(), layers.ReLU()],
    "grouped": [layers.Conv2D(6, 3, groups=3), norm()],
    "grouped-strided": [layers.Conv2D(3, 3, groups=3, strides=2, padding="same"), norm()],
    "depthwise": [layers.DepthwiseConv2D(3, depth_multiplier=2), norm(), layers.ReLU(6)],
    "separable": [layers.SeparableConv2D(5, 3), norm()],
    "dense": [layers.Flatten(), layers.Dense(7), norm()],
    "no-scale": [layers.Conv2D(5, 3), norm(scale=False)],
    "no-centre": [layers.Conv2D(5, 3), norm(center=False)],
    "twice": [layers.Conv2D(5, 3), norm(), norm()],
    "rescaled": [layers.Conv2D(5, 3), layers.Rescaling(-2.5, offset=0.5)],
    "conv3d": [layers.Reshape((12, 10, 3, 1)), layers.Conv3D(4, 3), norm()],
}
LEFT = {"Mul", "AddV2", "Sub", "RealDiv", "Rsqrt", "FusedBatchNormV3"}


@pytest.mark.parametrize("case", FOLDED)
def test_what_follows_a_kernel_goes_into_it(case: str) -> None:
    inner = [type(layer).from_config(layer.get_config()) for layer in FOLDED[case]]
    model = model_of(*inner)
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    assert not LEFT & operations(model).keys()


@pytest.mark.parametrize(
    ("inner", "left"),
    [
        ([norm(), layers.Conv2D(5, 3)], {"Mul": 1, "AddV2": 1}),  # before: zeros are padded between
        ([layers.Conv2D(5, 3, activation="relu"), norm()], {"Mul": 1, "AddV2": 1}),
        # functions of their own, by XLA alone
        ([layers.Conv2D(4, 1), layers.Conv2D(6, 3, groups=2), norm()], {"Mul": 1, "AddV2": 1}),
        ([layers.Conv2D(6, 3, groups=3, dilation_rate=2), norm()], {"Mul": 1, "AddV2": 1}),
        ([layers.Conv2DTranspose(5, 3), norm()], {"Mul": 1, "AddV2": 1}),
        ([layers.Conv2D(5, 3), norm(axis=1)], {"Mul": 1, "AddV2": 1}),  # other axes than channels
    ],
    ids=["before", "behind-activation", "grouped", "grouped-dilated", "transposed", "by-rows"],
)
def test_what_is_another_function_stays(inner: list, left: dict[str, int]) -> None:
    model = model_of(*inner)
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    found = operations(model)
    assert {op: found[op] for op in left} == left


def test_a_layer_that_was_asked_for_keeps_its_meaning() -> None:
    model = model_of(layers.Conv2D(5, 3, name="raw"), norm(name="normed"), layers.ReLU(name="end"))
    inner = keras.Model(model.input, [model.get_layer(name).output for name in ("raw", "normed")])
    wanted = [value.numpy() for value in inner(pictures())]
    for value, right in zip(computed(model, "raw", "normed"), wanted, strict=True):
        assert_alike(value, right)
    assert_alike(computed(model, "normed")[0], wanted[1])
    assert operations(model, "raw", "normed")["Mul"] == 1
    assert operations(model, "normed")["Mul"] == 0


def test_a_result_that_several_take_isnt_folded() -> None:
    images = keras.Input(SIZE)
    raw = layers.Conv2D(5, 3)(images)
    model = keras.Model(
        images, layers.Concatenate()([norm(moving_mean_initializer="ones")(raw), raw])
    )
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())


def test_a_kernel_that_two_norms_share_is_two_kernels() -> None:
    shared, images = layers.Conv2D(3, 3, padding="same"), keras.Input(SIZE)
    once = norm(gamma_initializer=keras.initializers.Constant(0.5))(shared(images))
    model = keras.Model(images, norm(beta_initializer="ones")(shared(once)))
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    assert not LEFT & operations(model).keys()


def test_numbers_beyond_float32_are_left_alone() -> None:
    model = model_of(layers.Conv2D(5, 3), norm())
    kernel, gamma = model.layers[1].kernel, model.layers[2].gamma
    kernel.assign(np.full(kernel.shape, 1e20))
    gamma.assign(np.full(gamma.shape, 1e25))
    assert operations(model)["Mul"] == 1
    (value,) = computed(model)
    np.testing.assert_array_equal(np.isfinite(value), np.isfinite(model(pictures()).numpy()))


def test_a_kernel_there_is_no_room_for_twice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(layers.Conv2D(5, 3), norm())
    monkeypatch.setattr(folding, "available_bytes", lambda: 4 * 3 * 3 * 3 * 5 * 4 - 1)
    assert operations(model)["Mul"] == 1
    monkeypatch.setattr(folding, "available_bytes", lambda: 4 * 3 * 3 * 3 * 5 * 4)
    assert operations(model)["Mul"] == 0


@pytest.mark.parametrize("width", [((0, 1), (0, 1)), ((1, 1), (1, 1)), ((2, 0), (1, 3))], ids=str)
@pytest.mark.parametrize("kind", [layers.Conv2D, layers.DepthwiseConv2D], ids=["conv", "depthwise"])
def test_padding_goes_into_the_convolution(kind: type, width: tuple) -> None:
    options = {"strides": 2, "use_bias": False}
    inner = kind(4, 3, **options) if kind is layers.Conv2D else kind(3, **options)
    model = model_of(layers.ZeroPadding2D(width), inner, norm())
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    same = width == ((0, 1), (0, 1))  # of 12 and 10 pixels in steps of 2
    assert operations(model)["Pad"] == (0 if same or kind is layers.Conv2D else 1)


def test_padding_stays_where_sizes_are_open() -> None:
    inner = layers.DepthwiseConv2D(3, strides=2)
    model = model_of(layers.ZeroPadding2D(((0, 1), (0, 1))), inner, inputs=(None, None, 3))
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    assert operations(model)["Pad"] == 1


def test_padding_that_was_asked_for_is_a_layer() -> None:
    model = model_of(layers.ZeroPadding2D(1, name="padded"), layers.Conv2D(4, 3, name="conv"))
    padded, conv = computed(model, "padded", "conv")
    np.testing.assert_array_equal(padded, np.pad(pictures(), ((0, 0), (1, 1), (1, 1), (0, 0))))
    assert_alike(conv, model(pictures()).numpy())


def test_swish_is_left_in_the_form_that_tensorflow_fuses() -> None:
    model = model_of(layers.Conv2D(5, 3), norm(), layers.Activation("swish"), layers.Flatten())
    (value,) = computed(model)
    assert_alike(value, model(pictures()).numpy())
    found = operations(model)
    assert (found["Sigmoid"], found["Mul"], found["IdentityN"]) == (1, 1, 0)


def graph_of(build) -> tuple[v1.GraphDef, dict]:
    with tf.Graph().as_default() as graph:
        build(v1.placeholder(tf.float32, (None, *SIZE), name="images"))
        return graph.as_graph_def(), tensor_infos(graph)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_fused_norms_of_older_graphs(layout: str, training: bool) -> None:
    chance = np.random.default_rng(2)
    kernel = chance.normal(size=(3, 3, 3, 4)).astype(np.float32)
    gamma, beta, mean, variance = chance.uniform(0.5, 2, (4, 4)).astype(np.float32)

    def build(images: tf.Tensor) -> tf.Tensor:
        taken = tf.transpose(images, [0, 3, 1, 2]) if layout == "NCHW" else images
        raw = tf.nn.conv2d(taken, kernel, 1, "SAME", data_format=layout)
        moments = {} if training else {"mean": mean, "variance": variance}
        values, _, _ = v1.nn.fused_batch_norm(
            raw, gamma, beta, is_training=training, data_format=layout, epsilon=0.01, **moments
        )
        return tf.nn.relu(values, name="end")

    graph_def, infos = graph_of(build)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    found = Counter(node.op for node in result.part.node)
    assert found["FusedBatchNormV3"] == int(training)
    assert found["BiasAdd"] == int(not training)
    if not training:
        (weights,) = [value.numpy() for name, value in result.values.items() if "kernel" in name]
        scale = gamma / np.sqrt(variance + 0.01)
        np.testing.assert_allclose(weights, kernel * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "scale", "shift"),
    [
        (lambda x: 3 - x, -1, 3),
        (lambda x: (x - 3) / 2, 0.5, -1.5),
        (lambda x: 2 * (tf.stop_gradient(x) + 1), 2, 2),
    ],
    ids=["subtracted-from", "divided", "multiplied"],
)
def test_shifts_and_scales_in_either_order(build, scale: float, shift: float) -> None:
    kernel = np.eye(3, dtype=np.float32)

    def whole(images: tf.Tensor) -> tf.Tensor:
        return tf.identity(build(tf.reshape(images, [-1, 3]) @ kernel), name="end")

    graph_def, infos = graph_of(whole)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    values = {name.rpartition("/")[2]: value.numpy() for name, value in result.values.items()}
    np.testing.assert_array_equal(values["kernel:0"], scale * kernel)
    np.testing.assert_array_equal(values["bias:0"], [shift] * 3)


def test_a_quotient_of_a_constant_is_no_scale() -> None:
    graph_def, infos = graph_of(
        lambda x: tf.identity(1 / (tf.reshape(x, [-1, 3]) @ np.eye(3, dtype=np.float32)), "end")
    )
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    assert "RealDiv" in {node.op for node in result.part.node}


def test_nodes_that_others_wait_for_stay_whole() -> None:
    def build(images: tf.Tensor) -> None:
        product = tf.reshape(images, [-1, 3]) @ np.eye(3, dtype=np.float32)
        with tf.control_dependencies([product]):
            waited = tf.constant(2.0)
        tf.identity(product * waited, name="end")

    graph_def, infos = graph_of(build)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    assert {"MatMul", "Mul", "Const"} <= {node.op for node in result.part.node}
    assert "BiasAdd" not in {node.op for node in result.part.node}


def run(result: folding.Folded, values: dict[str, np.ndarray]) -> np.ndarray:
    """What a folded graph computes, in a session."""
    with tf.Graph().as_default():
        held = {name: tf.constant(value.numpy()) for name, value in result.values.items()}
        (end,) = import_part(result.part, {**held, **values}, fetches=["end:0"], name="network")
        with v1.Session() as session:
            value: np.ndarray = session.run(end)
            return value


def test_a_node_may_have_the_name_of_its_scope() -> None:
    kernel = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)

    def build(images: tf.Tensor) -> None:
        rows, held = tf.reshape(images, [-1, 3]), tf.constant(kernel, name="dense/kernel")
        once = tf.multiply(rows @ held, 3.0, name="dense")
        tf.subtract(tf.nn.relu(once), tf.nn.relu(rows @ held), name="end")

    graph_def, infos = graph_of(build)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    product = np.maximum(pictures().reshape(-1, 3) @ kernel, 0)
    assert_alike(run(result, {"images:0": pictures()}), 2 * product)


def test_a_kernel_inside_of_a_loop_stays_there() -> None:
    with tf.Graph().as_default() as graph:
        images = v1.placeholder(tf.float32, (None, *SIZE), name="images")
        frame = {"frame_name": "loop", "is_constant": True}
        inside = tf.raw_ops.Enter(data=tf.reshape(images, [-1, 3]), **frame)
        with tf.control_dependencies([inside]):
            kernel, scale = tf.constant(np.eye(3, dtype=np.float32)), tf.constant(2.0)
        tf.raw_ops.Exit(data=(inside @ kernel) * scale, name="end")
        graph_def, infos = graph.as_graph_def(), tensor_infos(graph)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    assert not result.values  # a value of the outer frame is none of the loop's
    assert {"MatMul", "Mul"} <= {node.op for node in result.part.node}


@pytest.mark.parametrize(("layout", "bias"), [("NHWC", [0, 0, 0]), ("NCHW", [1, 2, 3])])
def test_a_bias_goes_along_its_own_axis(layout: str, bias: list[float]) -> None:
    kernel = np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)

    def build(images: tf.Tensor) -> None:
        taken = tf.transpose(images[:, :3, :3], [0, 3, 1, 2])
        raw = tf.nn.conv2d(taken, kernel, 1, "VALID", data_format="NCHW")
        tf.nn.bias_add(raw * np.float32(2), [1.0, 2.0, 3.0], data_format=layout, name="end")

    graph_def, infos = graph_of(build)
    result = folded(graph_def, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    biases = [v.numpy().tolist() for name, v in result.values.items() if "bias" in name]
    assert biases == [bias]  # along columns it is none of the channels


def test_a_weight_that_is_fed_has_the_value_it_is_fed() -> None:
    def build(images: tf.Tensor) -> None:
        scale = v1.placeholder(tf.float32, (), name="scale")
        tf.multiply(tf.reshape(images, [-1, 3]) @ np.eye(3, dtype=np.float32), scale, name="end")

    graph_def, infos = graph_of(build)
    fed = ["images:0", "scale:0"]
    weights = {"scale": tf.constant(5.0)}
    result = folded(graph_def, weights, fetches=["end:0"], fed=fed, infos=infos)
    value = run(result, {"images:0": pictures(), "scale:0": np.float32(3)})
    assert_alike(value, 3 * pictures().reshape(-1, 3))


def _called(strides: list[int], *, inputs: int = 2, handed_on: str = "x") -> v1.GraphDef:
    """A graph that calls a function of one convolution, as a stranger may have written it."""
    graph = v1.GraphDef()
    graph.node.add(name="images", op="Placeholder").attr["dtype"].type = 1
    graph.node.add(name="kernel", op="Const").attr["value"].tensor.CopyFrom(
        tf.make_tensor_proto(np.ones((3, 3, 1, 3), np.float32))
    )
    call = graph.node.add(name="end", op="PartitionedCall", input=["images", "kernel"])
    call.attr["f"].func.name = "conv"
    function = graph.library.function.add()
    function.signature.name = "conv"
    for name in ("x", "k"):
        function.signature.input_arg.add(name=name)
    function.node_def.add(name="same", op="Identity", input=[handed_on] if handed_on else [])
    inner = function.node_def.add(name="conv", op="Conv2D", input=["same:output:0", "k"][:inputs])
    inner.attr["strides"].list.i.extend(strides)
    inner.attr["padding"].s = b"VALID"
    inner.attr["T"].type = 1
    function.ret["y"] = "conv:output:0"
    return graph


@pytest.mark.parametrize(
    ("graph", "channels", "op"),
    [
        (_called([1, 1, 1, 1]), 3, "DepthwiseConv2dNative"),
        (_called([1, 1, 1, 1]), 0, "PartitionedCall"),
        (_called([]), 3, "PartitionedCall"),
        (_called([1, 1, 1, 1], inputs=1), 3, "PartitionedCall"),
        (_called([1, 1, 1, 1], handed_on=""), 3, "PartitionedCall"),
    ],
    ids=["whole", "no-channels", "no-strides", "no-kernel", "no-input"],
)
def test_functions_that_lack_something_are_left_alone(
    graph: v1.GraphDef, channels: int, op: str
) -> None:
    infos = {"images:0": TensorInfo("images:0", "Placeholder", (None, 8, 8, channels), "float32")}
    result = folded(graph, {}, fetches=["end:0"], fed=["images:0"], infos=infos)
    assert op in {node.op for node in result.part.node}
