"""Layer names where the file has no layers: read from the scopes of the graph's nodes."""

from __future__ import annotations

from cnnfeat.network.graph import FlatGraph, NamedTensor
from cnnfeat.network.inputs import ImageInput


def scope_layers(
    graph: FlatGraph, dependent: set[str], images: ImageInput
) -> tuple[NamedTensor, ...]:
    """Name the layers of a graph by the scopes of its nodes."""
    return tuple(
        NamedTensor(node.name, node.op, f"{node.name}:0")
        for node in graph.graph_def.node
        if node.name in dependent
    )
