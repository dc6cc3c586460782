"""The order in which a graph computes, and the trunk that every path goes through."""

from __future__ import annotations

import re
from collections.abc import Mapping

import tensorflow as tf

from cnnfeat.network.graph import FlatGraph, ancestors, node_of
from cnnfeat.records import LayerInfo

WEIGHED = re.compile(r"(\w*Conv|\w*MatMul|Einsum|\w*While|PartitionedCall)")


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


def trunk(
    graph: FlatGraph, dependent: set[str], layers: tuple[LayerInfo, ...]
) -> tuple[LayerInfo, ...]:
    """Choose the layers that every path from the images to the outputs goes through.

    Of a convolution, its norm and its ReLU the last is kept.
    """
    nodes = {node.name: node for node in graph.graph_def.node}
    forward = ancestors(nodes, graph.outputs, control=False) & dependent
    ordered = in_order(nodes, forward)
    rank = {name: position for position, name in enumerate(ordered)}
    consumers = consumers_of(nodes, forward)
    shapes = {"Shape", "ShapeN", "Size", "Rank"}
    cut: set[str] = set()
    reach = 0
    for position, name in enumerate(ordered):
        if reach <= position:
            cut.add(name)
        takers = [rank[taker] for taker in consumers.get(name, ()) if nodes[taker].op not in shapes]
        reach = max([reach, *takers])
    passed = [layer for layer in layers if node_of(layer.tensor.name) in cut and not layer.path]
    weighed = [position for position, name in enumerate(ordered) if WEIGHED.match(nodes[name].op)]

    def same(layer: LayerInfo, following: LayerInfo) -> bool:
        start, stop = (rank[node_of(item.tensor.name)] for item in (layer, following))
        between = any(start < position <= stop for position in weighed)
        return layer.tensor.shape == following.tensor.shape and not between

    return tuple(
        layer
        for layer, following in zip(passed, [*passed[1:], None], strict=True)
        if following is None or not same(layer, following)
    )
