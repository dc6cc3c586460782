"""Inputs of a graph that doesn't say which they are."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from cnnfeat.network.flattening import importable
from cnnfeat.network.graph import GraphInput, ancestors, descendants, nodes_by_name, shape_of
from cnnfeat.network.order import WEIGHED

_FED = {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"}
_PIPELINES = {
    "IteratorGetNext", "QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2",
    "QueueDequeue", "QueueDequeueMany", "QueueDequeueUpTo",
}  # fmt: skip
_DECODERS = {
    "DecodeJpeg", "DecodePng", "DecodeBmp", "DecodeGif", "DecodeImage", "DecodeAndCropJpeg",
    "ParseExample", "ParseExampleV2",
}  # fmt: skip


def graph_inputs(graph_def: tf.compat.v1.GraphDef) -> tuple[GraphInput, ...]:
    """List what could take images: placeholders, else where a pipeline or decoder ends."""
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(importable(graph_def), name="")
    nodes = nodes_by_name(graph_def)
    weighed = {node.name for node in graph_def.node if WEIGHED.match(node.op)}
    inputs = [
        GraphInput(
            name=tensor.name.removesuffix(":0"),
            tensor=tensor.name,
            dtype=tensor.dtype.base_dtype,
            shape=shape_of(tensor.shape),
            reach=sum(name in weighed for name in descendants(graph_def, [tensor.name])),
        )
        for operation in graph.get_operations()
        if operation.type in _FED | _PIPELINES
        or (operation.type in _DECODERS and not _in_loop(nodes, operation.name))
        for tensor in operation.outputs
    ]
    return tuple(item for item in inputs if item.dtype not in (tf.resource, tf.variant))


def _in_loop(nodes: Mapping[str, tf.compat.v1.NodeDef], name: str) -> bool:
    """Whether a node is computed many times in one run, so that nothing can be fed for it."""
    return any(nodes[item].op == "Enter" for item in ancestors(nodes, [name], control=False))


def internal_input(graph_def: tf.compat.v1.GraphDef, name: str) -> GraphInput | None:
    """Describe any tensor as an input, for `--input` to name one in the middle of the graph."""
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(importable(graph_def), name="")
    try:
        tensor = graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError):
        return None
    return GraphInput(name, tensor.name, tensor.dtype.base_dtype, shape_of(tensor.shape))
