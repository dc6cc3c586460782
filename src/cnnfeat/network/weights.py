"""Weights out of a checkpoint, without running the graph that would restore them.

What belongs to which variable is read from the restoring part of the graph; the values are read
from the checkpoint's own files. Nothing of the graph runs. Values that a program has at hand take
the same way.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.flattening import inline_functions, make_placeholder, needed_part
from cnnfeat.network.formats import opened, refuse_pointer
from cnnfeat.network.graph import FlatGraph, constant_values, node_of, nodes_by_name
from cnnfeat.network.telling import told
from cnnfeat.regular import IrregularError, require_regular

_LOG = logging.getLogger("cnnfeat")
VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
_ASSIGNMENTS = {"AssignVariableOp", "Assign"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a variable's value lies in a checkpoint."""

    key: str
    piece: str = ""  # of a partitioned variable: "100 20 0,50:-"


def restored_entries(graph_def: tf.compat.v1.GraphDef, restore_op: str) -> dict[str, Entry]:
    """Read which variable node gets which entry of the checkpoint."""
    if not restore_op:
        return {}
    node = node_of(restore_op)
    part = inline_functions(needed_part(graph_def, [node]), [node])
    nodes = nodes_by_name(part)
    entries = {}
    for assignment in part.node:
        if assignment.op in _ASSIGNMENTS and len(assignment.input) >= 2:
            variable = _source(nodes, assignment.input[0])
            value = _source(nodes, assignment.input[1])
            entry = _entry(nodes, value)
            if entry is not None:
                entries[node_of(variable)] = entry
    return entries


def _source(nodes: Mapping[str, tf.compat.v1.NodeDef], entry: str) -> str:
    """Follow identities back to where a tensor comes from."""
    while (node := nodes.get(node_of(entry))) and node.op in ("Identity", "Cast", "Reshape"):
        entry = node.input[0]
    return entry


def _entry(nodes: Mapping[str, tf.compat.v1.NodeDef], tensor: str) -> Entry | None:
    node = nodes.get(node_of(tensor))
    if node is None or node.op not in ("RestoreV2", "Restore", "RestoreSlice"):
        return None
    index = int(tensor.partition(":")[2] or 0)
    keys = _strings(nodes, node.input[1])
    if index >= len(keys):
        return None
    pieces = _strings(nodes, node.input[2]) if len(node.input) > 2 else []
    return Entry(keys[index], pieces[index] if index < len(pieces) else "")


def _strings(nodes: Mapping[str, tf.compat.v1.NodeDef], entry: str) -> list[str]:
    node = nodes.get(node_of(entry))
    if node is None or node.op != "Const":
        return []
    return [text.decode() for text in tf.make_ndarray(node.attr["value"].tensor).ravel()]


