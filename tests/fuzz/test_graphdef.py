"""Graphs whose bytes, text or messages were changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]


@pytest.fixture(scope="module")
def graphs() -> Sequence[object]:
    """Small graphs: layers, control flow of TensorFlow 1, and functions with that of 2."""
    import tensorflow as tf

    v1 = tf.compat.v1
    random = np.random.default_rng(0)

    def weights(*shape: int) -> tf.Tensor:
        return tf.constant(random.normal(size=shape).astype("f4"))

    def layers(images: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu(tf.nn.conv2d(images, weights(3, 3, 1, 2), 1, "SAME") + weights(2))
        one = tf.ones([2])
        x = v1.nn.fused_batch_norm(x, one, one, one, one, is_training=False)[0]
        x = tf.pad(tf.nn.max_pool2d(x, 2, 2, "VALID"), [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.concat([x, tf.image.resize(x, [6, 6])], 3)
        x = tf.reshape(x, [-1, 6 * 6 * 4])
        return tf.nn.softmax(tf.matmul(x, weights(144, 3)))

    def loops(images: tf.Tensor) -> tf.Tensor:
        count = v1.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y + 1), [0, images])[1]
        training = v1.placeholder_with_default(False, [], "training")
        return v1.cond(training, lambda: count * 2, lambda: tf.tile(count, [1, 2, 1, 1]))

    def functions(images: tf.Tensor) -> tf.Tensor:
        @tf.function
        def block(x: tf.Tensor) -> tf.Tensor:
            x = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y + 1), [0, x])[1]
            return tf.cond(tf.shape(x)[0] > 1, lambda: tf.nn.relu(x), lambda: x)

        @tf.function
        def whole(x: tf.Tensor) -> tf.Tensor:
            return block(tf.nn.conv2d(block(x), weights(3, 3, 1, 2), 1, "SAME"))

        return whole(images)

    made = []
    for build in (layers, loops, functions):
        if build is loops:
            v1.disable_control_flow_v2()
        graph = tf.Graph()
        with graph.as_default():
            tf.identity(build(v1.placeholder(tf.float32, [None, 8, 8, 1], "x")), "out")
        v1.enable_control_flow_v2()
        made.append(graph.as_graph_def())
    return made


def commands(model: str) -> list[list[str]]:
    limits = ["--data", "digits", "--limit", "4", "--timeout", "10", "--overwrite"]
    return [
        ["layers", model, "--timeout", "10"],
        ["extract", "--model", model, "--layer=-1", "-o", "f.h5", *limits],
    ]


@pytest.mark.parametrize("n_inputs", [60, pytest.param(1_000, marks=SLOW)])
def test_changed_graphs_end_in_a_named_error(
    fuzz: Callable[..., dict[int, int]],
    mutators: ModuleType,
    load_module: Callable[[str], ModuleType],
    graphs: Sequence[object],
    n_inputs: int,
) -> None:
    from google.protobuf import text_format

    messages = load_module("fuzz/messages")

    def make(random: Random, folder: Path) -> list[list[str]]:
        graph = random.choice(graphs)
        how = random.random()
        if how < 0.7:
            data = messages.change_graph(random, graph).SerializeToString()
        elif how < 0.85:
            data = mutators.change_bytes(random, graph.SerializeToString())
        else:
            data = mutators.change_bytes(random, text_format.MessageToString(graph).encode())
        (folder / "m.pb").write_bytes(data)
        return commands("m.pb")

    # What a graph computes may take half of the memory there is, of which a worker has 24 GiB.
    outcomes = fuzz(make, n_inputs, grown_mb=12 << 10)
    assert outcomes[4] and outcomes[0]
