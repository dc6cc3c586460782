"""Layers by name where the file has none: read from the scopes of the graph's nodes.

A scope is a layer: `conv2/Conv2D` and `conv2/Relu` belong to `conv2`, and what leaves the scope
last is its output. A node outside every scope is a layer of its own. Of all layers, however named,
those that every path goes through are the trunk.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from cnnfeat.network.graph import (
    WEIGHED,
    FlatGraph,
    ImageInput,
    NamedTensor,
    ancestors,
    consumers_of,
    descendants,
    in_order,
    node_of,
    nodes_by_name,
    scopes_of,
)
from cnnfeat.records import LayerInfo, TensorInfo

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
_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?|Func|cond(_\d+)?_?|__inference_.*")
_NUMBERED = re.compile(r".+_\d+")
# Scopes that operations open inside a layer.
_INTERNAL = {
    "batchnorm", "moments", "Tensordot", "einsum", "einsum_1", "random_uniform", "normalize",
    "separable_conv2d", "l2_normalize", "strided_slice",
}  # fmt: skip
# Scopes that functions of tf.nn open around an operation.
_OPENED = re.compile(r"(separable_conv2d|convolution|xw_plus_b|relu_layer|Tensordot)(_\d+)?")
_GENERIC = re.compile(
    r"(model|functional|sequential|import|module|graph|network)(_\d+)?(_apply\w*)?"
)


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
    nodes = nodes_by_name(graph.graph_def)
    loops = in_loops(nodes, consumers_of(nodes, set(nodes)))
    ordered = in_order(nodes, dependent - loops - label_dependent(graph, images, infos))
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


def label_dependent(
    graph: FlatGraph, images: ImageInput, infos: Mapping[str, TensorInfo]
) -> set[str]:
    """Nodes that need labels: losses and accuracies, which are no features."""
    nodes = nodes_by_name(graph.graph_def)
    signed = {images.tensor}
    if graph.signed:
        signed |= {item.tensor for item in graph.inputs}
        signed |= {f"{name}:0" for name in ancestors(nodes, graph.outputs, control=False)}
    labels = [
        info.name
        for info in infos.values()
        if info.op in _FED
        and info.name not in signed
        and info.name.partition(":")[0] not in graph.weights
        and (info.shape or graph.signed)
    ]
    lost = descendants(graph.graph_def, labels, stop=[node_of(images.tensor)])
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
        and "/" in _uncalled(name)
        and name.rsplit("/", 1)[0] not in filled
        and not any(_is_call(part) for part in name.split("/")[-2:])
    ]


def _scopes(members: Iterable[str], clean: Mapping[str, str]) -> dict[str, _Scope]:
    scopes: dict[str, _Scope] = {}
    for node in members:
        parts = clean[node].split("/")
        if len(parts) == 1:
            scopes.setdefault(parts[0], _Scope()).nodes.append(node)
        for depth in range(1, len(parts)):
            if depth > 1 and parts[depth - 1] in _INTERNAL:
                break
            name = "/".join(parts[:depth])
            scope = scopes.setdefault(name, _Scope())
            scope.nodes.append(node)
            if depth + 1 < len(parts) and parts[depth] not in _INTERNAL:
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


def in_loops(
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


def clean_names(members: Sequence[str], weights: Iterable[str]) -> dict[str, str]:
    """Say what is left of each node's name without the prefixes and suffixes of tracing.

    Parameters
    ----------
    members : sequence of str
        Names of nodes, in order.
    weights : iterable of str
        Names of the variables, which carry the layers' own names.
    """
    clean = {name: _uncalled(name) for name in members}
    traced = any(clean[name] != name for name in members)
    if traced and _suffixed(clean.values(), weights):
        clean = _without_suffixes(clean)
    elif traced:
        clean = _calls_apart(clean)
    while True:
        heads = {text.split("/")[0] for text in clean.values()}
        if len(heads) != 1 or any("/" not in text for text in clean.values()):
            return clean
        seconds = {text.split("/")[1] for text in clean.values()}
        if len(seconds) < 2 or not (traced or _GENERIC.fullmatch(next(iter(heads)))):
            return clean
        clean = {name: text.split("/", 1)[1] for name, text in clean.items()}
        traced = False


def _uncalled(name: str) -> str:
    """Leave out the scopes of function calls."""
    parts = [part for part in name.split("/") if not _CALL.fullmatch(part)]
    return "/".join(parts) or name.rsplit("/", 1)[-1]


def in_scopes(nodes: Iterable[str]) -> Counter[str]:
    """Count the nodes in each scope, without those of function calls."""
    return Counter(head for node in nodes for head in scopes_of(_uncalled(node)))


def has_own_scope(node: str, together: Iterable[str], counts: Mapping[str, int]) -> bool:
    """Whether a scope that an author gave holds a node and no others than those `together` with it.

    Parameters
    ----------
    node : str
        The node.
    together : iterable of str
        Nodes that may be in that scope too, itself among them.
    counts : mapping
        From `in_scopes`, of all nodes that count.
    """
    scopes = scopes_of(_uncalled(node))
    if scopes and _OPENED.fullmatch(scopes[-1].rsplit("/", 1)[-1]):
        scopes.pop()
    own = in_scopes(together)
    return any(
        counts[scope] == own[scope]
        for scope in scopes
        if not _GENERIC.fullmatch(scope.rsplit("/", 1)[-1])
    )


def _is_call(scope: str) -> bool:
    """Whether a part of a path names a function call."""
    return bool(_CALL.fullmatch(scope))


def _suffixed(names: Iterable[str], weights: Iterable[str]) -> bool:
    """Whether the layers' scopes have got a number at their end, as Keras 3 exports them.

    Then `conv2_1` is no layer's name, but `conv2` is the name its weights have. Scopes inside a
    layer, such as `Gelu`, get none.
    """
    scopes = {part for name in names for part in name.split("/")[:-1]} - _INTERNAL
    numbered = {scope for scope in scopes if _NUMBERED.fullmatch(scope)}
    own = {weight.split("/")[-2] for weight in weights if "/" in weight}
    if own & (scopes - numbered):
        return False
    stripped = {scope.rsplit("_", 1)[0] for scope in numbered}
    return len(own & stripped) > len(own & scopes)


def _without_suffixes(clean: Mapping[str, str]) -> dict[str, str]:
    """Take the numbers off; a layer called again is told apart as `embed@2`."""
    chosen: dict[str, str] = {}
    taken: dict[str, int] = {}
    result = {}
    for node, name in clean.items():
        *parts, last = name.split("/")
        old, new = "", ""
        for part in parts:
            old = f"{old}/{part}"
            if old not in chosen:
                bare = part in _INTERNAL or not _NUMBERED.fullmatch(part)
                own = part if bare else part.rsplit("_", 1)[0]
                base = f"{new}/{own}"
                taken[base] = taken.get(base, 0) + 1
                chosen[old] = base if taken[base] == 1 else f"{base}@{taken[base]}"
            new = chosen[old]
        result[node] = f"{new}/{last}".removeprefix("/")
    return result


def _calls_apart(clean: Mapping[str, str]) -> dict[str, str]:
    """Tell the calls of a Keras 2 layer apart, whose nodes share a scope.

    The second call of `embed` makes `embed/Relu_1` beside `embed/Relu`: that is `embed@2/Relu_1`.
    """
    numbers = _call_numbers(clean)
    calls: dict[str, set[int]] = defaultdict(set)
    for node, number in numbers.items():
        calls[clean[node].rsplit("/", 1)[0]].add(number)
    counts: dict[str, set[int]] = defaultdict(set)
    for scope, found in calls.items():
        parts = scope.split("/")
        for depth in range(1, len(parts) + 1):
            counts["/".join(parts[:depth])].add(len(found))
    result = dict(clean)
    for node, number in numbers.items():
        parts = clean[node].split("/")
        heads = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = [head for head in heads if len(counts[head]) == 1 and counts[head] != {1}]
        if number and whole:
            result[node] = f"{whole[0]}@{number + 1}{clean[node][len(whole[0]) :]}"
    return result


def _call_numbers(clean: Mapping[str, str]) -> dict[str, int]:
    """Which call of its scope each node belongs to; 0 where the scope is not wholly repeated."""
    scopes: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    leaves: dict[str, set[str]] = defaultdict(set)
    for name in clean.values():
        scope, _, leaf = name.rpartition("/")
        leaves[scope].add(leaf)
    for node, name in clean.items():
        scope, _, leaf = name.rpartition("/")
        base, number = leaf, 0
        match = re.fullmatch(r"(.+?)_(\d+)", leaf)
        if match and match.group(1) in leaves[scope]:
            base, number = match.group(1), int(match.group(2))
        scopes[scope][number][base] = node
    numbers = {}
    for scope, calls in scopes.items():
        repeated = bool(scope) and all(set(calls[0]) == set(call) for call in calls.values())
        for position, number in enumerate(sorted(calls)):
            for node in calls[number].values():
                numbers[node] = position if repeated else 0
    return numbers


def trunk(
    graph: FlatGraph, dependent: set[str], layers: tuple[LayerInfo, ...], *, images: ImageInput
) -> tuple[LayerInfo, ...]:
    """Choose the layers that every path from the images to the outputs goes through.

    Of a convolution, its norm and its ReLU the last is kept.
    """
    nodes = nodes_by_name(graph.graph_def)
    forward = ancestors(nodes, graph.outputs, control=False) & dependent
    ordered = in_order(nodes, forward)
    rank = {name: position for position, name in enumerate(ordered)}
    consumers = consumers_of(nodes, forward)
    shapes = {"Shape", "ShapeN", "Size", "Rank"}
    cut: set[str] = set()
    reach = 0
    for position, name in enumerate([node_of(images.tensor), *ordered], -1):
        if reach <= position:
            cut.add(name)
        takers = [rank[taker] for taker in consumers.get(name, ()) if nodes[taker].op not in shapes]
        reach = max([reach, *takers])
    passed = [layer for layer in layers if node_of(layer.tensor.name) in cut and not layer.path]
    weighed = [position for position, name in enumerate(ordered) if WEIGHED.match(nodes[name].op)]

    def same(layer: LayerInfo, following: LayerInfo) -> bool:
        start, stop = (rank[node_of(item.tensor.name)] for item in (layer, following))
        between = bisect_right(weighed, stop) > bisect_right(weighed, start)
        return layer.tensor.shape == following.tensor.shape and not between

    return tuple(
        layer
        for layer, following in zip(passed, [*passed[1:], None], strict=True)
        if following is None or not same(layer, following)
    )