class Checkpoint:
    """The files of one checkpoint, opened for reading."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        _check_there(prefix)
        try:
            self._reader = tf.train.load_checkpoint(str(prefix))
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise NetworkError(f"{prefix}: its weights can't be read: {told(error)}") from error
        self.shapes: Mapping[str, list[int]] = self._reader.get_variable_to_shape_map()
        self.dtypes: Mapping[str, tf.DType] = self._reader.get_variable_to_dtype_map()
        self._check_size()

    def _check_size(self) -> None:
        files = self.prefix.parent.glob(f"{_escape(self.prefix.name)}*")
        stored = sum(path.stat().st_size for path in files)
        for key, shape in self.shapes.items():
            declared = math.prod(shape) * max(self.dtypes[key].size or 1, 1)
            if declared > 64 * stored + (1 << 20):
                raise UntrustedModelError(
                    f"{self.prefix}: {key!r} declares the shape {tuple(shape)}, {declared:,} "
                    f"bytes; its files hold {stored:,}",
                    hint="the file is damaged, or made to fill the memory",
                )

    def read(self, entry: Entry) -> tf.Tensor:
        """Read one value, or the piece of it that belongs to a part of a variable."""
        try:
            value = self._reader.get_tensor(entry.key)
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise NetworkError(
                f"{self.prefix}: {entry.key!r} can't be read: {told(error)}"
            ) from error
        return tf.constant(value[_slices(entry.piece)] if entry.piece.strip() else value)

    def text(self, key: str) -> bytes:
        """Read one entry of bytes."""
        return bytes(self._reader.get_tensor(key))


def _check_there(prefix: Path) -> None:
    """Refuse a checkpoint of which a file is missing, or no more than a pointer to it."""
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        return  # of the first version, one file; what is missing there TensorFlow says
    shards = sorted(prefix.parent.glob(f"{_escape(prefix.name)}.data-*-of-*"))
    total = int(shards[0].name.rsplit("-", 1)[1]) if shards else 1
    names = [f"{prefix.name}.data-{shard:05}-of-{total:05}" for shard in range(total)]
    for path in (index, *(prefix.with_name(name) for name in names)):
        if not path.is_file():
            raise missing_weights(path)
        with opened(path) as file:
            refuse_pointer(path, file.read(64))


def missing_weights(path: Path) -> NetworkError:
    """Make the error for a file of weights that is not there, or is no file."""
    with suppress(FileNotFoundError):
        try:
            require_regular(path)
        except IrregularError as error:
            return NetworkError(f"{path}: weights can't be read: {error}")
    return NetworkError(
        f"weights are missing: there is no {path}",
        hint="copy the whole folder, with variables/ and all that is in it",
    )


class HeldValues:
    """Values of variables by name, as a program has them; read as a checkpoint is."""

    def __init__(self, values: Mapping[str, NDArray[np.generic]]) -> None:
        self.values = {name: np.array(value) for name, value in values.items()}  # copies
        self.shapes: Mapping[str, list[int]] = {
            name: list(value.shape) for name, value in self.values.items()
        }

    def read(self, entry: Entry) -> tf.Tensor:
        """Give one value."""
        return tf.constant(self.values[entry.key])


def _escape(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _slices(piece: str) -> tuple[slice, ...]:
    """Read "100 20 0,50:-": lengths of the whole, then "start,length" or "-" for each axis."""
    last = piece.rsplit(maxsplit=1)[-1]
    if "," not in last and "-" not in last:
        return (slice(None),)
    slices = []
    for axis in last.split(":"):
        if axis == "-":
            slices.append(slice(None))
        else:
            start, length = (int(number) for number in axis.split(","))
            slices.append(slice(start, start + length))
    return tuple(slices)


def take_out_variables(
    graph_def: tf.compat.v1.GraphDef,
    checkpoint: Checkpoint | HeldValues | None,
    entries: Mapping[str, Entry],
    *,
    wanted: Iterable[str],
) -> tuple[dict[str, tf.Tensor], list[tf.Variable]]:
    """Turn variables of a graph into placeholders, in place.

    A variable that the checkpoint doesn't know stays a variable node.

    Returns
    -------
    weights : dict
        What the placeholders hold: values, or handles of variables.
    owners : list of tf.Variable
        What the handles need to stay alive.
    """
    weights: dict[str, tf.Tensor] = {}
    owners: list[tf.Variable] = []
    needed = set(wanted)
    shared: dict[str, tf.Tensor] = {}
    for node in graph_def.node:
        if node.op not in VARIABLES or node.name not in needed or checkpoint is None:
            continue
        entry = entries.get(node.name) or _by_name(node, checkpoint)
        if entry is None or entry.key not in checkpoint.shapes:
            continue
        value = shared.get(f"{node.op}/{entry}")
        if value is None:
            value = checkpoint.read(entry)
            dtype = tf.dtypes.as_dtype(node.attr["dtype"].type).base_dtype
            value = value if value.dtype == dtype else tf.cast(value, dtype)
            if node.op == "VarHandleOp":
                owners.append(tf.Variable(value, trainable=False))
                value = owners[-1].handle
            shared[f"{node.op}/{entry}"] = value
        weights[node.name] = value
        shape = None if node.op == "VarHandleOp" else value.shape
        make_placeholder(node, value.dtype, shape)
    return weights, owners


def check_restored(needed: Iterable[tf.compat.v1.NodeDef], *, path: str) -> None:
    """Refuse to go on with a variable that has no value.

    Raises
    ------
    NetworkError
        Naming the first.
    """
    empty = [node.name for node in needed if node.op in VARIABLES]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise NetworkError(
            f"{path}: the variable {empty[0]!r}{more} has no value",
            hint="were its variables initialised, or restored, before it was saved or given here?",
        )


def read_variables(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """Names of variable nodes whose values go into something other than training and saving."""
    slots = re.compile(r"(^|/)(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|beta[12]_power)[^/]*$")
    readers: dict[str, list[tf.compat.v1.NodeDef]] = {}
    for node in graph_def.node:
        for entry in node.input:
            if entry[0] != "^":
                readers.setdefault(node_of(entry), []).append(node)
    return {
        node.name
        for node in graph_def.node
        if node.op in VARIABLES
        and not slots.search(node.name)
        and any(_uses(reader, readers) for reader in readers.get(node.name, ()))
    }


def _uses(reader: tf.compat.v1.NodeDef, readers: Mapping[str, list[tf.compat.v1.NodeDef]]) -> bool:
    if reader.op in _ASSIGNMENTS or reader.op.startswith(("Save", "Apply", "ResourceApply")):
        return False
    if reader.op in ("Identity", "ReadVariableOp"):
        return any(next_.op not in ("Save", "SaveV2") for next_ in readers.get(reader.name, ()))
    return True


def _by_name(node: tf.compat.v1.NodeDef, checkpoint: Checkpoint | HeldValues) -> Entry | None:
    shared_name = node.attr["shared_name"].s.decode()
    for key in (node.name, shared_name):
        if key in checkpoint.shapes:
            return Entry(key)
    return None


def weights_digest(weights: Iterable[tuple[str, NDArray[np.generic]]], *, plan: bytes = b"") -> str:
    """SHA-256 over names, shapes and values, hexadecimal; `plan`, if any, says what uses them."""
    digest = hashlib.sha256(plan)
    for name, value in weights:
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def report_bad_weights(graph: FlatGraph, *, path: str) -> None:
    """Warn of weights that are NaN or infinite, by name: everything behind them is nonsense."""
    bad = [name for name, value in graph.weights.items() if not _finite(value)]
    for node in graph.graph_def.node:
        if node.op == "Const" and tf.dtypes.as_dtype(node.attr["dtype"].type).is_floating:
            scalar = not node.attr["value"].tensor.tensor_shape.dim
            if not scalar and np.isnan(constant_values(node).astype(np.float64)).any():
                bad.append(node.name)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        _LOG.warning("%s: the weights %r%s hold NaN or infinity", path, bad[0], more)


def value_of(weight: tf.Tensor) -> tf.Tensor | None:
    """What a weight is, or what the variable that it is the handle of holds; None for tables."""
    if weight.dtype != tf.resource:
        return weight
    data = weight._handle_data
    if data is None or len(data.shape_and_type) != 1:
        return None
    dtype = tf.dtypes.as_dtype(data.shape_and_type[0].dtype)
    return tf.raw_ops.ReadVariableOp(resource=weight, dtype=dtype)


def _finite(weight: tf.Tensor) -> bool:
    value = value_of(weight)
    if value is None or not value.dtype.is_floating:
        return True
    # A sum is finite unless a term is not, or it overflows; then all terms are looked at.
    total = tf.reduce_sum(tf.cast(value, tf.float32))
    return bool(tf.math.is_finite(total)) or bool(tf.reduce_all(tf.math.is_finite(value)))
