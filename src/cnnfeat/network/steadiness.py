"""Whether a layer gives the same features each time: what is random behind it, or in training mode.

Both are parts of many networks as they were trained, and most lie in branches that never run, or
do nothing with the values they are fed: dropout that keeps everything is none. So the graph is gone
through once with the ranges of its numbers, as far as constants and feeds fix them, and what can't
run or can't matter is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2

from cnnfeat.network.graph import (
    Feed,
    ancestors,
    constant_values,
    descendants,
    in_order,
    node_of,
    nodes_by_name,
    tensor_of,
)
from cnnfeat.network.trust import called
from cnnfeat.records import TensorInfo

_RANDOM = re.compile(
    r"(Stateless|Stateful)?(Random(?!Shape)|Truncated|Parameterized|Multinomial|Shuffle|Uniform"
    r"|StandardNormal|SampleDistorted)\w*|ThreadUnsafeUnigram\w*|\w*CandidateSampler|RngReadAndSkip"
)
_OF_A_KEY = re.compile(r"Stateless\w*")
_FRACTIONAL = {"FractionalAvgPool", "FractionalMaxPool"}
_REDUCTIONS = {"Mean", "Sum", "Max", "Min", "Prod", "EuclideanNorm"}
_SHAPES = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"}
_Functions: TypeAlias = Mapping[str, function_pb2.FunctionDef]
_FUNCTIONS_OF_A_CHOICE = {"If": ("else_branch", "then_branch")}
_FUNCTIONS_OF_A_CHOICE["StatelessIf"] = _FUNCTIONS_OF_A_CHOICE["If"]


@dataclass(frozen=True, slots=True)
class _Range:
    """From `low` to `high`; that itself is not reached where the range is `open`."""

    low: float
    high: float
    open: bool = False

    @property
    def fixed(self) -> bool:
        return self.low == self.high


_UNIT = _Range(0.0, 1.0, open=True)
_RANGED = re.compile(r"(Stateless)?RandomUniform(V2)?")
_SAME = {
    "Identity", "StopGradient", "Snapshot", "Reshape", "ExpandDims", "Squeeze", "EnsureShape",
    "PlaceholderWithDefault", "CheckNumerics", "Cast", "Switch", "Merge", "RefMerge", "Fill",
    "BroadcastTo", "Tile",
}  # fmt: skip


@dataclass(slots=True)
class _Known:
    """What constants and feeds fix: ranges by tensor, and tensors of branches that never run."""

    ranges: dict[str, _Range] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)  # nodes, and single outputs of a switch

    def is_dead(self, entry: str) -> bool:
        name = entry.removeprefix("^")
        return node_of(name) in self.dead or tensor_of(name) in self.dead


def unsteady(
    graph_def: tf.compat.v1.GraphDef,
    tensors: Mapping[str, str],
    *,
    images: str,
    feeds: Mapping[str, Feed],
    infos: Mapping[str, TensorInfo],
) -> dict[str, tuple[str, ...]]:
    """Name the operations that make features change from run to run or with their batch.

    Parameters
    ----------
    graph_def : GraphDef
        The nodes that the layers need.
    tensors : mapping of str to str
        Each asked layer's tensor.
    images : str
        The tensor that takes the images.
    feeds : mapping
        Tensors with a fixed value.
    infos : mapping
        All tensors by name.

    Returns
    -------
    dict of str to tuple of str
        By layer, each operation as "RandomUniform (dropout/random_uniform)"; steady layers are
        left out.
    """
    nodes = nodes_by_name(graph_def)
    functions = {function.signature.name: function for function in graph_def.library.function}
    suspects = [name for name in nodes if _is_suspect(nodes[name], functions)]
    if not suspects:
        return {}
    search = _Search(
        functions,
        nodes,
        _knowledge(nodes, feeds),
        descendants(graph_def, [images], stop=_of_shapes(nodes)),
        infos,
        images,
    )
    found = {}
    for layer, tensor in tensors.items():
        live = _live(nodes, tensor, search.known, {images, *feeds})
        named = [text for name in suspects if name in live for text in search.named(nodes[name])]
        if named:
            found[layer] = tuple(dict.fromkeys(named))
    return found


def _is_suspect(node: tf.compat.v1.NodeDef, functions: _Functions) -> bool:
    """Whether a node is random, in training mode or a reduction, itself or in what it calls."""
    if is_random(node) or _is_training(node) or node.op in _REDUCTIONS:
        return True
    return bool(_inside(node, functions, _Known()))


@dataclass(frozen=True, slots=True)
class _Search:
    """What is known of a graph in which unsteady operations are looked for."""

    functions: _Functions
    nodes: Mapping[str, tf.compat.v1.NodeDef]
    known: _Known
    dependent: set[str]  # nodes that need the images' values, not only their number
    infos: Mapping[str, TensorInfo]
    images: str

    def named(self, node: tf.compat.v1.NodeDef) -> list[str]:
        """Say what of a node that matters is unsteady."""
        if is_random(node):
            steady = _OF_A_KEY.match(node.op) and not self._changes(node)
            return [] if steady else [f"{node.op} ({node.name})"]
        if _is_training(node):
            return [f"{node.op} in training mode ({node.name})"]
        if node.op in _REDUCTIONS:
            over = node.name in self.dependent and self._over_the_batch(node)
            return [f"{node.op} over the batch ({node.name})"] if over else []
        return _inside(node, self.functions, self.known)

    def _changes(self, node: tf.compat.v1.NodeDef) -> bool:
        """Whether numbers drawn from a key are others for each run or number of images."""
        behind = [self.nodes[name] for name in ancestors(self.nodes, node.input, control=False)]
        random = any(is_random(one) and not _OF_A_KEY.match(one.op) for one in behind)
        entries = {node_of(entry) for one in behind for entry in one.input}
        return random or node_of(self.images) in entries

    def _over_the_batch(self, node: tf.compat.v1.NodeDef) -> bool:
        info = self.infos.get(tensor_of(node.input[0]))
        axes = self.nodes.get(node_of(node.input[1])) if len(node.input) > 1 else None
        if info is None or not info.shape or info.shape[0] is not None:
            return False
        if axes is None or axes.op != "Const":
            return axes is not None and axes.op == "Range"  # over all there are
        over = constant_values(axes)
        return bool(np.isin(over, (0, -len(info.shape))).any())


def is_random(node: tf.compat.v1.NodeDef) -> bool:
    """Whether an operation draws random numbers."""
    fractional = node.op in _FRACTIONAL and not node.attr["deterministic"].b
    return bool(_RANDOM.fullmatch(node.op)) or fractional


def _is_training(node: tf.compat.v1.NodeDef) -> bool:
    if not node.op.startswith("FusedBatchNorm") or node.op.endswith(("Grad", "GradV2", "GradV3")):
        return False
    return "is_training" not in node.attr or bool(node.attr["is_training"].b)  # by default it is


def _inside(node: tf.compat.v1.NodeDef, functions: _Functions, known: _Known) -> list[str]:
    """Operations of the kind in functions that a node calls, of a choice the branch that runs."""
    if not functions:
        return []
    waiting = [name for name in _branches(node, known) if name in functions]
    seen, found = set(waiting), []
    while waiting:
        function = functions[waiting.pop()]
        found += [
            f"{inner.op} ({node.name}: {inner.name})"
            for inner in function.node_def
            if is_random(inner) or _is_training(inner)
        ]
        more = {name for name in called(function.node_def) if name in functions} - seen
        seen |= more
        waiting += more
    return found


def _branches(node: tf.compat.v1.NodeDef, known: _Known) -> list[str]:
    choice = _FUNCTIONS_OF_A_CHOICE.get(node.op)
    decided = known.ranges.get(tensor_of(node.input[0])) if choice and node.input else None
    if choice and decided is not None and decided.fixed:
        return [node.attr[choice[int(decided.low != 0)]].func.name]
    return list(called([node]))


def _of_shapes(nodes: Mapping[str, tf.compat.v1.NodeDef]) -> set[str]:
    return {name for name, node in nodes.items() if node.op in _SHAPES}


def _live(
    nodes: Mapping[str, tf.compat.v1.NodeDef], tensor: str, known: _Known, stops: set[str]
) -> set[str]:
    """Nodes whose values make a tensor: not those of dead branches, nor behind what is fixed."""
    seen: set[str] = set()
    waiting = [tensor_of(tensor)]
    while waiting:
        entry = waiting.pop()
        name = node_of(entry)
        fixed = known.ranges.get(entry)
        if entry in stops or name in seen or name not in nodes or (fixed and fixed.fixed):
            continue
        seen.add(name)
        if nodes[name].op not in _SHAPES:
            waiting += [tensor_of(item) for item in _taken(nodes[name], known)]
    return seen


def _taken(node: tf.compat.v1.NodeDef, known: _Known) -> list[str]:
    """The inputs whose values a node uses."""
    inputs = [entry for entry in node.input if entry[0] != "^"]
    if node.op in ("Merge", "RefMerge"):
        return [entry for entry in inputs if not known.is_dead(entry)]
    if node.op in ("Select", "SelectV2"):
        mask = known.ranges.get(tensor_of(inputs[0]))
        if mask is not None and mask.fixed:
            return [inputs[1] if mask.low else inputs[2]]
    return inputs


def _knowledge(nodes: Mapping[str, tf.compat.v1.NodeDef], feeds: Mapping[str, Feed]) -> _Known:
    known = _Known()
    for name, feed in feeds.items():
        if isinstance(value := feed.plain, bool | int | float):
            known.ranges[name] = _Range(float(value), float(value))
    for name in in_order(nodes, set(nodes)):
        node = nodes[name]
        if node.op not in ("Merge", "RefMerge"):
            if any(known.is_dead(entry) for entry in node.input):
                known.dead.add(name)
                continue
        elif node.input and all(known.is_dead(entry) for entry in node.input):
            known.dead.add(name)
            continue
        if node.op in ("Switch", "RefSwitch"):
            chosen = known.ranges.get(tensor_of(node.input[1]))
            if chosen is not None and chosen.fixed:
                known.dead.add(f"{name}:{int(chosen.low == 0)}")
        found = known.ranges.get(f"{name}:0") or _range(node, known)
        if found is not None:
            known.ranges[f"{name}:0"] = found
    return known


def _range(node: tf.compat.v1.NodeDef, known: _Known) -> _Range | None:
    """The range of a node's first output, where that of what it takes says it."""
    if node.op == "Const":
        return _constant(node)
    if _RANGED.fullmatch(node.op) and tf.dtypes.as_dtype(node.attr["dtype"].type).is_floating:
        return _UNIT
    entries = [tensor_of(entry) for entry in _taken(node, known)]
    if node.op in ("Merge", "RefMerge") and len(entries) != 1:
        return None
    if node.op in ("Fill", "BroadcastTo", "Tile", "Reshape", "ExpandDims", "Switch"):
        entries = entries[node.op == "Fill" :][:1]
    ranges = [found for entry in entries if (found := known.ranges.get(entry)) is not None]
    if not ranges or len(ranges) != len(entries):
        return None
    if len(ranges) == 2:
        return _compared(node.op, *ranges) or _computed(node.op, *ranges)
    return _changed(node, ranges[0]) if len(ranges) == 1 else None


