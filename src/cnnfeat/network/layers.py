"""Layer names where the file has no layers: read from the scopes of the graph's nodes.

A scope is a layer: `conv2/Conv2D` and `conv2/Relu` belong to `conv2`, and what leaves the scope
last is its output. A node outside every scope is a layer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from cnnfeat.network.graph import FlatGraph, NamedTensor, descendants, node_of
from cnnfeat.network.inputs import ImageInput
from cnnfeat.records import TensorInfo

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?|Func|cond(_\d+)?_?|__inference_.*")
_GENERIC = re.compile(
    r"(model|functional|sequential|import|module|graph|network)(_\d+)?(_apply\w*)?"
)
_MINOR = {
    "Shape", "ShapeN", "Pack", "StridedSlice", "Slice", "Const", "Identity", "IdentityN", "NoOp",
    "Assert", "Size", "Rank", "Range", "Fill", "Cast", "Switch", "Merge", "Enter", "Exit",
    "LoopCond", "NextIteration", "ReadVariableOp", "StopGradient", "Placeholder",
    "TensorArrayV3", "TensorArrayReadV3", "TensorArrayWriteV3", "TensorArrayScatterV3",
    "TensorArrayGatherV3",
}  # fmt: skip
_KINDS = (
    "Conv2D", "DepthwiseConv2dNative", "Conv3D", "Conv2DBackpropInput", "QuantizedConv2D",
    "MatMul", "QuantizedMatMul", "BatchMatMulV2", "Einsum", "While", "StatelessWhile",
    "MaxPool", "AvgPool", "MaxPoolV2", "FusedBatchNormV3", "FusedBatchNormV2", "FusedBatchNorm",
    "LRN", "ConcatV2", "Concat",
)  # fmt: skip


@dataclass(slots=True)
class _Scope:
    """Nodes in one scope, in the order they are computed."""

    nodes: list[str] = field(default_factory=list)
    inner: set[str] = field(default_factory=set)  # scopes inside


def scope_layers(
    graph: FlatGraph,
    dependent: set[str],
    *,
    images: ImageInput,
    infos: Mapping[str, TensorInfo],
) -> tuple[NamedTensor, ...]:
    """Name the layers of a graph by the scopes of its nodes.

    Parameters
    ----------
    graph : FlatGraph
        The network.
    dependent : set of str
        Nodes whose values depend on the images.
    images : ImageInput
        The input that takes them.
    infos : mapping
        All tensors by name.
    """
    nodes = {node.name: node for node in graph.graph_def.node}
    ordered = _in_order(nodes, dependent - _label_dependent(graph, images, infos))
    members = [name for name in ordered if _is_activation(nodes[name], infos)]
    scopes = _scopes(members, _cleaner(members))
    consumers = _consumers(nodes, dependent)
    rank = {name: position for position, name in enumerate(ordered)}
    named = [
        NamedTensor(
            name,
            _kind(scope, nodes, graph.kinds.get(name)),
            f"{_exit(scope.nodes, consumers)}:0",
            _path(name, scopes),
        )
        for name, scope in scopes.items()
    ]
    first = {name: rank[scope.nodes[0]] for name, scope in scopes.items()}
    named.sort(key=lambda item: (first[item.name], item.name.count("/")))
    start = NamedTensor(images.name, "Input", images.tensor)
    return (start, *(item for item in named if item.name != images.name))


def _label_dependent(
    graph: FlatGraph, images: ImageInput, infos: Mapping[str, TensorInfo]
) -> set[str]:
    """Nodes that need labels: losses and accuracies, which are no features."""
    if graph.signed:
        return set()
    other = [
        item.tensor
        for item in graph.inputs
        if item.tensor != images.tensor
        and infos[item.tensor].op.startswith(("Placeholder", "Iterator", "Queue"))
        and infos[item.tensor].op != "PlaceholderWithDefault"
        and item.shape
    ]
    return descendants(graph.graph_def, other)


def _in_order(nodes: Mapping[str, tf.compat.v1.NodeDef], wanted: set[str]) -> list[str]:
    """Nodes in an order of computation, as near to the file's as can be."""
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


def _is_activation(node: tf.compat.v1.NodeDef, infos: Mapping[str, TensorInfo]) -> bool:
    info = infos.get(f"{node.name}:0")
    if info is None or node.op in _MINOR or node.op.endswith(("Grad", "Summary", "SummaryV2")):
        return False
    dtype = tf.dtypes.as_dtype(info.dtype)
    return (dtype.is_floating or dtype.is_quantized) and (
        info.shape is None or len(info.shape) >= 2
    )


def _cleaner(members: Sequence[str]) -> Mapping[str, str]:
    """What is left of each node's name without the prefixes of tracing."""
    clean = {
        name: "/".join(part for part in name.split("/") if not _CALL.fullmatch(part))
        or name.rsplit("/", 1)[-1]
        for name in members
    }
    traced = any(clean[name] != name for name in members)
    while True:
        heads = {text.split("/")[0] for text in clean.values()}
        if len(heads) != 1 or any("/" not in text for text in clean.values()):
            return clean
        seconds = {text.split("/")[1] for text in clean.values()}
        if len(seconds) < 2 or not (traced or _GENERIC.fullmatch(next(iter(heads)))):
            return clean
        clean = {name: text.split("/", 1)[1] for name, text in clean.items()}
        traced = False


def _scopes(members: Iterable[str], clean: Mapping[str, str]) -> dict[str, _Scope]:
    scopes: dict[str, _Scope] = {}
    for node in members:
        parts = clean[node].split("/")
        if len(parts) == 1:
            scopes.setdefault(parts[0], _Scope()).nodes.append(node)
        for depth in range(1, len(parts)):
            name = "/".join(parts[:depth])
            scope = scopes.setdefault(name, _Scope())
            scope.nodes.append(node)
            if depth + 1 < len(parts):
                scope.inner.add("/".join(parts[: depth + 1]))
    return scopes


def _consumers(
    nodes: Mapping[str, tf.compat.v1.NodeDef], dependent: set[str]
) -> dict[str, list[str]]:
    consumers: dict[str, list[str]] = {}
    for name in dependent:
        for entry in nodes[name].input:
            if entry[0] != "^":
                consumers.setdefault(node_of(entry), []).append(name)
    return consumers


def _exit(members: Sequence[str], consumers: Mapping[str, Sequence[str]]) -> str:
    """The last node of a scope whose value goes on outside it."""
    inside = set(members)
    for name in reversed(members):
        takers = consumers.get(name, ())
        if not takers or any(taker not in inside for taker in takers):
            return name
    return members[-1]


def _kind(scope: _Scope, nodes: Mapping[str, tf.compat.v1.NodeDef], known: str | None) -> str:
    if known:
        return known
    if scope.inner:
        return "Block"
    operations = [nodes[name].op for name in scope.nodes]
    for kind in _KINDS:
        if kind in operations:
            return kind
    return str(operations[-1])


def _path(name: str, scopes: Mapping[str, _Scope]) -> tuple[str, ...]:
    parts = name.split("/")[:-1]
    heads = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return tuple(head for head in heads if head in scopes)
