"""What is said where a network can't be read or computed: the trouble itself, in plain words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import load_network
from cnnfeat.network.telling import of_size, told
from cnnfeat.network.weights import missing_weights

DATA = "variables/variables.data-00000-of-00001"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"
v1 = tf.compat.v1


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(2, 3, name="c"), layers.Flatten(), layers.Dense(500),
    ])  # fmt: skip
    path = tmp_path_factory.mktemp("export") / "export"
    model.export(str(path), verbose=False)
    return path


def no_data(folder: Path) -> None:
    (folder / DATA).unlink()


def no_index(folder: Path) -> None:
    (folder / "variables/variables.index").unlink()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "variables")


def pointer(folder: Path) -> None:
    (folder / DATA).write_text(POINTER)


def pointer_of_the_graph(folder: Path) -> None:
    (folder / "saved_model.pb").write_text(POINTER)


@pytest.mark.parametrize(
    ("spoil", "named", "more"),
    [
        (no_data, DATA, "weights are missing"),
        (no_index, "variables/variables.index", "weights are missing"),
        (no_folder, "variables/variables.index", "weights are missing"),
        (pointer, DATA, "Git LFS pointer"),
        (pointer_of_the_graph, "saved_model.pb", "Git LFS pointer"),
    ],
)
def test_a_saved_model_without_its_weights(cnnfeat, export: Path, spoil, named, more) -> None:
    folder = export.with_name(spoil.__name__)
    shutil.copytree(export, folder)
    spoil(folder)
    code, _, said = cnnfeat("layers", folder)
    assert code == 4
    assert str(folder / named) in said
    assert more in said


@pytest.mark.parametrize(
    "page", ["\n\n<!DOCTYPE html>\n<html>", "<HTML><body>", "<?xml version='1.0'?><html>"]
)
def test_a_web_page_is_said_to_be_one(tmp_path: Path, page: str) -> None:
    (tmp_path / "page.h5").write_text(page)
    with pytest.raises(NetworkError, match="is a web page, no model"):
        load_network(str(tmp_path / "page.h5"))


def test_a_file_of_keras_1(tmp_path: Path) -> None:
    config = {"class_name": "Sequential", "config": [
        {"class_name": "Convolution2D", "config": {"nb_filter": 2, "border_mode": "same"}}
    ]}  # fmt: skip
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "1.2.2"
    with pytest.raises(NetworkError, match=r"was made by Keras 1\.2\.2"):
        load_network(str(tmp_path / "m.h5"))


def test_traces_and_colours_of_tensorflow_and_keras_are_left_out() -> None:
    layer = keras.layers.UpSampling2D(interpolation="bilinear")
    function = tf.function(layer)
    with pytest.raises(TypeError) as raised:
        function.get_concrete_function(tf.TensorSpec((None, None, None, 1)))
    assert "in user code:" in str(raised.value)
    said = told(raised.value)
    assert said.startswith("Using a symbolic")
    with pytest.raises(ValueError, match="node Reshape") as failed:
        tf.function(lambda x: tf.reshape(x, [7]))(tf.zeros(8))
    for text in (said, told(failed.value)):
        assert not any(noise in text for noise in ("{{node", "in user code", "\x1b", "File "))
    assert "8" in told(failed.value)
    assert of_size(told(failed.value))


def test_places_of_the_graph_are_left_out_before_and_behind_the_words() -> None:
    behind = (
        "Negative dimension size caused by subtracting 3 from 1 for '{{node c}} = Conv2D[T=DT]'"
    )
    assert told(ValueError(behind)) == "Negative dimension size caused by subtracting 3 from 1"
    before = "{{function_node __wrapped__Add}} Incompatible shapes: [2] vs. [3] [Op:Add]"
    assert told(ValueError(before)) == "Incompatible shapes: [2] vs. [3] [Op:Add]"


def test_what_keras_ends_with_is_told_of_an_object_it_can_not_build() -> None:
    text = (
        "<class 'Sequential'> could not be deserialized properly. Please ensure that ...\n\n"
        "config={'module': 'keras'}.\n\nException encountered: kernel size must be a number"
    )
    assert told(TypeError(text)) == "kernel size must be a number"


def test_another_size_is_the_way_out_only_where_size_is_the_trouble() -> None:
    assert of_size("Incompatible shapes: [2,7,7,3] vs. [2,8,8,3]")
    assert not of_size("Using a symbolic `tf.Tensor` as a Python `bool` is not allowed")


def saved(path: Path) -> str:
    """Images, a text that nobody feeds, and a sum over all images."""
    with tf.Graph().as_default() as graph:
        images = v1.placeholder(tf.float32, (None, 8, 8, 1), name="image")
        text = v1.placeholder(tf.float32, (None, 2), name="text")
        filters = np.ones((3, 3, 1, 2), np.float32)
        conv = tf.nn.conv2d(images, filters, 1, "SAME", name="conv/conv")
        pooled = tf.reduce_mean(conv, [1, 2], name="gap/mean")
        tf.matmul(pooled, pooled, transpose_a=True, name="gram/product")
        tf.add(pooled, text, name="both/sum")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


def test_a_pattern_leaves_out_what_cannot_be_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = load_network(saved(tmp_path / "n.pb"), input_name="image")
    probe = network.probe(network.find(["**"]), image_shape=(8, 8, 1))
    names = [output.layer for output in probe.outputs]
    assert {"conv", "gap"} <= set(names)
    assert not {"both", "gram"} & set(names)
    assert len(probe(np.zeros((3, 8, 8, 1), np.uint8))) == len(names)
    assert "gram is left out: the first axis of 'gram'" in caplog.text
    with pytest.raises(NetworkError, match="isn't the images"):
        network.probe(network.find(["**", "gram"]), image_shape=(8, 8, 1))


def test_what_is_fed_takes_no_images(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        for name in ("image", "mask"):
            v1.placeholder(tf.float32, (None, 8, 8, 1), name=name)
        tf.multiply(*(graph.get_tensor_by_name(f"{n}:0") for n in ("image", "mask")), name="out")
    path = tmp_path / "n.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(NetworkError, match="several inputs"):
        load_network(str(path))
    network = load_network(str(path), feeds={"mask": 1.0})
    assert network.input.name == "image"


def test_weights_that_are_a_pipe(tmp_path: Path) -> None:
    """Nothing waits for it."""
    os.mkfifo(pipe := tmp_path / "variables.index")
    assert str(missing_weights(pipe)).startswith(f"{pipe}: weights can't be read: is a pipe")
