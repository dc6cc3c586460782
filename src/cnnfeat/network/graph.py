"""The one form every network takes: a flat graph, its weights beside it, and names.

Weights are not written into the graph as constants. Each is a placeholder of the graph, and the
value (or the handle of the variable that holds it) stands in `FlatGraph.weights`: so they exist
once in memory, however often the graph is copied, and no graph outgrows a protocol buffer's 2 GB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2

from cnnfeat.records import Array, TensorInfo

# Operations that weigh their inputs: what tells one layer from the next.
WEIGHED = re.compile(r"(\w*Conv|\w*MatMul|Einsum|\w*While|PartitionedCall)")


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A tensor of the graph that is fed."""

    name: str  # what a person calls it: "image"
    tensor: str  # "image:0"
    dtype: tf.DType
    shape: tuple[int | None, ...] | None  # with the batch axis; None: rank unknown
    weighed: bool = False  # whether a convolution or matrix product is known to depend on it
    batched: bool = False  # whether its first axis is known to be the batch


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes images. A side that is None takes any length."""

    name: str
    tensor: str
    dtype: str
    layout: str  # "NHWC", "NCHW", "NHW", "HWC" (one image at a time), "flat" or "pixels"
    height: int | None
    width: int | None
    channels: int | None
    features: int | None = None  # of a flat input; of one of pixels, how many these are
    batch: int | None = None  # of an input that takes exactly so many images

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """(height, width, channels)."""
        return (self.height, self.width, self.channels)

    def __str__(self) -> str:
        lengths: tuple[int | None, ...] = {
            "NHWC": (self.height, self.width, self.channels),
            "NCHW": (self.channels, self.height, self.width),
            "NHW": (self.height, self.width),
            "HWC": (self.height, self.width, self.channels),
            "flat": (self.features,),
            "pixels": (self.features, self.channels),
        }[self.layout]
        inner = ", ".join("any" if length is None else str(length) for length in lengths)
        return f"({inner}{',' if len(lengths) == 1 else ''}) {self.dtype}"


@dataclass(frozen=True, slots=True)
class Feed:
    """A tensor's fixed value."""

    value: tf.Tensor  # a scalar
    shape: tuple[int | None, ...] | None  # the tensor's own

    @property
    def plain(self) -> bool | int | float | str:
        """The value as Python has it, the shortest that the tensor's type tells apart."""
        value = self.value.numpy()
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return float(str(value)) if self.value.dtype.is_floating else value.item()

    def spread(self, n_images: tf.Tensor) -> tf.Tensor:
        """Fill the tensor's shape with the value; an open first axis has a row for each image."""
        if not self.shape:
            return self.value
        first = n_images if self.shape[0] is None else self.shape[0]
        return tf.fill([first, *(length or 1 for length in self.shape[1:])], self.value)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A layer's name and the tensor it stands for."""

    name: str
    kind: str
    tensor: str
    path: tuple[str, ...] = ()
    scope: str = ""  # the graph's own name for it, where that is longer


@dataclass(frozen=True, slots=True)
class FlatGraph:
    """What loading any file ends in."""

    graph_def: tf.compat.v1.GraphDef
    weights: Mapping[str, tf.Tensor]  # by the name of the placeholder node
    inputs: tuple[GraphInput, ...]  # those of the model or signature; the graph may have others
    outputs: tuple[str, ...]
    layers: tuple[NamedTensor, ...] = ()  # (): to be read from the scopes
    aliases: Mapping[str, str] = field(default_factory=dict)  # traced name -> name in this graph
    rescales: bool | None = None  # whether pixels are scaled inside; None: unknown
    signed: bool = True  # whether the file itself says which its inputs are
    kinds: Mapping[str, str] = field(default_factory=dict)  # layer -> class, known from elsewhere
    scale: str | None = None  # the scaling the weights were trained with, where known
    signature: str | None = None  # of a SavedModel's, the one that was chosen
    owner: object = None  # keeps what holds the weights alive
    # The same for images of one (height, width), where no one graph is for all sizes.
    sized: Callable[[tuple[int, int]], FlatGraph] | None = None
    infos: Mapping[str, TensorInfo] | None = None  # of a graph that TensorFlow can't import
    # What runs such a graph: values of inputs, and tensors to fetch.
    run: Callable[[Mapping[str, Array], Sequence[str]], list[Array]] | None = None


def node_of(tensor: str) -> str:
    """Name the node a tensor, or a `node.input` entry, comes from."""
    return tensor.removeprefix("^").split(":", 1)[0]


def tensor_of(entry: str) -> str:
    """Spell a `node.input` entry as a tensor name, with its output index."""
    return entry if ":" in entry else f"{entry}:0"


def scopes_of(node: str) -> list[str]:
    """Name the scopes that a node lies in, from the outermost on."""
    *parts, _ = node.split("/")
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def nodes_by_name(
    graph_def: tf.compat.v1.GraphDef,
) -> dict[str, tf.compat.v1.NodeDef]:
    """Index the nodes of a graph."""
    return {node.name: node for node in graph_def.node}


