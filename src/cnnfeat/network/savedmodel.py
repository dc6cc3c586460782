"""SavedModels, of TensorFlow 1 and 2, of Keras 2 and 3: read as data, never loaded as programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from cnnfeat.errors import NetworkError, near_names
from cnnfeat.network.candidates import graph_inputs, internal_input
from cnnfeat.network.flattening import (
    CALLS,
    forward_part,
    inline_functions,
    known_part,
    take_out_constants,
    without,
)
from cnnfeat.network.graph import FlatGraph, GraphInput, ancestors, nodes_by_name
from cnnfeat.network.graphdef import ends
from cnnfeat.network.inputs import can_take_images
from cnnfeat.network.modernising import modernise
from cnnfeat.network.modules import call_module
from cnnfeat.network.protofiles import read_message
from cnnfeat.network.restoring import (
    Checkpoint,
    read_variables,
    restored_entries,
    take_out_variables,
)

Signature: TypeAlias = meta_graph_pb2.SignatureDef
_INTERNAL = {"__saved_model_init_op", "__saved_model_train_op"}


def load_saved_model(
    path: Path, *, signature: str | None = None, input_name: str | None = None
) -> FlatGraph:
    """Load a SavedModel.

    Parameters
    ----------
    path : Path
        A folder with `saved_model.pb` or `saved_model.pbtxt` in it, or that file.
    signature : str, optional
        Which signature; needed where several could take images.
    input_name : str, optional
        An input, or a tensor inside the graph to feed instead.

    Raises
    ------
    NetworkError
        If it is damaged, or no signature fits.
    """
    folder = path if path.is_dir() else path.parent
    meta = _meta_graph(path)
    prefix = folder / "variables" / "variables"
    checkpoint = Checkpoint(prefix) if prefix.with_suffix(".index").is_file() else None
    if signature is None and not set(meta.signature_def) - _INTERNAL:
        chosen, entries = call_module(meta, checkpoint, folder)
    else:
        chosen = choose_signature(meta.signature_def, signature, folder)
        entries = restored_entries(meta.graph_def, meta.saver_def.restore_op_name)
    outputs = [info.name for info in chosen.outputs.values() if info.name]
    graph_def = forward_part(known_part(modernise(_served(meta.graph_def, outputs))))
    graph_def = inline_functions(graph_def, [*outputs, *ends(graph_def)])
    weights = take_out_constants(graph_def)
    values, owners = take_out_variables(
        graph_def, checkpoint, entries, wanted=read_variables(graph_def)
    )
    inputs = _inputs(chosen, graph_def, input_name)
    return FlatGraph(
        graph_def=graph_def,
        weights={**weights, **values},
        inputs=inputs,
        outputs=tuple(outputs),
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


def choose_signature(
    signatures: Mapping[str, Signature], asked: str | None, folder: Path
) -> Signature:
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


def _takes_images(signature: Signature) -> bool:
    return any(can_take_images(item) for item in _signature_inputs(signature))


def _fed(signature: Signature) -> frozenset[str]:
    return frozenset(info.name for info in signature.inputs.values())


def _signature_inputs(signature: Signature) -> tuple[GraphInput, ...]:
    return tuple(
        GraphInput(
            name=key,
            tensor=info.name,
            dtype=tf.dtypes.as_dtype(info.dtype),
            shape=None
            if info.tensor_shape.unknown_rank
            else tuple(None if axis.size < 0 else axis.size for axis in info.tensor_shape.dim),
        )
        for key, info in sorted(signature.inputs.items())
        if info.name
    )


def _inputs(
    signature: Signature, graph_def: tf.compat.v1.GraphDef, asked: str | None
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
