"""SavedModels without a signature, as many modules of TF Hub are: their functions, called.

Such a file holds a tree of objects; functions hang on it, and each says which variables it uses.
The call is written into a graph here, so that the rest goes as with a signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import (
    meta_graph_pb2,
    saved_object_graph_pb2,
    trackable_object_graph_pb2,
)

from cnnfeat.errors import NetworkError
from cnnfeat.network.graph import GraphInput
from cnnfeat.network.inputs import can_take_images
from cnnfeat.network.restoring import Checkpoint, Entry

_CALL = "StatefulPartitionedCall"
_PREFERRED = ("__call__", "call", "predict", "inference", "serve")


def call_module(
    meta: meta_graph_pb2.MetaGraphDef, checkpoint: Checkpoint | None, folder: Path
) -> tuple[meta_graph_pb2.SignatureDef, dict[str, Entry]]:
    """Add a call of the module's function to its graph, in place.

    Returns
    -------
    signature : SignatureDef
        The call's inputs and outputs.
    entries : dict
        Where the values of the variables it uses lie.

    Raises
    ------
    NetworkError
        If no function takes images.
    """
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    objects = meta.object_graph_def
    for name in _concrete_functions(objects):
        bound = objects.concrete_functions[name].bound_inputs
        inputs = function_inputs(functions[name], len(bound)) if name in functions else ()
        if any(can_take_images(item) for item in inputs):
            entries = _write_call(meta, functions[name], inputs, bound, checkpoint)
            return _signature(inputs, functions[name]), entries
    raise NetworkError(
        f"{folder}: a SavedModel without signatures or functions that take images",
        hint="save it with signatures: tf.saved_model.save(module, folder, signatures=...)",
    )


def _concrete_functions(
    objects: saved_object_graph_pb2.SavedObjectGraph,
) -> Iterator[str]:
    """Functions of the root object, the likeliest first; those not for training first."""
    if not objects.nodes:
        return
    children = {
        child.local_name: objects.nodes[child.node_id] for child in objects.nodes[0].children
    }
    order = [name for name in _PREFERRED if name in children]
    order += sorted(name for name in children if name not in _PREFERRED)
    for name in order:
        node = children[name]
        concrete = list(node.function.concrete_functions)
        if node.WhichOneof("kind") == "bare_concrete_function":
            concrete = [node.bare_concrete_function.concrete_function_name]
        yield from sorted(concrete, key=lambda item: _is_for_training(objects, item))


def _is_for_training(objects: saved_object_graph_pb2.SavedObjectGraph, name: str) -> bool:
    return "bool_value: true" in str(objects.concrete_functions[name].canonicalized_input_signature)


def function_inputs(function: function_pb2.FunctionDef, n_bound: int) -> tuple[GraphInput, ...]:
    """What a function takes from its caller, without the variables it is bound to."""
    arguments = function.signature.input_arg
    inputs = []
    for index, argument in enumerate(arguments[: len(arguments) - n_bound]):
        attributes = function.arg_attr[index].attr if index in function.arg_attr else {}
        name = argument.name
        if "_user_specified_name" in attributes:
            name = attributes["_user_specified_name"].s.decode() or name
        shape = None
        if "_output_shapes" in attributes and attributes["_output_shapes"].list.shape:
            proto = attributes["_output_shapes"].list.shape[0]
            if not proto.unknown_rank:
                shape = tuple(None if axis.size < 0 else axis.size for axis in proto.dim)
        node = f"{argument.name}_{index}_fed"
        inputs.append(GraphInput(name, f"{node}:0", tf.dtypes.as_dtype(argument.type), shape))
    return tuple(inputs)


def _write_call(
    meta: meta_graph_pb2.MetaGraphDef,
    function: function_pb2.FunctionDef,
    inputs: tuple[GraphInput, ...],
    bound: list[int],
    checkpoint: Checkpoint | None,
) -> dict[str, Entry]:
    graph_def = meta.graph_def
    del graph_def.node[_calls_from(graph_def) :]
    for item in inputs:
        node = graph_def.node.add(name=item.tensor[:-2], op="Placeholder")
        node.attr["dtype"].type = item.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(item.shape).as_proto())
    keys = _checkpoint_keys(meta.object_graph_def, checkpoint)
    entries: dict[str, Entry] = {}
    sources = [item.tensor[:-2] for item in inputs]
    for node_id in bound:
        sources.append(_bound_source(meta, node_id, entries, keys))
    call = graph_def.node.add(name=_CALL, op=_CALL, input=sources)
    call.attr["f"].func.name = function.signature.name
    call.attr["Tin"].list.type.extend(item.type for item in function.signature.input_arg)
    call.attr["Tout"].list.type.extend(item.type for item in function.signature.output_arg)
    return entries


def _calls_from(graph_def: tf.compat.v1.GraphDef) -> int:
    """Where the calls that save and restore begin; they are not needed, and stand last."""
    for index, node in enumerate(graph_def.node):
        if node.op == _CALL:
            return index
    return len(graph_def.node)


def _bound_source(
    meta: meta_graph_pb2.MetaGraphDef,
    node_id: int,
    entries: dict[str, Entry],
    keys: Mapping[int, str],
) -> str:
    """The graph's node for an object a function is bound to; made where there is none."""
    item = meta.object_graph_def.nodes[node_id]
    if item.WhichOneof("kind") == "constant":
        return str(item.constant.operation)
    name = f"{item.variable.name or 'object'}_{node_id}_bound"
    if all(node.name != name for node in meta.graph_def.node):
        variable = item.WhichOneof("kind") == "variable"
        node = meta.graph_def.node.add(name=name, op="VarHandleOp" if variable else "Placeholder")
        node.attr["dtype"].type = item.variable.dtype if variable else tf.resource.as_datatype_enum
        if variable:
            node.attr["shape"].shape.CopyFrom(item.variable.shape)
            entries[name] = Entry(keys.get(node_id, ""))
    return name


def _checkpoint_keys(
    objects: saved_object_graph_pb2.SavedObjectGraph, checkpoint: Checkpoint | None
) -> dict[int, str]:
    """Which entry of the checkpoint belongs to which object: both are the same tree."""
    if checkpoint is None:
        return {}
    tree = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        checkpoint.text("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    keys: dict[int, str] = {}
    waiting, seen = [(0, 0)], {0}
    while waiting:
        here, there = waiting.pop()
        for attribute in tree.nodes[there].attributes:
            keys[here] = attribute.checkpoint_key
        stored = {child.local_name: child.node_id for child in tree.nodes[there].children}
        for child in objects.nodes[here].children:
            if child.local_name in stored and child.node_id not in seen:
                seen.add(child.node_id)
                waiting.append((child.node_id, stored[child.local_name]))
    return keys


def _signature(
    inputs: tuple[GraphInput, ...], function: function_pb2.FunctionDef
) -> meta_graph_pb2.SignatureDef:
    signature = meta_graph_pb2.SignatureDef()
    for item in inputs:
        info = signature.inputs[item.name]
        info.name, info.dtype = item.tensor, item.dtype.as_datatype_enum
        info.tensor_shape.CopyFrom(tf.TensorShape(item.shape).as_proto())
    for index, output in enumerate(function.signature.output_arg):
        signature.outputs[output.name].name = f"{_CALL}:{index}"
    return signature
