"""SavedModels of TensorFlow 2: modules, Keras 3 exports, signatures."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import Network, load_network

IMAGES = tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")


class Convolution(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(2)
        self.w = tf.Variable(random.random((3, 3, 3, 4), dtype=np.float32), name="w")
        self.b = tf.Variable(random.random(4, dtype=np.float32), name="w")

    @tf.function(input_signature=[IMAGES])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("conv1"):
            hidden = tf.nn.relu(tf.nn.conv2d(images, self.w, 1, "SAME") - 5 * self.b)
        with tf.name_scope("mean"):
            return tf.reduce_mean(hidden, [1, 2])

    @tf.function(input_signature=[IMAGES])
    def brighten(self, images: tf.Tensor) -> tf.Tensor:
        return images + self.b[0]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve_bytes(self, contents: tf.Tensor) -> tf.Tensor:
        def decode(content: tf.Tensor) -> tf.Tensor:
            image = tf.image.decode_png(content, channels=3)
            return tf.reshape(tf.cast(image, tf.float32), [8, 8, 3])

        return self(tf.map_fn(decode, contents, fn_output_signature=tf.float32))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)


def names(network: Network) -> list[str]:
    return [layer.name for layer in network.layers]


@pytest.mark.parametrize("signed", [True, False])
def test_a_module(signed: bool, images, tmp_path: Path, agree) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__ if signed else None)
    if not signed:
        _drop_signatures(tmp_path)
    network = load_network(str(tmp_path))
    assert names(network) == ["images", "conv1", "mean"]
    hidden = tf.nn.relu(tf.nn.conv2d(images, module.w, 1, "SAME") - 5 * module.b)
    agree(network, images, {"conv1": hidden, "mean": module(images)})


def _drop_signatures(folder: Path) -> None:
    """Many modules of TF Hub have none."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = saved.meta_graphs[0].graph_def
    signatures = saved.meta_graphs[0].signature_def
    served = signatures["serving_default"]
    doomed = {
        info.name.split(":")[0] for info in [*served.inputs.values(), *served.outputs.values()]
    }
    kept = [node for node in graph.node if node.name not in doomed]
    del graph.node[:]
    graph.node.extend(kept)
    del signatures["serving_default"]
    path.write_bytes(saved.SerializeToString())


def test_a_signature_that_takes_images_is_preferred_to_one_of_bytes(
    images, tmp_path: Path, agree
) -> None:
    module = Convolution()
    signatures = {"serving_default": module.serve_bytes, "images": module.__call__}
    tf.saved_model.save(module, tmp_path, signatures=signatures)
    agree(load_network(str(tmp_path)), images, {"mean": module(images)})


def test_several_signatures_and_one_asked_for(images, tmp_path: Path, agree) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures={"a": module.__call__, "b": module.brighten})
    with pytest.raises(
        NetworkError, match="several signatures that could take images: a, b"
    ) as error:
        load_network(str(tmp_path))
    assert "--signature a" in error.value.hint
    with pytest.raises(NetworkError, match="has no signature 'c'; it has a, b"):
        load_network(str(tmp_path), signature="c")
    network = load_network(str(tmp_path), signature="b")
    agree(network, images, {"-1": module.brighten(images)})
    agree(load_network(str(tmp_path), signature="a"), images, {"conv1": _conv1(module, images)})


def _conv1(module: Convolution, images: np.ndarray) -> tf.Tensor:
    return tf.nn.relu(tf.nn.conv2d(images, module.w, 1, "SAME") - 5 * module.b)


def test_only_bytes_go_in(tmp_path: Path) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.serve_bytes)
    with pytest.raises(NetworkError, match="no input of the network can take images"):
        load_network(str(tmp_path))


def test_a_keras_3_export_has_the_names_of_its_layers(
    seed_model: keras.Model, seed_network: Network, pixels, tmp_path: Path, agree
) -> None:
    seed_model.export(tmp_path / "saved", verbose=False)
    network = load_network(str(tmp_path / "saved"))
    assert names(network) == names(seed_network)
    wanted = seed_network.probe(seed_network.find(["conv2", "fc1"]), image_shape=(28, 28, 1))
    conv2, fc1 = wanted(pixels)
    agree(network, pixels, {"conv2": conv2, "fc1": fc1, "fc2": seed_model(pixels)})


def test_the_file_inside_the_folder_will_do(tmp_path: Path, images, agree) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    agree(load_network(str(tmp_path / "saved_model.pb")), images, {"mean": module(images)})


def test_a_control_flow_function(images, tmp_path: Path, agree) -> None:
    class Loop(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(np.random.default_rng(1).random((3, 3)), dtype=tf.float32)

        @tf.function(input_signature=[IMAGES])
        def __call__(self, images: tf.Tensor) -> tf.Tensor:
            state = images
            for _ in tf.range(3):
                state = tf.tanh(tf.tensordot(state, self.w, 1))
            if tf.reduce_sum(self.w) > 0:
                state = state * 2
            return tf.identity(state, name="state")

    module = Loop()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    network = load_network(str(tmp_path))
    agree(network, images, {"-1": module(images)})


def test_the_weights_are_missing(tmp_path: Path) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    shutil.rmtree(tmp_path / "variables")
    with pytest.raises(NetworkError, match="weights are missing"):
        load_network(str(tmp_path))


def test_damaged_files(tmp_path: Path) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    index = tmp_path / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(NetworkError, match="its weights can't be read"):
        load_network(str(tmp_path))
    graph = tmp_path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-7])
    with pytest.raises(NetworkError, match="damaged, or no SavedModel"):
        load_network(str(tmp_path))


def test_the_digest_is_over_all_files(tmp_path: Path) -> None:
    module = Convolution()
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    before = load_network(str(tmp_path)).sha256
    module.b.assign(module.b + 1)
    tf.saved_model.save(module, tmp_path, signatures=module.__call__)
    assert load_network(str(tmp_path)).sha256 != before


def test_a_second_input_is_fed_by_its_name_in_the_signature(images, tmp_path: Path, agree) -> None:
    image, more = keras.Input(images.shape[1:], name="image"), keras.Input((2,), name="more")
    flat = keras.layers.Flatten(name="flat")(image)
    out = keras.layers.Dense(2, name="head")(keras.layers.Concatenate(name="both")([flat, more]))
    model = keras.Model({"image": image, "more": more}, out)
    model.export(tmp_path / "two", verbose=False)
    network = load_network(str(tmp_path / "two"), feeds={"more": 0.5})
    value = model({"image": images, "more": np.full((len(images), 2), 0.5)})
    agree(network, images, {"head": value})


def test_a_layer_of_the_image_alone_needs_no_text(tmp_path: Path) -> None:
    layers = keras.layers
    image, text = (
        keras.Input((8, 8, 3), name="image"),
        keras.Input((5,), name="text", dtype="int32"),
    )
    seen = layers.GlobalAveragePooling2D(name="gap")(layers.Conv2D(2, 3)(image))
    read = layers.Flatten()(layers.Embedding(20, 4)(text))
    model = keras.Model(
        [image, text], layers.Dense(3, name="d")(layers.Concatenate()([seen, read]))
    )
    model.export(str(tmp_path / "export"), verbose=False)
    network = load_network(str(tmp_path / "export"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (found,) = network.probe(network.find(["gap"]), image_shape=(8, 8, 3))(pixels)
    expected = keras.Model(image, seen)(pixels / np.float32(255))
    assert np.allclose(found, expected, atol=1e-5)
    with pytest.raises(NetworkError, match="text' needs a value too"):
        network.probe(network.find(["d"]), image_shape=(8, 8, 3))
