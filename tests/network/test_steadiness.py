"""Features that change from run to run or with their batch: said, by operation and layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.network import Network, load_network
from cnnfeat.options import ProbeOptions
from cnnfeat.records import Probe

v1 = tf.compat.v1
FILTERS = np.random.default_rng(0).normal(size=(3, 3, 1, 2)).astype("float32")


def saved(path: Path, build: Callable[[tf.Tensor], tf.Tensor]) -> str:
    with tf.Graph().as_default() as graph:
        images = v1.placeholder(tf.float32, (None, 8, 8, 1), name="x")
        tf.identity(build(tf.nn.conv2d(images, FILTERS, 1, "SAME", name="conv")), "out")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


def probe(network: Network, *layers: str) -> Probe:
    return network.probe(network.find(layers), ProbeOptions(), image_shape=(8, 8, 1))


def dropout(values: tf.Tensor) -> tf.Tensor:
    return v1.nn.dropout(values, rate=0.5)


def fed_dropout(values: tf.Tensor) -> tf.Tensor:
    return v1.nn.dropout(values, rate=1 - v1.placeholder(tf.float32, (), name="keep_prob"))


def old_dropout(values: tf.Tensor) -> tf.Tensor:
    """As TensorFlow wrote it until 1.13."""
    keep = v1.placeholder(tf.float32, (), name="keep_prob")
    return values / keep * tf.floor(keep + tf.random.uniform(tf.shape(values)))


def batch_statistics(values: tf.Tensor) -> tf.Tensor:
    return v1.nn.fused_batch_norm(values, tf.ones(2), tf.zeros(2), is_training=True)[0]


def moments(values: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(values, [0, 1, 2])
    return (values - mean) * tf.math.rsqrt(variance + 1e-3)


def noise_of_a_key(values: tf.Tensor) -> tf.Tensor:
    return values + tf.random.stateless_normal(tf.shape(values), seed=[1, 2])


def in_a_function(values: tf.Tensor) -> tf.Tensor:
    always = v1.placeholder_with_default(True, (), name="is_training")
    return tf.cond(always, lambda: dropout(values), lambda: values * 2)


def by_all_images(values: tf.Tensor) -> tf.Tensor:
    """What no list of operations knows: each row gets some of the last."""
    return values + tf.reverse(values, [0])


@pytest.mark.parametrize(
    ("build", "named", "feeds"),
    [
        (dropout, "RandomUniform", {}),
        (fed_dropout, "RandomUniform", {"keep_prob": 0.9}),
        (old_dropout, "RandomUniform", {"keep_prob": 0.9}),
        (batch_statistics, "FusedBatchNormV3 in training mode", {}),
        (moments, "Mean over the batch", {}),
        (noise_of_a_key, "StatelessRandomNormalV2", {}),
        (in_a_function, "RandomUniform", {}),
        (by_all_images, "all images of a batch", {}),
    ],
)
def test_what_makes_features_change_is_named(
    tmp_path: Path, build: Callable, named: str, feeds: dict
) -> None:
    found = probe(load_network(saved(tmp_path / "n.pb", build), feeds=feeds), "conv", "out")
    assert list(found.unsteady) == ["out"]
    assert named in " ".join(found.unsteady["out"])


def projection(values: tf.Tensor) -> tf.Tensor:
    """Random once, and the same for ever: a key and a shape that nothing changes."""
    return tf.reshape(values, [-1, 128]) @ tf.random.stateless_normal((128, 3), seed=[1, 2])


def average(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, [1, 2])


@pytest.mark.parametrize(
    ("build", "feeds"),
    [
        (fed_dropout, {"keep_prob": 1.0}),
        (old_dropout, {"keep_prob": 1.0}),
        (in_a_function, {"is_training": False}),
        (projection, {}),
        (average, {}),
    ],
)
def test_what_can_not_matter_is_not_named(tmp_path: Path, build: Callable, feeds: dict) -> None:
    network = load_network(saved(tmp_path / "n.pb", build), feeds=feeds)
    found = probe(network, "conv", "out")
    assert not found.unsteady
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    once, again = found(images)[1], found(images[3:])[1]
    assert np.allclose(once[3:], again, atol=1e-5)


def test_a_warning_each_run_and_in_the_file(cnnfeat, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "dropout.pb", dropout), tmp_path / "o.h5"
    np.save(tmp_path / "x.npy", np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8))
    for _ in range(2):
        done = cnnfeat(
            "extract", "--model", model, "--layer", "conv", "--layer", "out",
            "--data", tmp_path / "x.npy", "-o", out, "--overwrite",
        )  # fmt: skip
        assert done.returncode == 0
        assert "warning: " in done.stderr
        assert "'out' by RandomUniform (dropout/random_uniform/RandomUniform)" in done.stderr
    with h5py.File(out) as file:
        recorded = json.loads(file.attrs["network_unsteady"])
    assert recorded == {"out": ["RandomUniform (dropout/random_uniform/RandomUniform)"]}
    assert "dropout/random_uniform/RandomUniform" in cnnfeat("info", out).stdout
