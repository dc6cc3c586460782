"""TensorFlow 1: frozen graphs, checkpoints and SavedModels, against the graph's own session."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import load_network
from cnnfeat.options import ProbeOptions

v1 = tf.compat.v1
KEEP_ALL = {"keep_prob": 1.0}


@pytest.fixture
def digits() -> np.ndarray:
    return np.random.default_rng(1).random((4, 28, 28, 1), dtype=np.float32)


def wanted(tutorial, digits: np.ndarray) -> dict[str, np.ndarray]:
    names = ["conv1/MaxPool", "fc1/Relu", "fc2/MatMul"]
    values = tutorial.run(names, {"x": digits.reshape(-1, 784), **KEEP_ALL})
    return dict(zip(["conv1", "fc1/Relu", "fc2"], values, strict=True))


@pytest.mark.parametrize("kind", ["pb", "pbtxt", "meta", "index", "prefix", "folder", "savedmodel"])
def test_the_tutorial_network_in_every_format(
    kind: str, tutorial, digits, tmp_path: Path, agree
) -> None:
    if kind in ("pb", "pbtxt"):
        path = tutorial.freeze(tmp_path / "frozen.pb", outputs=["fc2/MatMul"])
        if kind == "pbtxt":
            graph = v1.GraphDef.FromString(path.read_bytes())
            tf.io.write_graph(graph, str(tmp_path), "frozen.pbtxt")
            path = tmp_path / "frozen.pbtxt"
    elif kind == "savedmodel":
        path = tutorial.save_model(
            tmp_path / "saved", inputs=["x", "keep_prob"], outputs=["fc2/MatMul"]
        )
    else:
        prefix = tutorial.checkpoint(tmp_path)
        path = {
            "folder": tmp_path,
            "prefix": prefix,
            "meta": prefix.with_name(f"{prefix.name}.meta"),
            "index": prefix.with_name(f"{prefix.name}.index"),
        }[kind]
    network = load_network(str(path), feeds=KEEP_ALL)
    assert network.input.name == "x"
    assert [layer.name for layer in network.layers if not layer.path] == [
        "x", "Reshape", "conv1", "fc1", "fc2",
    ]  # fmt: skip
    agree(network, digits, wanted(tutorial, digits))


def test_a_missing_feed_is_named_with_its_flag(tutorial, digits, tmp_path: Path, agree) -> None:
    path = tutorial.freeze(tmp_path / "frozen.pb", outputs=["fc2/MatMul"])
    network = load_network(str(path))
    agree(network, digits, {"conv1": wanted(tutorial, digits)["conv1"]})
    with pytest.raises(NetworkError, match="the input 'keep_prob' needs a value") as caught:
        network.probe(network.find(["fc2"]), image_shape=(28, 28, 1))
    assert "--feed keep_prob=1.0" in caught.value.hint


def test_a_feed_of_a_wrong_name_or_type(tutorial, tmp_path: Path) -> None:
    path = str(tutorial.freeze(tmp_path / "frozen.pb", outputs=["fc2/MatMul"]))
    for feeds, message in [
        ({"keep_porb": 1.0}, "no tensor of that name"),
        ({"keep_prob": "much"}, "keep_prob=much: the tensor takes float32"),
    ]:
        network = load_network(path, feeds=feeds)
        with pytest.raises(NetworkError, match=message):
            network.probe(network.find(["fc2"]), image_shape=(28, 28, 1))


def test_a_checkpoint_moved_elsewhere(tutorial, digits, tmp_path: Path, agree) -> None:
    (tmp_path / "there").mkdir()
    tutorial.checkpoint(tmp_path / "there")
    shutil.move(tmp_path / "there", tmp_path / "here")
    network = load_network(str(tmp_path / "here"), feeds=KEEP_ALL)
    agree(network, digits, wanted(tutorial, digits))


def test_a_checkpoint_without_its_graph(tutorial, tmp_path: Path) -> None:
    prefix = tutorial.checkpoint(tmp_path)
    prefix.with_name(f"{prefix.name}.meta").unlink()
    with pytest.raises(NetworkError, match="weights without their graph"):
        load_network(f"{prefix}.index")


def test_a_graph_without_its_weights(tutorial, tmp_path: Path) -> None:
    path = tmp_path / "graph.pb"
    path.write_bytes(tutorial.graph.as_graph_def().SerializeToString())
    with pytest.raises(NetworkError, match="a graph without its weights") as caught:
        load_network(str(path))
    assert "checkpoint" in caught.value.hint


def test_a_switch_between_training_and_use(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
        training = v1.placeholder(tf.bool, [], name="phase_train")
        w = v1.get_variable("conv/w", [3, 3, 1, 4])
        h = tf.nn.conv2d(x, w, 2, "SAME", name="conv/Conv2D")
        mean = v1.get_variable("norm/mean", [4], initializer=v1.random_normal_initializer())
        batch_mean = tf.reduce_mean(h, [0, 1, 2])
        chosen = v1.cond(training, lambda: batch_mean, lambda: tf.identity(mean))
        tf.nn.relu(h - chosen, name="norm/Relu")

    v1.disable_control_flow_v2()
    try:
        graph = tf1(build)
    finally:
        v1.enable_control_flow_v2()
    feeds = {"images": digits, "phase_train": False}
    (value,) = graph.run(["norm/Relu"], feeds)
    for path in (
        graph.freeze(tmp_path / "a.pb", outputs=["norm/Relu"]),
        graph.checkpoint(tmp_path),
    ):
        network = load_network(str(path), feeds={"phase_train": "false"})
        agree(network, digits, {"norm": value})
        unfed = load_network(str(path))
        with pytest.raises(NetworkError, match="'phase_train' needs a value") as caught:
            unfed.probe(unfed.find(["norm"]), image_shape=(28, 28, 1))
        assert "--feed phase_train=false" in caught.value.hint


def test_a_default_is_kept(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
        factor = v1.placeholder_with_default(3.0, [], name="factor")
        tf.multiply(x, factor, name="scaled")

    graph = tf1(build)
    path = graph.freeze(tmp_path / "a.pb", outputs=["scaled"])
    agree(load_network(str(path)), digits, {"scaled": digits * 3})
    agree(load_network(str(path), feeds={"factor": 2}), digits, {"scaled": digits * 2})


def test_a_loop(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
        w = v1.get_variable("rnn/w", [28, 28])
        rows = tf.unstack(x[..., 0], axis=1)

        def step(count, state):
            return count + 1, tf.tanh(tf.matmul(state, w))

        _, state = tf.while_loop(lambda count, _: count < 3, step, [0, rows[0]])
        tf.identity(state * 2, name="rnn/out")

    v1.disable_control_flow_v2()
    try:
        graph = tf1(build)
    finally:
        v1.enable_control_flow_v2()
    (value,) = graph.run(["rnn/out"], {"images": digits})
    network = load_network(str(graph.checkpoint(tmp_path)))
    agree(network, digits, {"rnn/out": value})


def test_a_channels_first_graph(tf1, tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 3, 16, 20], name="images")
        w = v1.get_variable("conv/w", [3, 3, 3, 5])
        h = tf.nn.conv2d(x, w, [1, 1, 2, 2], "SAME", data_format="NCHW", name="conv/Conv2D")
        tf.nn.relu(h, name="conv/Relu")

    graph = tf1(build)
    images = np.random.default_rng(0).random((3, 16, 20, 3), dtype=np.float32)
    (value,) = graph.run(["conv/Relu"], {"images": images.transpose(0, 3, 1, 2)})
    network = load_network(str(graph.freeze(tmp_path / "a.pb", outputs=["conv/Relu"])))
    assert network.image_shape == (16, 20, 3)
    expected = {"none": value, "avg": value.mean((2, 3)), "max": value.max((2, 3))}
    for pooling, wanted_value in expected.items():
        probe = network.probe(
            network.find(["conv"]),
            ProbeOptions(pool=pooling),
            image_shape=(16, 20, 3),
            image_dtype="float32",
        )
        np.testing.assert_allclose(probe(images)[0], wanted_value, rtol=1e-5, atol=1e-6)
    assert probe.outputs[0].axes == ("feature",)


def test_images_one_at_a_time(tf1, tmp_path: Path) -> None:
    """As in the Inception graph of 2015: a decoded image goes in, a batch of one comes out."""

    def build() -> None:
        contents = v1.placeholder(tf.string, [], name="DecodeJpeg/contents")
        image = tf.image.decode_jpeg(contents, channels=3, name="DecodeJpeg")
        batch = tf.expand_dims(tf.cast(image, tf.float32, name="Cast"), 0, name="ExpandDims")
        resized = v1.image.resize_bilinear(batch, [12, 12], name="ResizeBilinear")
        scaled = tf.multiply(resized - 128.0, 1 / 128, name="Mul")
        w = v1.get_variable("conv/w", [3, 3, 3, 4])
        h = tf.nn.relu(tf.nn.conv2d(scaled, w, 2, "VALID"), name="conv/Relu")
        tf.reshape(tf.reduce_mean(h, [1, 2]), [1, 4], name="pool_3/_reshape")

    graph = tf1(build)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 17, 3), dtype=np.uint8)
    values = [graph.run(["pool_3/_reshape"], {"DecodeJpeg": image})[0] for image in images]
    network = load_network(str(graph.freeze(tmp_path / "a.pb", outputs=["pool_3/_reshape"])))
    assert (network.input.name, network.default_scale) == ("DecodeJpeg", "raw")
    probe = network.probe(network.find(["pool_3"]), image_shape=(20, 17, 3))
    np.testing.assert_allclose(probe(images)[0], np.concatenate(values), rtol=1e-5)


def test_a_fixed_batch_is_filled_up(tf1, tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [4, 6, 6, 1], name="images")
        tf.reshape(x * 2, [4, 36], name="flat")

    graph = tf1(build)
    images = np.random.default_rng(0).random((6, 6, 6, 1), dtype=np.float32)
    network = load_network(str(graph.freeze(tmp_path / "a.pb", outputs=["flat"])))
    probe = network.probe(network.find(["flat"]), image_shape=(6, 6, 1), image_dtype="float32")
    np.testing.assert_allclose(probe(images)[0], images.reshape(6, 36) * 2)


def test_a_graph_fed_by_a_queue(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        files = v1.train.string_input_producer(["/nowhere/a.png"], name="files")
        _, content = v1.WholeFileReader().read(files)
        image = tf.cast(tf.reshape(tf.image.decode_png(content), [28, 28, 1]), tf.float32)
        batch = v1.train.batch([image], 2, name="batch")
        v1.summary.image("input", batch)
        w = v1.get_variable("conv/w", [3, 3, 1, 4])
        tf.nn.relu(tf.nn.conv2d(batch, w, 2, "SAME"), name="conv/Relu")

    graph = tf1(build)
    images = digits[:2]
    value = graph.session.run("conv/Relu:0", {"batch:0": images})
    network = load_network(str(graph.checkpoint(tmp_path)), input_name="batch")
    agree(network, images, {"conv": value})


def test_a_partitioned_variable(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 784], name="x")
        parts = v1.fixed_size_partitioner(3)
        with v1.variable_scope("fc", partitioner=parts):
            w = v1.get_variable("w", [784, 5])
            tf.matmul(x, tf.convert_to_tensor(w), name="out")

    graph = tf1(build)
    (value,) = graph.run(["fc/out"], {"x": digits.reshape(-1, 784)})
    for path in (
        graph.checkpoint(tmp_path),
        graph.save_model(tmp_path / "saved", inputs=["x"], outputs=["fc/out"]),
    ):
        agree(load_network(str(path)), digits, {"fc": value})


def test_averages_restored_under_another_name(tf1, digits, tmp_path: Path, agree) -> None:
    """What a saver maps to other names is read by the saver's map, not by the variables' names."""

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 784], name="x")
        w = v1.get_variable("w", [784, 3])
        tf.matmul(x, w, name="out")

    graph = tf1(build)
    with graph.graph.as_default():
        (variable,) = v1.global_variables()
        saver = v1.train.Saver({"w/ExponentialMovingAverage": variable})
        prefix = saver.save(graph.session, str(tmp_path / "model.ckpt"))
    (value,) = graph.run(["out"], {"x": digits.reshape(-1, 784)})
    agree(load_network(prefix), digits, {"out": value})


def test_an_operation_of_another_tensorflow_is_left_out(tf1, digits, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
        tf.nn.relu(x - 0.5, name="relu")

    graph = tf1(build).graph.as_graph_def()
    graph.node.add(name="gone", op="SomebodysOwnOp", input=["relu"])
    path = tmp_path / "a.pb"
    path.write_bytes(graph.SerializeToString())
    agree(load_network(str(path)), digits, {"relu": np.maximum(digits - 0.5, 0)})


def test_several_inputs_that_could_be_meant(tf1, tmp_path: Path) -> None:
    def build() -> None:
        left = v1.placeholder(tf.float32, [None, 8, 8, 3], name="left")
        right = v1.placeholder(tf.float32, [None, 8, 8, 3], name="right")
        tf.identity(left * 2, name="a")
        tf.add(right, 1.0, name="b")

    path = str(tf1(build).freeze(tmp_path / "a.pb", outputs=["a", "b"]))
    with pytest.raises(NetworkError, match="several inputs could take the images") as caught:
        load_network(path)
    assert "--input" in caught.value.hint
    assert load_network(path, input_name="right").input.name == "right"
    with pytest.raises(NetworkError, match="no input is called 'middle'"):
        load_network(path, input_name="middle")


def test_an_operation_withdrawn_since(digits, tmp_path: Path, agree) -> None:
    """As in the Inception graph of 2015, which a plain session still runs."""
    random = np.random.default_rng(0)
    graph = v1.GraphDef()
    graph.versions.producer = 8

    def add(name: str, op: str, *inputs: str, **attributes: object) -> None:
        node = graph.node.add(name=name, op=op, input=inputs)
        node.attr["T"].type = tf.float32.as_datatype_enum
        for key, value in attributes.items():
            setattr(node.attr[key], "b" if isinstance(value, bool) else "f", value)

    def constant(name: str, value: np.ndarray) -> None:
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        node.attr["dtype"].type = tf.float32.as_datatype_enum

    images = graph.node.add(name="Mul", op="Placeholder")
    images.attr["dtype"].type = tf.float32.as_datatype_enum
    for name in ("mean", "variance", "beta", "gamma"):
        constant(f"conv/{name}", random.random(1, dtype=np.float32))
    inputs = ("Mul", "conv/mean", "conv/variance", "conv/beta", "conv/gamma")
    for name, scale in (("plain", False), ("scaled", True)):
        add(
            f"conv/{name}",
            "BatchNormWithGlobalNormalization",
            *inputs,
            variance_epsilon=1e-3,
            scale_after_normalization=scale,
        )
    path = tmp_path / "a.pb"
    path.write_bytes(graph.SerializeToString())
    with tf.Graph().as_default(), v1.Session() as session:
        v1.import_graph_def(graph, name="")
        plain, scaled = session.run(["conv/plain:0", "conv/scaled:0"], {"Mul:0": digits})
    agree(load_network(str(path)), digits, {"conv/plain": plain, "conv/scaled": scaled})
