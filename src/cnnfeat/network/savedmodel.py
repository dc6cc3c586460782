"""SavedModels, of TensorFlow 1 and 2, of Keras 2 and 3: read as data, never loaded as programs.

Many modules of TF Hub have no signature. Such a file holds a tree of objects; functions hang on
it, and each says which variables it uses. A call is written into the graph here, so that the rest
goes as with a signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import (
    meta_graph_pb2,
    saved_model_pb2,
    saved_object_graph_pb2,
    trackable_object_graph_pb2,
)

from cnnfeat.errors import NetworkError, near_names
from cnnfeat.network.feeding import can_take_images, graph_inputs, internal_input
from cnnfeat.network.flattening import (
    CALLS,
    forward_part,
    inline_functions,
    known_part,
    modernise,
    take_out_constants,
    without,
)
from cnnfeat.network.formats import read_message
from cnnfeat.network.graph import (
    FlatGraph,
    GraphInput,
    ancestors,
    ends,
    nodes_by_name,
    shape_of,
)
from cnnfeat.network.keras_augmentation import at_inference
from cnnfeat.network.soundness import check_computed_constants, check_graph
from cnnfeat.network.weights import (
    Checkpoint,
    Entry,
    missing_weights,
    read_variables,
    restored_entries,
    take_out_variables,
)
from cnnfeat.options import ReadOptions

_Signature: TypeAlias = meta_graph_pb2.SignatureDef
_INTERNAL = {"__saved_model_init_op", "__saved_model_train_op"}
_CALL = "StatefulPartitionedCall"
_PREFERRED = ("__call__", "call", "predict", "inference", "serve")


def load_saved_model(path: Path, options: ReadOptions) -> FlatGraph:
    """Load a SavedModel.

    Parameters
    ----------
    path : Path
        A folder with `saved_model.pb` or `saved_model.pbtxt` in it, or that file.
    options : ReadOptions
        Which signature, needed where several could take images; an input, or a tensor inside the
        graph to feed instead.

    Raises
    ------
    NetworkError
        If it is damaged, or no signature fits.
    """
    folder = path if path.is_dir() else path.parent
    meta = _meta_graph(path)
    check_graph(meta.graph_def, path=str(path))
    prefix = folder / "variables" / "variables"
    checkpoint = Checkpoint(prefix) if prefix.with_suffix(".index").is_file() else None
    if options.signature is None and not set(meta.signature_def) - _INTERNAL:
        chosen, entries = _call_module(meta, checkpoint, folder)
    else:
        chosen = _choose_signature(meta.signature_def, options.signature, folder)
        entries = restored_entries(meta.graph_def, meta.saver_def.restore_op_name)
    outputs = [info.name for info in chosen.outputs.values() if info.name]
    graph_def = forward_part(known_part(modernise(_served(meta.graph_def, outputs))))
    graph_def = forward_part(inline_functions(graph_def, [*outputs, *ends(graph_def)]))
    check_computed_constants(graph_def, path=str(path))
    graph_def = at_inference(graph_def)
    weights = take_out_constants(graph_def)
    wanted = read_variables(graph_def)
    if wanted and checkpoint is None:
        raise missing_weights(prefix.with_suffix(".index"))
    values, owners = take_out_variables(graph_def, checkpoint, entries, wanted=wanted)
    inputs = _inputs(chosen, graph_def, options.input)
    return FlatGraph(
        graph_def=graph_def,
        weights={**weights, **values},
        inputs=inputs,
        outputs=tuple(outputs),
        signature=next((n for n, one in meta.signature_def.items() if one is chosen), None),
        owner=owners,
    )


def _meta_graph(path: Path) -> meta_graph_pb2.MetaGraphDef:
    if path.is_dir():
        binary, text = path / "saved_model.pb", path / "saved_model.pbtxt"
        path = binary if binary.is_file() else text
    metas = read_message(path, saved_model_pb2.SavedModel).meta_graphs
    if not metas:
        raise NetworkError(f"{path}: a SavedModel without a graph")

    def rank(meta: meta_graph_pb2.MetaGraphDef) -> tuple[bool, bool, int]:
        tags = set(meta.meta_info_def.tags)
        return ("serve" not in tags, "train" in tags, len(tags))

    return min(metas, key=rank)


def _choose_signature(
    signatures: Mapping[str, _Signature], asked: str | None, folder: Path
) -> _Signature:
    """Choose what to serve: what is asked, else what takes images.

    Raises
    ------
    NetworkError
        If it isn't there, or several could be meant.
    """
    known = {name: signatures[name] for name in sorted(signatures) if name not in _INTERNAL}
    if asked is not None:
        if asked not in known:
            raise NetworkError(
                f"{folder} has no signature {asked!r}; it has {', '.join(known) or 'none'}",
                hint=near_names(asked, known),
            )
        return known[asked]
    fitting = {name: value for name, value in known.items() if _takes_images(value)}
    chosen = fitting or known
    if "serving_default" in chosen:
        return chosen["serving_default"]
    if len(chosen) == 1 or len({_fed(value) for value in chosen.values()}) == 1:
        return next(iter(chosen.values()))
    raise NetworkError(
        f"{folder} has several signatures that could take images: {', '.join(chosen)}",
        hint=f"say which with --signature, such as --signature {next(iter(chosen))}",
    )


def _takes_images(signature: _Signature) -> bool:
    return any(can_take_images(item) for item in _signature_inputs(signature))


def _fed(signature: _Signature) -> frozenset[str]:
    return frozenset(info.name for info in signature.inputs.values())


def _signature_inputs(signature: _Signature) -> tuple[GraphInput, ...]:
    return tuple(
        GraphInput(
            name=key,
            tensor=info.name,
            dtype=tf.dtypes.as_dtype(info.dtype),
            shape=shape_of(tf.TensorShape(info.tensor_shape)),
        )
        for key, info in sorted(signature.inputs.items())
        if info.name
    )


def _inputs(
    signature: _Signature, graph_def: tf.compat.v1.GraphDef, asked: str | None
) -> tuple[GraphInput, ...]:
    inputs = _signature_inputs(signature)
    names = {item.name for item in inputs} | {item.tensor for item in inputs}
    if asked is not None and asked not in names and f"{asked}:0" not in names:
        internal = internal_input(graph_def, asked)
        return (*inputs, internal) if internal is not None else inputs
    if any(can_take_images(item) for item in inputs):
        return inputs
    return inputs + graph_inputs(graph_def)


def _served(graph_def: tf.compat.v1.GraphDef, outputs: list[str]) -> tf.compat.v1.GraphDef:
    """Leave out calls that belong to other signatures, to saving and to restoring."""
    needed = ancestors(nodes_by_name(graph_def), outputs)
    functions = {function.signature.name for function in graph_def.library.function}
    others = {
        node.name
        for node in graph_def.node
        if (node.op in CALLS or node.op in functions) and node.name not in needed
    }
    return without(graph_def, others)


def _call_module(
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
        inputs = _function_inputs(functions[name], len(bound)) if name in functions else ()
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


def _function_inputs(function: function_pb2.FunctionDef, n_bound: int) -> tuple[GraphInput, ...]:
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
            shape = shape_of(tf.TensorShape(attributes["_output_shapes"].list.shape[0]))
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
    for node_id in dict.fromkeys(bound):
        _make_bound_source(meta, node_id, entries, keys)
    sources += [_bound_source(meta, node_id) for node_id in bound]
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


def _bound_source(meta: meta_graph_pb2.MetaGraphDef, node_id: int) -> str:
    """Name the graph's node for an object a function is bound to."""
    item = meta.object_graph_def.nodes[node_id]
    if item.WhichOneof("kind") == "constant":
        return str(item.constant.operation)
    return f"{item.variable.name or 'object'}_{node_id}_bound"


def _make_bound_source(
    meta: meta_graph_pb2.MetaGraphDef,
    node_id: int,
    entries: dict[str, Entry],
    keys: Mapping[int, str],
) -> None:
    """Make that node; constants have one."""
    item, name = meta.object_graph_def.nodes[node_id], _bound_source(meta, node_id)
    kind = item.WhichOneof("kind")
    if kind == "constant":
        return
    variable = kind == "variable"
    node = meta.graph_def.node.add(name=name, op="VarHandleOp" if variable else "Placeholder")
    node.attr["dtype"].type = item.variable.dtype if variable else tf.resource.as_datatype_enum
    if variable:
        node.attr["shape"].shape.CopyFrom(item.variable.shape)
        entries[name] = Entry(keys.get(node_id, ""))


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
