"""What a network makes of pixels before it weighs them: whether it takes 0 to 255, and where.

The range 0 to 255 is followed from the image input through operations that keep it (casts, flips,
paddings, resizing) and such as shift and scale it by constants, to the first operation that does
anything else. Values that come out centred or small there were scaled inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from cnnfeat.network.graph import FlatGraph, consumers_of, node_of, nodes_by_name, tensor_of
from cnnfeat.network.kernels import constant_value

_KEEPING = {
    "Cast", "Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "Pad", "PadV2",
    "MirrorPad", "Transpose", "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor",
    "ResizeArea", "ScaleAndTranslate", "CropAndResize", "Reverse", "ReverseV2", "Roll", "Split",
    "SplitV", "Pack", "Unpack", "Slice", "StridedSlice", "Gather", "GatherV2", "GatherNd", "Concat",
    "ConcatV2", "Tile", "BroadcastTo", "PlaceholderWithDefault", "EnsureShape", "StopGradient",
    "Snapshot", "CheckNumerics", "Select", "SelectV2", "Switch", "Merge", "SpaceToDepth",
    "DepthToSpace", "SpaceToBatchND", "BatchToSpaceND", "ExtractImagePatches", "MaxPool", "AvgPool",
    "ImageProjectiveTransformV2", "ImageProjectiveTransformV3", "Mean",
}  # fmt: skip
_NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
_SMALL, _CENTRED = 16.0, -32.0
_MOST_STEPS = 300  # that pixels are followed; nobody scales them in more


@dataclass(frozen=True, slots=True)
class Taken:
    """What pixels a network takes, and the operation that shows it."""

    scale: str | None  # "raw", "unit"; None: nothing shows it
    node: str = ""


def pixels_taken(graph: FlatGraph, tensor: str) -> Taken:
    """Follow pixels from an input to where they are weighed.

    Parameters
    ----------
    graph : FlatGraph
        The network.
    tensor : str
        The input that takes the images.
    """
    nodes = nodes_by_name(graph.graph_def)
    consumers = consumers_of(nodes, set(nodes))
    waiting, seen = [(node_of(tensor), (0.0, 255.0), "")], set[str]()
    found: list[Taken] = []
    while waiting and len(seen) <= _MOST_STEPS:
        name, given, by = waiting.pop()
        if not consumers.get(name):  # an output
            found.append(_judged(given, by))
        for taker in dict.fromkeys(consumers.get(name, ())):
            if taker in seen:
                continue
            seen.add(taker)
            node = nodes[taker]
            if node.op in _KEEPING:
                waiting.append((taker, given, by))
            elif node.op in ("Minimum", "Maximum", "ClipByValue"):
                if _cuts(graph, nodes, node, given):
                    found.append(Taken("unit", taker))
                else:
                    waiting.append((taker, given, by))
            elif (made := _made(graph, nodes, node, name, given)) is not None:
                waiting.append((taker, made, taker))
            else:
                found.append(_judged(given, by))
    return max(found, key=_worth, default=Taken(None))


def _judged(values: tuple[float, float], by: str) -> Taken:
    low, high = values
    inside = by and (high - low <= _SMALL or low <= _CENTRED)
    return Taken("raw", by) if inside else Taken(None)


def _worth(taken: Taken) -> int:
    return ("raw", "unit", None)[::-1].index(taken.scale)


def _values(
    graph: FlatGraph, nodes: Mapping[str, tf.compat.v1.NodeDef], entries: Sequence[str]
) -> list[np.ndarray] | None:
    """Constants, weights among them; None if one isn't."""
    found = [constant_value(graph, nodes, tensor_of(entry)) for entry in entries]
    return [one for one in found if one is not None] if all(_ok(one) for one in found) else None


def _ok(value: np.ndarray | None) -> bool:
    return value is not None and value.size > 0 and bool(np.isfinite(value).all())


def _cuts(
    graph: FlatGraph,
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    node: tf.compat.v1.NodeDef,
    given: tuple[float, float],
) -> bool:
    """Whether a bound is one of values from 0 to 1."""
    for entry in node.input:
        bound = _values(graph, nodes, [entry])
        if bound and node.op != "Maximum" and 0 < float(bound[0].max()) <= given[1] / 64:
            return True
    return False


def _made(
    graph: FlatGraph,
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    node: tf.compat.v1.NodeDef,
    of: str,
    given: tuple[float, float],
) -> tuple[float, float] | None:
    """The range that a shift or a scaling by constants gives; None if it is neither."""
    if node.op in _NORMS:
        return _normed(graph, nodes, node, given)
    if len(node.input) < 2 or node_of(node.input[0]) == node_of(node.input[1]):
        return None
    first = node_of(node.input[0]) == of
    other = _values(graph, nodes, [node.input[1 if first else 0]])
    if other is None:
        return None
    ends = np.array([[one] for one in given]), np.array([[other[0].min(), other[0].max()]])
    if not first:
        ends = ends[::-1]
    a, b = ends[0].astype(np.float64), ends[1].astype(np.float64)
    if node.op in ("Add", "AddV2", "BiasAdd"):
        result = a + b
    elif node.op == "Sub":
        result = a - b
    elif node.op == "Mul":
        result = a * b
    elif node.op in ("RealDiv", "Div", "DivNoNan") and first and (b > 0).all():
        result = a / b
    else:
        return None
    return float(result.min()), float(result.max())


def _normed(
    graph: FlatGraph,
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    node: tf.compat.v1.NodeDef,
    given: tuple[float, float],
) -> tuple[float, float] | None:
    """What a batch norm with known statistics makes of them."""
    values = _values(graph, nodes, node.input[1:5])
    if values is None or len(values) != 4 or len({value.size for value in values}) != 1:
        return None
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
    slope = gamma / np.sqrt(np.maximum(variance, 0) + (node.attr["epsilon"].f or 1e-3))
    ends = np.array([(end - mean) * slope + beta for end in given])
    return float(ends.min()), float(ends.max())
