"""Frozen graphs: `.pb` and `.pbtxt`."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from cnnfeat.errors import NetworkError
from cnnfeat.network.candidates import graph_inputs, internal_input
from cnnfeat.network.flattening import (
    forward_part,
    inline_functions,
    known_part,
    take_out_constants,
)
from cnnfeat.network.graph import FlatGraph, tensor_of
from cnnfeat.network.modernising import modernise
from cnnfeat.network.protofiles import read_message
from cnnfeat.network.restoring import VARIABLES


def load_graph_def(path: Path, *, input_name: str | None = None) -> FlatGraph:
    """Load a frozen graph.

    Raises
    ------
    NetworkError
        If it is damaged, or its weights are not in it.
    """
    graph_def = read_message(path, graph_pb2.GraphDef)
    variables = [node.name for node in graph_def.node if node.op in VARIABLES]
    if variables and not any(
        node.op == "Const" and node.attr["value"].tensor.ByteSize() > 4096
        for node in graph_def.node
    ):
        raise NetworkError(
            f"{path}: a graph without its weights: {variables[0]!r} and {len(variables) - 1} more "
            f"are variables",
            hint="give the checkpoint it belongs to, or freeze it "
            "(tf.compat.v1.graph_util.convert_variables_to_constants)",
        )
    return flat_graph(graph_def, input_name=input_name)


def flat_graph(
    graph_def: tf.compat.v1.GraphDef,
    *,
    weights: dict[str, tf.Tensor] | None = None,
    owner: object = None,
    input_name: str | None = None,
) -> FlatGraph:
    """Make a graph without a signature flat, and find its inputs and ends."""
    held = {**take_out_constants(graph_def), **(weights or {})}
    part = forward_part(known_part(modernise(graph_def)))
    part = inline_functions(part, ends(part))
    inputs = tuple(item for item in graph_inputs(part) if item.name not in held)
    if input_name is not None and input_name not in {item.name for item in inputs}:
        internal = internal_input(part, input_name)
        inputs += (internal,) if internal is not None else ()
    return FlatGraph(
        graph_def=part,
        weights=held,
        inputs=inputs,
        outputs=tuple(tensor_of(name) for name in ends(part)),
        owner=owner,
        signed=False,
    )


def ends(graph_def: tf.compat.v1.GraphDef) -> list[str]:
    """Names of the nodes whose outputs nobody takes."""
    taken = {
        entry.removeprefix("^").partition(":")[0] for node in graph_def.node for entry in node.input
    }
    return [node.name for node in graph_def.node if node.name not in taken]
