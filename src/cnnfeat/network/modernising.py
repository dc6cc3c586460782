"""Operations that today's TensorFlow no longer runs, written with those it does."""

from __future__ import annotations

import tensorflow as tf


def modernise(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Rewrite withdrawn operations of a graph, in place.

    `BatchNormWithGlobalNormalization` went in 2015, yet it is in the most copied graph there is,
    the Inception of that year.
    """
    for node in list(graph_def.node):
        if node.op == "BatchNormWithGlobalNormalization":
            _rewrite_batch_norm(graph_def, node)
    return graph_def


def _rewrite_batch_norm(graph_def: tf.compat.v1.GraphDef, node: tf.compat.v1.NodeDef) -> None:
    values, mean, variance, beta, gamma = node.input[:5]
    epsilon = node.attr["variance_epsilon"].f
    dtype = node.attr["T"].type
    if not node.attr["scale_after_normalization"].b:
        gamma = f"{node.name}/ones"
        ones = graph_def.node.add(name=gamma, op="OnesLike", input=[mean])
        ones.attr["T"].type = dtype
    node.op = "FusedBatchNormV3"
    node.ClearField("attr")
    node.ClearField("input")
    node.input.extend([values, gamma, beta, mean, variance])
    node.attr["T"].type = dtype
    node.attr["U"].type = dtype
    node.attr["epsilon"].f = epsilon
    node.attr["is_training"].b = False
