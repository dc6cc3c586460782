"""TensorFlow 1 checkpoints: `.meta` with `.index` and `.data-*`, or the folder they lie in."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf import text_format
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.training import checkpoint_state_pb2

from cnnfeat.errors import NetworkError
from cnnfeat.network.flattening import forward_part, known_part
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.graphdef import flat_graph
from cnnfeat.network.protofiles import read_message
from cnnfeat.network.restoring import (
    Checkpoint,
    read_variables,
    restored_entries,
    take_out_variables,
)

_PARTS = re.compile(r"\.(meta|index|data-\d{5}-of-\d{5})$")


def load_checkpoint(path: Path, *, input_name: str | None = None) -> FlatGraph:
    """Load a checkpoint and the graph beside it.

    Parameters
    ----------
    path : Path
        One of its files, what their names begin with, or the folder.
    input_name : str, optional
        An input, or a tensor inside the graph to feed instead.

    Raises
    ------
    NetworkError
        If a part is missing or damaged.
    """
    prefix = checkpoint_prefix(path)
    checkpoint = Checkpoint(prefix)
    meta = _meta_graph(prefix)
    entries = restored_entries(meta.graph_def, meta.saver_def.restore_op_name)
    graph_def = forward_part(known_part(meta.graph_def))
    weights, owners = take_out_variables(
        graph_def, checkpoint, entries, wanted=read_variables(graph_def)
    )
    return flat_graph(graph_def, weights=weights, owner=owners, input_name=input_name)


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
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return ""
    state = checkpoint_state_pb2.CheckpointState()
    try:
        text_format.Parse(path.read_text("utf-8"), state, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError):
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
