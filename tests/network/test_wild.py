"""Shapes that files of the wild have: hub modules, detectors, estimators, examples in protocols."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network import load_network

v1 = tf.compat.v1


def convolution(x: tf.Tensor, name: str, *, filters: int = 4) -> tf.Tensor:
    with v1.variable_scope(name):
        w = v1.get_variable("weights", [3, 3, int(x.shape[-1]), filters])
        return tf.nn.relu(tf.nn.conv2d(x, w, 2, "SAME"), name="Relu")


@pytest.fixture
def old_control_flow():
    v1.disable_control_flow_v2()
    yield
    v1.enable_control_flow_v2()


@pytest.fixture
def photos() -> np.ndarray:
    return np.random.default_rng(0).random((3, 20, 24, 3), dtype=np.float32)


def test_a_module_of_tf_hub_1(tf1, photos, tmp_path: Path, agree) -> None:
    """No tag, a signature called "default", and a second graph for training."""

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 20, 24, 3], name="module/hub_input/images")
        tf.reduce_mean(convolution(x, "module/net/conv1"), [1, 2], name="module/net/pool")

    graph = tf1(build)
    tensor = graph.graph.get_tensor_by_name
    info = v1.saved_model.build_tensor_info
    outputs = {
        "default": "module/net/pool:0",
        "image_feature_vector": "module/net/conv1/Relu:0",
    }
    with graph.graph.as_default():
        inputs = {"images": info(tensor("module/hub_input/images:0"))}
        signatures = {
            name: v1.saved_model.build_signature_def(inputs, {"default": info(tensor(output))})
            for name, output in outputs.items()
        }
        builder = v1.saved_model.Builder(str(tmp_path / "hub"))
        builder.add_meta_graph_and_variables(graph.session, [], signatures)
        builder.add_meta_graph(["train"], signatures)
        builder.save()
    names = ["module/net/conv1/Relu", "module/net/pool"]
    conv1, pooled = graph.run(names, {"module/hub_input/images": photos})
    network = load_network(str(tmp_path / "hub"))
    agree(network, photos, {"conv1": conv1, "pool": pooled})
    (by_scope,) = network.find(["module/net/conv1"])
    assert by_scope == network.find(["conv1"])[0]


def test_a_detector_that_prepares_images_in_a_loop(
    tf1, old_control_flow, tmp_path: Path, agree
) -> None:
    def build() -> None:
        x = v1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")

        def prepare(image: tf.Tensor) -> tf.Tensor:
            resized = v1.image.resize_images(tf.cast(image, tf.float32), [16, 16])
            return resized * (2 / 255) - 1

        with v1.name_scope("Preprocessor"):
            prepared = v1.map_fn(prepare, x, dtype=tf.float32)
        x = convolution(tf.ensure_shape(prepared, [None, 16, 16, 3]), "FeatureExtractor/Conv_0")
        convolution(x, "FeatureExtractor/Conv_1")

    graph = tf1(build)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    (value,) = graph.run(["FeatureExtractor/Conv_1/Relu"], {"image_tensor": images})
    path = graph.freeze(tmp_path / "a.pb", outputs=["FeatureExtractor/Conv_1/Relu"])
    network = load_network(str(path))
    assert not [layer.name for layer in network.layers if "while" in layer.name]
    agree(network, images, {"FeatureExtractor/Conv_1": value})
    agree(network, images, {"Conv_1": value})


@pytest.mark.parametrize("meta", [True, False])
def test_an_estimators_folder(meta: bool, tf1, photos, tmp_path: Path, agree) -> None:
    """Images come out of an iterator; labels, a loss, an optimizer and a step stand by."""

    def build() -> None:
        data = tf.data.Dataset.from_tensor_slices((photos, np.zeros(3, np.int32))).batch(3)
        x, labels = v1.data.make_one_shot_iterator(data).get_next()
        h = convolution(tf.ensure_shape(x, [None, 20, 24, 3]), "conv")
        logits = tf.reshape(h, [-1, 10 * 12 * 4], name="logits")
        loss = v1.losses.sparse_softmax_cross_entropy(labels, logits)
        v1.summary.scalar("loss", loss)
        step = v1.train.get_or_create_global_step()
        v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, global_step=step)

    graph = tf1(build)
    prefix = graph.checkpoint(tmp_path, sharded=True)
    tf.io.write_graph(graph.graph, str(tmp_path), "graph.pbtxt")
    if not meta:
        prefix.with_name(f"{prefix.name}.meta").unlink()
    value = graph.session.run("conv/Relu:0", {"IteratorGetNext:0": photos})
    network = load_network(str(tmp_path))
    names = [layer.name for layer in network.layers if not layer.path]
    assert names == ["IteratorGetNext", "EnsureShape", "conv", "logits"]
    agree(network, photos, {"conv": value})


@pytest.mark.parametrize("named", [None, "Reshape"])
def test_a_server_of_examples(named: str | None, tf1, photos, tmp_path: Path, agree) -> None:
    """Only protocol buffers go in: then what is parsed out of them is fed."""

    def build() -> None:
        serialized = v1.placeholder(tf.string, [None], name="input_example_tensor")
        feature = v1.io.FixedLenFeature([20 * 24 * 3], tf.float32)
        parsed = v1.io.parse_example(serialized, {"x": feature})["x"]
        convolution(tf.reshape(parsed, [-1, 20, 24, 3]), "conv1")

    graph = tf1(build)
    value = graph.session.run("conv1/Relu:0", {"Reshape:0": photos})
    folder = graph.save_model(
        tmp_path / "saved", inputs=["input_example_tensor"], outputs=["conv1/Relu"]
    )
    agree(load_network(str(folder), input_name=named), photos, {"conv1": value})


def test_a_signature_of_examples_beside_one_of_images(tf1, photos, tmp_path: Path, agree) -> None:
    def build() -> None:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        feature = v1.io.FixedLenFeature([20, 24, 3], tf.float32)
        parsed = v1.io.parse_example(serialized, {"x": feature})["x"]
        convolution(tf.identity(parsed, name="x"), "conv1")

    graph = tf1(build)
    value = graph.session.run("conv1/Relu:0", {"x:0": photos})
    info = v1.saved_model.build_tensor_info
    with graph.graph.as_default():
        tensors = graph.graph.get_tensor_by_name
        outputs = {"scores": info(tensors("conv1/Relu:0"))}
        signatures = {
            name: v1.saved_model.build_signature_def({"in": info(tensors(tensor))}, outputs)
            for name, tensor in {"serving_default": "tf_example:0", "images": "x:0"}.items()
        }
        builder = v1.saved_model.Builder(str(tmp_path / "served"))
        builder.add_meta_graph_and_variables(graph.session, ["serve"], signatures)
        builder.save()
    network = load_network(str(tmp_path / "served"))
    assert [layer.name for layer in network.layers] == ["in", "conv1"]
    agree(network, photos, {"conv1": value})


@pytest.mark.parametrize("old", [True, False])
def test_norm_and_dropout_behind_a_switch(old: bool, tf1, photos, tmp_path: Path, agree) -> None:
    """A layer is what leaves the switch, not what lies on one of its sides."""

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 20, 24, 3], name="x")
        training = v1.placeholder(tf.bool, [], name="is_training")
        h = convolution(x, "conv1")
        with v1.variable_scope("norm"):
            scale = v1.get_variable("gamma", [4])
            means = tf.constant([0.1, 0.2, 0.3, 0.4])

            def normed(is_training: bool) -> tf.Tensor:
                known = {} if is_training else {"mean": means, "variance": means}
                norm = v1.nn.fused_batch_norm
                return norm(h, scale, means, is_training=is_training, **known)[0]

            h = v1.cond(training, lambda: normed(True), lambda: normed(False))
        with v1.variable_scope("drop"):
            h = v1.cond(training, lambda: tf.nn.dropout(h, rate=0.5), lambda: tf.identity(h))
        v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(h))

    if old:
        v1.disable_control_flow_v2()
    try:
        graph = tf1(build)
    finally:
        v1.enable_control_flow_v2()
    dropped = [op.name for op in graph.graph.get_operations() if op.name.startswith("drop/cond")]
    ends = ["drop/cond/Merge" if old else "drop/cond/Identity"]
    assert ends[0] in dropped
    (value,) = graph.run(ends, {"x": photos, "is_training": False})
    path = graph.checkpoint(tmp_path)
    network = load_network(str(path), feeds={"is_training": "false"})
    agree(network, photos, {"norm": value, "drop": value})


def test_weights_called_otherwise_than_their_graph(tf1, photos, tmp_path: Path, agree) -> None:
    graph = tf1(
        lambda: convolution(v1.placeholder(tf.float32, [None, 20, 24, 3], name="x"), "conv1")
    )
    prefix = graph.checkpoint(tmp_path)
    (value,) = graph.run(["conv1/Relu"], {"x": photos})
    meta = prefix.with_name(f"{prefix.name}.meta").rename(tmp_path / "model-2018.meta")
    for given in (tmp_path, prefix, meta):
        agree(load_network(str(given)), photos, {"conv1": value})
    (tmp_path / "checkpoint").unlink()
    agree(load_network(str(tmp_path)), photos, {"conv1": value})


def test_a_graph_that_is_told_how_many_images_come(tf1, photos, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 20, 24, 3], name="x")
        n = v1.placeholder(tf.int32, [], name="batch_size")
        tf.reshape(convolution(x, "conv1"), [n, 480], name="flat")

    graph = tf1(build)
    (value,) = graph.run(["flat"], {"x": photos, "batch_size": 3})
    path = graph.freeze(tmp_path / "a.pb", outputs=["flat"])
    for stated in ("3", "2"):
        agree(load_network(str(path), feeds={"batch_size": stated}), photos, {"flat": value})


def test_files_whose_functions_have_the_same_names(tf1, photos, tmp_path: Path, agree) -> None:
    """TensorFlow keeps one function a name in a process."""
    networks = []
    for number in (1.0, 2.0):

        def build(number: float = number) -> None:
            x = v1.placeholder(tf.float32, [None, 20, 24, 3], name="x")
            flag = v1.placeholder_with_default(True, [], name="flag")
            y = v1.cond(flag, lambda: x + number, lambda: x)
            tf.identity(y, name="net/out")

        (tmp_path / str(number)).mkdir()
        graph = tf1(build)
        path = graph.freeze(tmp_path / str(number) / "a.pb", outputs=["net/out"])
        networks.append((number, load_network(str(path))))
    for number, network in networks:
        agree(network, photos, {"net/out": photos + number})


def test_names_without_scopes(tf1, photos, tmp_path: Path, agree) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 20, 24, 3])
        for _ in range(2):
            w = v1.Variable(np.random.default_rng(1).random((3, 3, 3, 3), dtype=np.float32))
            x = tf.nn.relu(tf.nn.conv2d(x, w, 1, "SAME") - 5)

    graph = tf1(build)
    first, second = graph.run(["Relu", "Relu_1"], {"Placeholder": photos})
    network = load_network(str(graph.checkpoint(tmp_path)))
    agree(network, photos, {"Relu": first, "-1": second})


def test_a_damaged_graph_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    from cnnfeat.errors import NetworkError

    graph = v1.GraphDef()
    graph.node.add(name="a", op="Relu", input=["nowhere"])
    path = tmp_path / "a.pb"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(NetworkError, match="can't make a network of it"):
        load_network(str(path))
