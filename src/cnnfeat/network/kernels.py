"""The weights behind a layer: the kernel of the operation that made its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import tensorflow as tf

from cnnfeat.network.graph import (
    FlatGraph,
    ancestors,
    import_part,
    in_order,
    node_of,
    nodes_by_name,
    tensor_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEPTHWISE = {"DepthwiseConv2dNative"}
CONVOLUTIONS = {"Conv2D", "_FusedConv2D", "Conv3D"} | _DEPTHWISE
PRODUCTS = {"MatMul", "_FusedMatMul", "BatchMatMulV2", "Einsum"}
# What may stand between a stored weight and its use. Nothing else is run to read a kernel.
HARMLESS = {
    "Add",
    "AddV2",
    "Cast",
    "Const",
    "Maximum",
    "Neg",
    "RealDiv",
    "Sqrt",
    "ExpandDims",
    "Identity",
    "Mul",
    "Placeholder",
    "ReadVariableOp",
    "Reshape",
    "Rsqrt",
    "Squeeze",
    "Sub",
    "Transpose",
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weights, the same for every image."""

    op: str  # "Conv2D", "DepthwiseConv2dNative", "MatMul" ...
    weights: NDArray[np.float32]  # (height, width, input channels, filters), or another rank

    @property
    def is_filters(self) -> bool:
        """Whether these are filters that slide over an image, and can be shown as pictures."""
        return self.weights.ndim == 4


def find_kernel(graph: FlatGraph, tensor: str) -> Kernel | None:
    """Walk back from a tensor to the nearest convolution or matrix product, and read its weights.

    Parameters
    ----------
    graph : FlatGraph
        The network.
    tensor : str
        A layer's tensor: "conv2/relu/Relu:0".

    Returns
    -------
    Kernel or None
        None where nothing with weights lies behind the tensor. A depthwise convolution's filters,
        one input channel each, are brought to (height, width, 1, filters).
    """
    nodes = nodes_by_name(graph.graph_def)
    name = kernel_nodes(graph).get(node_of(tensor))
    if name is None:
        return None
    node = nodes[name]
    for entry in node.input[1::-1]:  # the weights come second, but in an Einsum they may not
        weights = constant_value(graph, nodes, tensor_of(entry))
        if weights is not None:
            return Kernel(node.op, _standard(weights, node.op))
    return None


def kernel_nodes(graph: FlatGraph) -> dict[str, str]:
    """Name, for each node, the nearest convolution or matrix product behind it, or itself."""
    nodes = nodes_by_name(graph.graph_def)
    nearest: dict[str, tuple[int, str]] = {}  # steps to it, and its name
    for name in in_order(nodes, set(nodes)):
        node = nodes[name]
        if node.op in CONVOLUTIONS | PRODUCTS:
            nearest[name] = (0, name)
            continue
        behind = [nearest.get(node_of(entry)) for entry in node.input if entry[0] != "^"]
        found = [one for one in behind if one is not None]
        if found:
            steps, kernel = min(found, key=lambda one: one[0])
            nearest[name] = (steps + 1, kernel)
    return {name: kernel for name, (_, kernel) in nearest.items()}


def constant_value(
    graph: FlatGraph, nodes: Mapping[str, tf.compat.v1.NodeDef], tensor: str
) -> NDArray[np.float32] | None:
    """Compute a tensor that depends on weights alone; None if on more, or TensorFlow can't.

    Parameters
    ----------
    graph : FlatGraph
        The network.
    nodes : mapping
        Its nodes by name.
    tensor : str
        The tensor.
    """
    needed = ancestors(nodes, [tensor], control=False)
    for name in needed:
        unknown = nodes[name].op == "Placeholder" and name not in graph.weights
        if nodes[name].op not in HARMLESS or unknown:
            return None
    part = tf.compat.v1.GraphDef(versions=graph.graph_def.versions)
    part.node.extend(nodes[name] for name in sorted(needed))
    for node in part.node:
        node.input[:] = [entry for entry in node.input if entry[0] != "^"]
    held = {f"{name}:0": graph.weights[name] for name in needed if name in graph.weights}
    if tensor in held:
        return _as_float32(held[tensor])

    def read() -> list[tf.Tensor]:
        return import_part(part, held, fetches=[tensor], name="kernel")

    try:
        return _as_float32(tf.compat.v1.wrap_function(read, [])()[0])
    except (tf.errors.OpError, ValueError, TypeError):
        return None


def _as_float32(tensor: tf.Tensor) -> NDArray[np.float32] | None:
    if not tensor.dtype.is_floating:
        return None
    return cast("NDArray[np.float32]", tf.cast(tensor, tf.float32).numpy())


def _standard(weights: NDArray[np.float32], op: str) -> NDArray[np.float32]:
    if op in _DEPTHWISE:
        return weights.reshape(*weights.shape[:2], 1, -1)
    return weights
