"""Networks of TensorFlow 1: frozen graphs, `.pb` and `.pbtxt`, and checkpoints.

A checkpoint is `.index` and `.data-*`, with its graph beside it in a `.meta` file.
"""

from __future__ import annotations

import re
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.training import checkpoint_state_pb2

from cnnfeat.errors import NetworkError
from cnnfeat.network.feeding import graph_inputs, internal_input
from cnnfeat.network.flattening import (
    forward_part,
    inline_functions,
    known_part,
    modernise,
    take_out_constants,
)
from cnnfeat.network.formats import read_message
from cnnfeat.network.graph import FlatGraph, ends, tensor_of
from cnnfeat.network.keras_augmentation import at_inference
from cnnfeat.network.soundness import check_computed_constants, check_graph
from cnnfeat.network.weights import (
    VARIABLES,
    Checkpoint,
    read_variables,
    restored_entries,
    take_out_variables,
)
from cnnfeat.options import ReadOptions
from cnnfeat.regular import open_regular

_LARGEST_STATE = 1 << 20  # bytes of the file `checkpoint`
_PARTS = re.compile(r"\.(meta|index|data-\d{5}-of-\d{5})$")


def load_graph_def(path: Path, options: ReadOptions) -> FlatGraph:
    """Load a frozen graph.

    Raises
    ------
    NetworkError
        If it is damaged, or its weights are not in it.
    """
    graph_def = read_message(path, graph_pb2.GraphDef)
    check_graph(graph_def, path=str(path))
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
    return flat_graph(graph_def, options.input, path=str(path))


def flat_graph(
    graph_def: tf.compat.v1.GraphDef,
    input_name: str | None,
    *,
    path: str,
    weights: dict[str, tf.Tensor] | None = None,
    owner: object = None,
) -> FlatGraph:
    """Make a graph without a signature flat, and find its inputs and ends."""
    held = {**take_out_constants(graph_def), **(weights or {})}
    part = forward_part(known_part(modernise(graph_def)))
    part = forward_part(inline_functions(part, ends(part)))
    check_computed_constants(part, path=path)
    part = at_inference(part)
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


def load_checkpoint(path: Path, options: ReadOptions) -> FlatGraph:
    """Load a checkpoint and the graph beside it.

    Parameters
    ----------
    path : Path
        One of its files, what their names begin with, or the folder.
    options : ReadOptions
        An input, or a tensor inside the graph to feed instead.

    Raises
    ------
    NetworkError
        If a part is missing or damaged.
    """
    prefix = checkpoint_prefix(path)
    checkpoint = Checkpoint(prefix)
    meta = _meta_graph(prefix)
    check_graph(meta.graph_def, path=str(prefix))
    entries = restored_entries(meta.graph_def, meta.saver_def.restore_op_name)
    graph_def = forward_part(known_part(meta.graph_def))
    weights, owners = take_out_variables(
        graph_def, checkpoint, entries, wanted=read_variables(graph_def)
    )
    return flat_graph(graph_def, options.input, path=str(path), weights=weights, owner=owners)


def checkpoint_prefix(path: Path) -> Path:
    """What the names of a checkpoint's files begin with.

    Raises
    ------
    NetworkError
        If there is no checkpoint.
    """
    if not path.is_dir():
        prefix = path.with_name(_PARTS.sub("", path.name))
        if _exists(prefix) or not path.is_file():
            return prefix
        indexes = list(path.parent.glob("*.index"))  # named otherwise than their graph
        return indexes[0].with_suffix("") if len(indexes) == 1 else prefix
    stated = _stated(path / "checkpoint")
    found = sorted(
        {_PARTS.sub("", file.name) for file in path.iterdir() if file.name.endswith(".meta")},
        key=_numbered,
    )
    if stated and _exists(path / stated):
        return path / stated
    if not found:
        raise NetworkError(f"{path}: a folder with no checkpoint whose graph (.meta) is there")
    whole = [name for name in found if _exists(path / name)]
    weights = sorted({_PARTS.sub("", file.name) for file in path.glob("*.index")}, key=_numbered)
    return path / (whole or weights or found)[-1]


def _numbered(name: str) -> list[tuple[bool, int, str]]:
    """Sort `model.ckpt-1000` after `model.ckpt-200`."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _only_graph(folder: Path) -> Path | None:
    """The one graph of a folder, where it goes by another name than the weights."""
    graphs = list(folder.glob("*.meta"))
    return graphs[0] if len(graphs) == 1 else None


def _stated(path: Path) -> str:
    """The newest checkpoint as the file `checkpoint` names it, without its folder."""
    state = checkpoint_state_pb2.CheckpointState()
    try:
        with open_regular(path) as file:
            text = file.read(_LARGEST_STATE).decode("utf-8")
        text_format.Parse(text, state, allow_unknown_field=True)
    except (OSError, text_format.ParseError, UnicodeDecodeError):
        return ""
    return re.split(r"[\\/]", str(state.model_checkpoint_path))[-1]


def _exists(prefix: Path) -> bool:
    return prefix.with_name(f"{prefix.name}.index").is_file() or prefix.is_file()


def _meta_graph(prefix: Path) -> meta_graph_pb2.MetaGraphDef:
    path = prefix.with_name(f"{prefix.name}.meta")
    if not path.is_file():
        path = _only_graph(prefix.parent) or path
    if path.is_file():
        return read_message(path, meta_graph_pb2.MetaGraphDef)
    for name in ("graph.pbtxt", "graph.pb"):
        beside = prefix.with_name(name)
        if beside.is_file():
            graph_def = read_message(beside, graph_pb2.GraphDef)
            return meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    raise NetworkError(
        f"{prefix}: weights without their graph: there is no {path.name}",
        hint="in TensorFlow 1, tf.train.Saver().save writes the .meta file; in Keras, save the "
        "whole model (model.save) instead of its weights",
    )
