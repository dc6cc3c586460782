"""Blocks of a network whose layers nobody named: what has weights, and what follows it.

Networks of tutorials have operations called `Conv2D_1`, `add_1`, `MaxPool_1` and `Relu_1`, in which
a person sees the second convolution block. Blocks are counted from the images on, as far as there
is one way to go: where two ways with weights begin, nobody could say which comes second.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from cnnfeat.network.graph import (
    WEIGHED,
    FlatGraph,
    ImageInput,
    ancestors,
    consumers_of,
    descendants,
    in_order,
    node_of,
    nodes_by_name,
    tensor_of,
)
from cnnfeat.network.kernels import CONVOLUTIONS, PRODUCTS
from cnnfeat.network.layers import has_own_scope, in_loops, in_scopes, label_dependent
from cnnfeat.records import TensorInfo

_DROPOUT = re.compile(r"dropout(_\d+)?")
_SHAPES = {"Shape", "ShapeN", "Size", "Rank"}
# What may follow the weights inside a block: bias, norm, activation, pooling, and what a norm, a
# dropout or an activation of several operations ends in.
_FOLLOWING = {
    "Add", "AddV2", "BiasAdd", "BiasAddV1", "Sub", "Mul", "RealDiv", "Div", "Maximum", "Minimum",
    "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "LRN",
    "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softsign",
    "MaxPool", "MaxPoolV2", "MaxPoolWithArgmax", "AvgPool", "MaxPool3D", "AvgPool3D",
    "Select", "SelectV2", "Merge", "If", "StatelessIf", "FakeQuantWithMinMaxVars",
}  # fmt: skip
_SCALING = {"Mul", "RealDiv", "Div"}
# What hands its value on: at a block's end it is left out.
_PASSING = {
    "Identity", "StopGradient", "PreventGradient", "CheckNumerics", "EnsureShape", "Cast",
    "PlaceholderWithDefault", "Squeeze", "ExpandDims",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """A block as it stands in the graph."""

    word: str  # "conv" or "fc"
    number: int  # from 1, each word for itself
    nodes: tuple[str, ...]  # from what has weights to the block's end
    weights: tuple[str, ...]  # the tensors that hold them
    named: bool  # whether it lies in a scope of its own, which is a layer's name

    @property
    def name(self) -> str:
        """What a person would call it: "conv2"."""
        return f"{self.word}{self.number}"


@dataclass(slots=True)
class _Chain:
    """A block while it is followed."""

    word: str
    nodes: list[str]
    weights: list[str]
    noisy: set[str] = field(default_factory=set)  # nodes that a random number goes into


def find_blocks(
    graph: FlatGraph, *, images: ImageInput, infos: Mapping[str, TensorInfo]
) -> tuple[FoundBlock, ...]:
    """Find the blocks of a network, in the order they are computed.

    Parameters
    ----------
    graph : FlatGraph
        The network.
    images : ImageInput
        The input that takes the images.
    infos : mapping
        All tensors by name.
    """
    nodes = nodes_by_name(graph.graph_def)
    values = _values(graph, nodes, images=images, infos=infos)
    weighed = {name for name in values if WEIGHED.match(nodes[name].op)}
    steps = _steps(graph, nodes, values, weighed, start=node_of(images.tensor))
    counts = Counter[str]()
    blocks = []
    in_all = in_scopes(weighed)
    for chain in _chains(nodes, values, steps, _of_chance(graph, nodes)):
        counts[chain.word] += 1
        kept = _without_dropout(chain, nodes)
        named = has_own_scope(chain.nodes[0], weighed.intersection(chain.nodes), in_all)
        block = FoundBlock(chain.word, counts[chain.word], tuple(kept), tuple(chain.weights), named)
        blocks.append(block)
    return tuple(blocks)


def _values(
    graph: FlatGraph,
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    *,
    images: ImageInput,
    infos: Mapping[str, TensorInfo],
) -> set[str]:
    """The images and what is made of them: not of their shape, nor with labels, nor for a log."""
    shapes = [name for name, node in nodes.items() if node.op in _SHAPES]
    values = descendants(graph.graph_def, [images.tensor], stop=shapes)
    values -= label_dependent(graph, images, infos)
    values -= in_loops(nodes, consumers_of(nodes, set(nodes)))
    kept = {name for name in values if "Summary" not in nodes[name].op and f"{name}:0" in infos}
    return {node_of(images.tensor)} | kept


def _steps(
    graph: FlatGraph,
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    values: set[str],
    weighed: set[str],
    *,
    start: str,
) -> list[Sequence[str]]:
    """Go from the images to the last weights, whatever lies beside the way, and on from there."""
    before = ancestors(nodes, weighed, control=False) & values
    steps = list(_cut(nodes, before | {start}))
    if not steps or steps[0] != (start,):
        return []
    last = steps[-1][-1]
    if last in weighed:
        behind = descendants(graph.graph_def, [last]) & values
        steps += list(_cut(nodes, behind | {last}))[1:]
    return steps


def _cut(nodes: Mapping[str, tf.compat.v1.NodeDef], wanted: set[str]) -> Iterator[Sequence[str]]:
    """Cut a part of the graph at every node that all ways go through.

    Each such node comes as the last of those since the one before. Where a node gives its value
    to nobody a way ends: what comes later is not on all ways.
    """
    ordered = in_order(nodes, wanted)
    rank = {name: position for position, name in enumerate(ordered)}
    takers = consumers_of(nodes, wanted)
    reach = 0
    since: list[str] = []
    for position, name in enumerate(ordered):
        since.append(name)
        if reach <= position:
            yield tuple(since)
            since.clear()
        found = [rank[taker] for taker in takers.get(name, ())]
        reach = max([reach, *found]) if found else len(ordered)


def _chains(
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    values: set[str],
    steps: Sequence[Sequence[str]],
    of_chance: set[str],
) -> list[_Chain]:
    """Follow each block from its weights, up to where the numbers would be in doubt."""
    chains: list[_Chain] = []
    chain: _Chain | None = None  # the one that is not at its end
    previous = ""
    for *between, name in steps:
        node = nodes[name]
        if any(WEIGHED.match(nodes[inner].op) for inner in between):
            break
        if WEIGHED.match(node.op):
            weights = _weights(node, values)
            if weights is None:
                break
            if chain and _is_pointwise(node, after=nodes[chain.nodes[-1]]):
                chain.nodes.append(name)
                chain.weights.append(weights)
            else:
                word = "conv" if node.op in CONVOLUTIONS else "fc"
                chain = _Chain(word, [name], [weights])
                chains.append(chain)
        elif chain and _follows(node, between, nodes, values, previous):
            chain.nodes.append(name)
            if name in of_chance and _is_noisy(name, nodes, previous):
                chain.noisy.add(name)
        else:
            chain = None
        previous = name
    return chains


def _weights(node: tf.compat.v1.NodeDef, values: set[str]) -> str | None:
    """The weights that a node takes; None where it is no layer that a person would count."""
    fixed = [entry for entry in node.input if entry[0] != "^" and node_of(entry) not in values]
    if node.op not in CONVOLUTIONS | PRODUCTS or not fixed:
        return None
    return tensor_of(fixed[0])


def _is_pointwise(node: tf.compat.v1.NodeDef, *, after: tf.compat.v1.NodeDef) -> bool:
    """Whether a convolution is the second half of a separable one."""
    return after.op == "DepthwiseConv2dNative" and node.op in CONVOLUTIONS


def _follows(
    node: tf.compat.v1.NodeDef,
    between: Sequence[str],
    nodes: Mapping[str, tf.compat.v1.NodeDef],
    values: set[str],
    previous: str,
) -> bool:
    """Whether a node belongs to the block before it, and takes pixels from nowhere else."""
    inside = {previous, node.name, *between}
    sources = {node_of(entry) for name in (*between, node.name) for entry in nodes[name].input}
    return node.op in _FOLLOWING | _PASSING and (sources & values) <= inside


def _of_chance(graph: FlatGraph, nodes: Mapping[str, tf.compat.v1.NodeDef]) -> set[str]:
    """Nodes that draw random numbers, and those that depend on them."""
    drawn = {name for name, node in nodes.items() if "Random" in node.op}
    return drawn | descendants(graph.graph_def, drawn)


def _is_noisy(name: str, nodes: Mapping[str, tf.compat.v1.NodeDef], previous: str) -> bool:
    needed = ancestors(nodes, [name], stop=[tensor_of(previous)], control=False)
    return any("Random" in nodes[inner].op for inner in needed)


def _without_dropout(chain: _Chain, nodes: Mapping[str, tf.compat.v1.NodeDef]) -> list[str]:
    """Leave out what stands at a block's end and changes nothing once a network is trained.

    A dropout's own scope holds its scaling as well.
    """
    kept = list(chain.nodes)
    scopes = set[str]()
    while len(kept) > 1:
        scope = kept[-1].rpartition("/")[0]
        dropped = kept[-1] in chain.noisy or any(map(_DROPOUT.fullmatch, scope.split("/")))
        scaled = scope in scopes and nodes[kept[-1]].op in _SCALING
        if not (dropped or scaled or nodes[kept[-1]].op in _PASSING):
            break
        if dropped and scope:
            scopes.add(scope)
        kept.pop()
    return kept
