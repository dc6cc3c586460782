"""Layer names where the file has no layers: read from the scopes of the graph's nodes.

A scope is a layer: `conv2/Conv2D` and `conv2/Relu` belong to `conv2`, and what leaves the scope
last is its output. A node outside every scope is a layer of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from cnnfeat.network.graph import FlatGraph, NamedTensor, descendants, node_of
from cnnfeat.network.inputs import ImageInput
from cnnfeat.network.naming import INTERNAL, clean_names, is_call, uncalled
from cnnfeat.network.order import consumers_of, in_order
from cnnfeat.records import TensorInfo

_MINOR = {
    "Shape", "ShapeN", "Pack", "StridedSlice", "Slice", "Const", "Identity", "IdentityN", "NoOp",
    "Assert", "Size", "Rank", "Range", "Fill", "Cast", "Switch", "Enter", "Exit",
    "LoopCond", "NextIteration", "ReadVariableOp", "StopGradient", "Placeholder",
    "TensorArrayV3", "TensorArrayReadV3", "TensorArrayWriteV3", "TensorArrayScatterV3",
    "TensorArrayGatherV3",
}  # fmt: skip
_FED = {"Placeholder", "IteratorGetNext", "QueueDequeueManyV2", "QueueDequeueV2"}
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
    loops = _in_loops(nodes, consumers_of(nodes, set(nodes)))
    ordered = in_order(nodes, dependent - loops - _label_dependent(graph, images, infos))
    members = [name for name in ordered if _is_activation(nodes[name], infos)]
    members += _passed_on(ordered, members, nodes, infos)
    clean = clean_names(members, graph.weights)
    scopes = _scopes(members, clean)
    consumers = consumers_of(nodes, dependent)
    rank = {name: position for position, name in enumerate(ordered)}
    named = [
        NamedTensor(
            name,
            _kind(scope, nodes, graph.kinds.get(name)),
            f"{_exit(scope.nodes, consumers)}:0",
            _path(name, scopes),
            _full_scope(_exit(scope.nodes, consumers), clean, name),
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
    signed = {item.tensor for item in graph.inputs} if graph.signed else {images.tensor}
    labels = [
        info.name
        for info in infos.values()
        if info.op in _FED
        and info.name not in signed
        and info.name.partition(":")[0] not in graph.weights
        and (info.shape or graph.signed)
    ]
    lost = descendants(graph.graph_def, labels, stop=[node_of(images.tensor)])
    nodes = {node.name: node for node in graph.graph_def.node}
    takers = consumers_of(nodes, set(nodes))
    scopes = {name.rpartition("/")[0] for name in lost} - {""}
    into = {name for name in nodes if name.rpartition("/")[0] in scopes and takers.get(name)}
    return lost | {name for name in into if lost.issuperset(takers[name])}


def _is_activation(node: tf.compat.v1.NodeDef, infos: Mapping[str, TensorInfo]) -> bool:
    if node.name.startswith("Func/"):
        return False
    info = infos.get(f"{node.name}:0")
    if info is None or node.op in _MINOR or node.op.endswith(("Grad", "Summary", "SummaryV2")):
        return False
    dtype = tf.dtypes.as_dtype(info.dtype)
    return (dtype.is_floating or dtype.is_quantized) and (
        info.shape is None or len(info.shape) >= 2
    )


def _passed_on(
    ordered: Iterable[str],
    members: Iterable[str],
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    infos: Mapping[str, TensorInfo],
) -> list[str]:
    """Identities and slices alone in their scope: what is left of a dropout, and a cropping."""
    filled = {name.rsplit("/", 1)[0] for name in members if "/" in name}

    def stays(name: str) -> bool:
        info = infos.get(f"{name}:0")
        if info is None or info.shape == ():
            return False
        if nodes[name].op == "Identity":
            return True
        floating = tf.dtypes.as_dtype(info.dtype).is_floating
        return nodes[name].op == "StridedSlice" and floating and len(info.shape or ()) >= 2

    return [
        name
        for name in ordered
        if stays(name)
        and not name.startswith("Func/")
        and "/" in uncalled(name)
        and name.rsplit("/", 1)[0] not in filled
        and not any(is_call(part) for part in name.split("/")[-2:])
    ]


def _scopes(members: Iterable[str], clean: Mapping[str, str]) -> dict[str, _Scope]:
    scopes: dict[str, _Scope] = {}
    for node in members:
        parts = clean[node].split("/")
        if len(parts) == 1:
            scopes.setdefault(parts[0], _Scope()).nodes.append(node)
        for depth in range(1, len(parts)):
            if depth > 1 and parts[depth - 1] in INTERNAL:
                break
            name = "/".join(parts[:depth])
            scope = scopes.setdefault(name, _Scope())
            scope.nodes.append(node)
            if depth + 1 < len(parts) and parts[depth] not in INTERNAL:
                scope.inner.add("/".join(parts[: depth + 1]))
    return scopes


def _exit(members: Sequence[str], consumers: Mapping[str, Sequence[str]]) -> str:
    """The last node of a scope whose value goes on outside it."""
    inside = set(members)
    for name in reversed(members):
        takers = consumers.get(name, ())
        if not takers or any(taker not in inside for taker in takers):
            return name
    return members[-1]


def _full_scope(node: str, clean: Mapping[str, str], layer: str) -> str:
    """The scope a layer has in the graph: as deep above the node as the layer's name is."""
    below = clean[node].count("/") - layer.count("/")
    return "/".join(node.split("/")[:-below]) if below > 0 else node


def _in_loops(
    nodes: Mapping[str, tf.compat.v1.NodeDef], consumers: Mapping[str, Sequence[str]]
) -> set[str]:
    """Nodes inside loops, computed many times in one run: no tensor of theirs can be fetched."""
    waiting = [name for name, node in nodes.items() if node.op == "Enter"]
    inside = set(waiting)
    while waiting:
        for name in consumers.get(waiting.pop(), ()):
            if name not in inside and nodes[name].op != "Exit":
                inside.add(name)
                waiting.append(name)
    return inside


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
