"""Whether a graph scales pixels by itself: told by the first arithmetic behind its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from cnnfeat.network.graph import node_of, nodes_by_name
from cnnfeat.network.order import consumers_of

_PASSING = {
    "Cast", "Identity", "Reshape", "ExpandDims", "Pad", "PadV2", "MirrorPad", "Transpose",
    "Squeeze", "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor", "ResizeArea",
    "ReverseV2", "Split", "StridedSlice", "ConcatV2", "PlaceholderWithDefault", "EnsureShape",
    "StopGradient",
}  # fmt: skip
_SMALL, _LARGE = 1 / 32, 32  # of a factor or an offset for pixels in [0, 255]
_DEPTH = 12


def rescales(graph_def: tf.compat.v1.GraphDef, tensor: str) -> bool:
    """Whether pixels in [0, 255] are scaled or centred right behind `tensor`."""
    nodes = nodes_by_name(graph_def)
    consumers = consumers_of(nodes, set(nodes))
    waiting, seen = [(node_of(tensor), 0)], set()
    while waiting:
        name, depth = waiting.pop()
        for taker in consumers.get(name, ()):
            if taker in seen or depth >= _DEPTH:
                continue
            seen.add(taker)
            if _scales(nodes, taker):
                return True
            if nodes[taker].op in _PASSING | {"Mul", "Sub", "Add", "AddV2", "RealDiv", "Div"}:
                waiting.append((taker, depth + 1))
    return False


def _scales(nodes: Mapping[str, tf.compat.v1.NodeDef], name: str) -> bool:
    operation = nodes[name].op
    sizes = _constants(nodes, nodes[name].input)
    if operation == "Mul":
        return any(0 < size <= _SMALL for size in sizes)
    if operation in ("RealDiv", "Div", "Sub"):
        return any(size >= _LARGE for size in sizes)
    return False


def _constants(nodes: Mapping[str, tf.compat.v1.NodeDef], entries: Sequence[str]) -> list[float]:
    """The largest magnitudes of those inputs that are constants."""
    sizes = []
    for entry in entries:
        node = nodes.get(node_of(entry))
        while node is not None and node.op in ("Identity", "Cast") and node.input:
            node = nodes.get(node_of(node.input[0]))
        if node is not None and node.op == "Const":
            value = tf.make_ndarray(node.attr["value"].tensor)
            if value.size and np.issubdtype(value.dtype, np.number):
                sizes.append(float(np.abs(value.astype(np.float64)).max()))
    return sizes