def ancestors(
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    tensors: Iterable[str],
    *,
    stop: Iterable[str] = (),
    control: bool = True,
) -> set[str]:
    """Names of all nodes that `tensors` need; behind the `stop` tensors nothing is needed."""
    stops = set(stop)
    seen: set[str] = set()
    waiting = [tensor_of(tensor) for tensor in tensors]
    while waiting:
        tensor = waiting.pop()
        name = node_of(tensor)
        if tensor in stops or name in seen or name not in nodes:
            continue
        seen.add(name)
        entries = nodes[name].input
        waiting.extend(
            tensor_of(entry.removeprefix("^"))
            for entry in entries
            if control or not entry.startswith("^")
        )
    return seen


def descendants(
    graph_def: tf.compat.v1.GraphDef, tensors: Iterable[str], *, stop: Iterable[str] = ()
) -> set[str]:
    """Names of all nodes whose values depend on `tensors`; not through the nodes in `stop`."""
    consumers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for entry in node.input:
            if not entry.startswith("^"):
                consumers.setdefault(tensor_of(entry), []).append(node.name)
                consumers.setdefault(node_of(entry) + "/*", []).append(node.name)
    stops, seen = set(stop), set[str]()
    waiting = [name for tensor in tensors for name in consumers.get(tensor_of(tensor), ())]
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in stops:
            seen.add(name)
            waiting.extend(consumers.get(f"{name}/*", ()))
    return seen


def in_order(nodes: Mapping[str, tf.compat.v1.NodeDef], wanted: set[str]) -> list[str]:
    """Sort nodes so that each comes after what it needs, as near to the file's order as can be."""
    done: set[str] = set()
    ordered: list[str] = []
    for start in nodes:
        stack = [(start, False)] if start in wanted else []
        while stack:
            name, ready = stack.pop()
            if ready:
                ordered.append(name)
            elif name not in done:
                done.add(name)
                stack.append((name, True))
                stack.extend(
                    (node_of(entry), False)
                    for entry in reversed(nodes[name].input)
                    if node_of(entry) in wanted and node_of(entry) not in done
                )
    return ordered


def consumers_of(
    nodes: Mapping[str, tf.compat.v1.NodeDef], wanted: set[str]
) -> dict[str, list[str]]:
    """Say which of the nodes take each node's values."""
    consumers: dict[str, list[str]] = {}
    for name in wanted:
        for entry in nodes[name].input:
            if entry[0] != "^":
                consumers.setdefault(node_of(entry), []).append(name)
    return consumers


def ends(graph_def: tf.compat.v1.GraphDef) -> list[str]:
    """Names of the nodes whose outputs nobody takes."""
    taken = {node_of(entry) for node in graph_def.node for entry in node.input}
    return [node.name for node in graph_def.node if node.name not in taken]


def subgraph(graph_def: tf.compat.v1.GraphDef, keep: set[str]) -> tf.compat.v1.GraphDef:
    """Copy the nodes in `keep`, without control edges from nodes that are not."""
    part = tf.compat.v1.GraphDef(versions=graph_def.versions)
    part.library.CopyFrom(graph_def.library)
    for node in graph_def.node:
        if node.name in keep:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.ClearField("input")
            copy.input.extend(
                entry for entry in node.input if entry[0] != "^" or node_of(entry) in keep
            )
    return part


def import_part(
    part: tf.compat.v1.GraphDef,
    values: Mapping[str, tf.Tensor],
    *,
    fetches: Sequence[str],
    name: str,
) -> list[tf.Tensor]:
    """Import a graph into the one being built, with values in place of some of its tensors.

    Parameters
    ----------
    part : GraphDef
        The nodes that `fetches` need.
    values : mapping
        By the tensor each stands for; those the nodes don't take are left alone.
    fetches : sequence of str
        Tensors to return; none of `values`.
    name : str
        The scope.
    """
    consumed = {tensor_of(entry) for node in part.node for entry in node.input}
    tensors: list[tf.Tensor] = tf.graph_util.import_graph_def(
        part,
        input_map={key: tf.identity(value) for key, value in values.items() if key in consumed},
        return_elements=list(fetches),
        name=name,
    )
    return tensors


def tensor_infos(graph: tf.Graph) -> dict[str, TensorInfo]:
    """Describe every tensor of an imported graph."""
    return {
        tensor.name: TensorInfo(
            name=tensor.name,
            op=operation.type,
            shape=shape_of(tensor.shape),
            dtype=tensor.dtype.base_dtype.name,
        )
        for operation in graph.get_operations()
        for tensor in operation.outputs
    }


def shape_of(shape: tf.TensorShape) -> tuple[int | None, ...] | None:
    """Turn TensorFlow's shape into a plain one."""
    return None if shape.rank is None else tuple(shape.as_list())


def constant_values(node: tf.compat.v1.NodeDef) -> NDArray[np.generic]:
    """Read the values that a constant stores, in a row; the last may stand for millions more."""
    tensor = node.attr["value"].tensor
    width = 2 if tf.dtypes.as_dtype(tensor.dtype).is_complex else 1
    stored = [len(values) for field, values in tensor.ListFields() if field.name.endswith("_val")]
    declared = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    n_values = min(declared, max([1, *stored]) // width)
    if not tensor.tensor_content and n_values < declared:
        short = tensor_pb2.TensorProto()
        short.CopyFrom(tensor)
        del short.tensor_shape.dim[:]
        short.tensor_shape.dim.add(size=n_values)
        tensor = short
    values: NDArray[np.generic] = tf.make_ndarray(tensor).ravel()
    return values