def _changed(node: tf.compat.v1.NodeDef, of: _Range) -> _Range | None:
    """The range of what one tensor alone makes."""
    whole = node.op == "Cast" and not tf.dtypes.as_dtype(node.attr["DstT"].type).is_floating
    if node.op == "Floor":
        return _floor(of)
    if node.op == "LogicalNot":
        return _truth(not of.low) if of.fixed else None
    return of if node.op in _SAME and (of.fixed or not whole) else None


def _constant(node: tf.compat.v1.NodeDef) -> _Range | None:
    value = constant_values(node)
    if not value.size or value.dtype.kind not in "biuf":
        return None
    numbers = value.astype(np.float64)
    return _Range(float(numbers.min()), float(numbers.max()))


def _truth(holds: bool) -> _Range:
    return _Range(float(holds), float(holds))


def _floor(of: _Range) -> _Range:
    high = math.floor(of.high)
    return _Range(math.floor(of.low), high - 1 if of.open and high == of.high else high)


def _compared(op: str, a: _Range, b: _Range) -> _Range | None:
    """Whether it always holds, or never; None: neither, or no comparison."""
    if op in ("Less", "LessEqual"):
        op, a, b = {"Less": "Greater", "LessEqual": "GreaterEqual"}[op], b, a
    if op == "GreaterEqual":
        if a.low >= b.high:
            return _truth(True)
        return _truth(False) if a.high < b.low or (a.open and a.high <= b.low) else None
    if op == "Greater":
        if a.low > b.high or (b.open and a.low >= b.high):
            return _truth(True)
        return _truth(False) if a.high <= b.low else None
    if op in ("Equal", "NotEqual", "LogicalAnd", "LogicalOr") and a.fixed and b.fixed:
        return _truth({
            "Equal": a.low == b.low,
            "NotEqual": a.low != b.low,
            "LogicalAnd": bool(a.low and b.low),
            "LogicalOr": bool(a.low or b.low),
        }[op])  # fmt: skip
    return None


def _computed(op: str, a: _Range, b: _Range) -> _Range | None:
    if op in ("Add", "AddV2"):
        return _Range(a.low + b.low, a.high + b.high, a.open or b.open)
    if op == "Sub":
        return _Range(a.low - b.high, a.high - b.low, a.open)
    if op == "Mul":
        ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        positive = a.low >= 0 and b.low >= 0 and max(ends) > 0
        return _Range(min(ends), max(ends), positive and (a.open or b.open))
    if op in ("RealDiv", "Div") and b.fixed and b.low > 0:
        return _Range(a.low / b.low, a.high / b.low, a.open)
    return None


def shown(found: Mapping[str, Sequence[str]]) -> str:
    """Say it in one line: the operations of each layer."""
    by_operations: dict[tuple[str, ...], list[str]] = {}
    for layer, operations in found.items():
        by_operations.setdefault(tuple(operations), []).append(repr(layer))
    return "; ".join(
        f"{', '.join(layers)} by {', '.join(operations[:4])}"
        + (f" and {len(operations) - 4} more" if len(operations) > 4 else "")
        for operations, layers in by_operations.items()
    )
