"""A flat graph that computes the same with fewer operations.

What depends on weights alone is computed once. What follows a convolution or a matrix product and
scales or shifts each channel by a constant (an inference batch norm, in whatever operations it was
written) goes into its kernel and a bias: TensorFlow runs convolution, bias and activation as one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import function_pb2

from cnnfeat.memory import available_bytes
from cnnfeat.network.flattening import CALLS
from cnnfeat.network.graph import (
    ancestors,
    import_part,
    in_order,
    node_of,
    nodes_by_name,
    subgraph,
    tensor_of,
)
from cnnfeat.network.kernels import HARMLESS
from cnnfeat.network.soundness import check_room
from cnnfeat.records import TensorInfo

_WEIGHED = {"Conv2D": 4, "DepthwiseConv2dNative": 4, "Conv3D": 5, "MatMul": 2}  # and the rank
# Operations that a weight may go through before it is used.
_STILL = HARMLESS - {"Placeholder"} | {"BroadcastTo", "Minimum", "Square"}
_NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
_SHIFTS = {"Add", "AddV2", "BiasAdd", "Sub"}
_SCALES = {"Mul", "RealDiv"}
_COPIES = {"Identity", "IdentityN", "StopGradient", "PreventGradient"}
# Those that can pad by themselves; a depthwise one only as SAME does: at widths of its own
# TensorFlow aborts.
_PADDING = {"Conv2D", "DepthwiseConv2dNative"}
_SHARE = 4  # of the memory, what one kernel may take once more
_Numbers = NDArray[np.float64]


@dataclass(slots=True)
class Folded:
    """Nodes, and the values of tensors that none of them computes."""

    part: tf.compat.v1.GraphDef
    values: dict[str, tf.Tensor] = field(default_factory=dict)


def folded(
    part: tf.compat.v1.GraphDef,
    weights: Mapping[str, tf.Tensor],
    *,
    fetches: Collection[str],
    fed: Collection[str],
    infos: Mapping[str, TensorInfo],
    path: str = "",
) -> Folded:
    """Write a graph anew with fewer operations, and the same values.

    Parameters
    ----------
    part : GraphDef
        Nodes that are to be computed; not altered.
    weights : mapping
        By the name of the placeholder node that each stands for.
    fetches : collection of str
        Tensors that are asked for: they keep their exact meaning, so nothing is folded through
        them.
    fed : collection of str
        Tensors that get a value from outside.
    infos : mapping
        Tensors by name, as far as their shapes are known.
    path : str
        The network, for messages.

    Returns
    -------
    Folded
        A value for each weight, or for what was computed of it: float32 or what the file has.
    """
    fold = _Fold(part, weights, fetches=fetches, fed=fed, infos=infos, path=path)
    fold.depthwise()
    fold.shortcuts()
    fold.paddings()
    fold.channels()
    return fold.result()


class _Fold:
    """A graph while it is being written anew."""

    def __init__(
        self,
        part: tf.compat.v1.GraphDef,
        weights: Mapping[str, tf.Tensor],
        *,
        fetches: Collection[str],
        fed: Collection[str],
        infos: Mapping[str, TensorInfo],
        path: str,
    ) -> None:
        self._part = tf.compat.v1.GraphDef()
        self._part.CopyFrom(part)
        self._nodes = nodes_by_name(self._part)
        self._fetches = {tensor_of(name) for name in fetches}
        self._kept = self._fetches | {tensor_of(name) for name in fed}
        given = {node_of(name) for name in fed}
        self._weights = {name: value for name, value in weights.items() if name not in given}
        self._infos = infos
        self._path = path
        self._still = self._still_nodes()
        self._values = self._computed()
        self._takers: dict[str, list[str]] = {}  # of each tensor, and of each node's end ("^node")

    def result(self) -> Folded:
        part = subgraph(self._part, self._needed())
        used = {tensor_of(entry) for node in part.node for entry in node.input}
        return Folded(part, {name: v for name, v in self._values.items() if name in used})

    def _needed(self) -> set[str]:
        stop = self._values.keys() | (self._kept - self._fetches)
        return ancestors(self._nodes, self._fetches, stop=stop)

    # ---- what depends on weights alone -----------------------------------------------------------

    def _still_nodes(self) -> set[str]:
        """Nodes that depend on weights and constants alone, outside of loops and branches."""
        still, known = set[str](), set(self._weights)
        for name in in_order(self._nodes, set(self._nodes)):
            node = self._nodes[name]
            if (
                node.op in _STILL
                and f"{name}:0" not in self._kept
                and all(entry in known and entry[0] != "^" for entry in node.input)
            ):
                still.add(name)
                known.add(name)
        return still

    def _computed(self) -> dict[str, tf.Tensor]:
        """Compute what the other nodes take of them; plain constants stay where they are."""
        wanted = {
            tensor_of(entry)
            for node in self._part.node
            if node.name not in self._still
            for entry in node.input
            if entry in self._still and self._nodes[entry].op != "Const"
        }
        names = sorted(wanted)
        held = {f"{name}:0": value for name, value in self._weights.items()}
        if not names:
            return held
        part = tf.compat.v1.GraphDef(versions=self._part.versions)
        part.node.extend(node for node in self._part.node if node.name in self._still)

        def body() -> list[tf.Tensor]:
            return import_part(part, held, fetches=names, name="network")

        function = tf.compat.v1.wrap_function(body, [])
        check_room(function.graph, n_images=1, path=self._path)
        return held | dict(zip(names, function(), strict=True))

    def _value(self, entry: str) -> NDArray[np.generic] | None:
        """The value of an input that is the same for all images."""
        tensor = tensor_of(entry)
        if tensor in self._values:
            value = self._values[tensor]
            if value.dtype == tf.resource:
                value = _read(value)
            return None if value is None else value.numpy()
        node = self._nodes.get(node_of(entry))
        if node is None or node.op != "Const" or tensor in self._kept or node.input:
            return None  # one that waits for others is inside of a loop or a branch
        array: NDArray[np.generic] = tf.make_ndarray(node.attr["value"].tensor)
        return array

    # ---- convolutions of single channels ---------------------------------------------------------

    def depthwise(self) -> None:
        """Have a grouped convolution of single channels be the depthwise one that it is.

        TensorFlow has grouped ones on a processor by XLA alone, in a function of their own.
        """
        functions = {one.signature.name: one for one in self._part.library.function}
        for node in self._part.node:
            function = functions.get(node.attr["f"].func.name) if node.op in CALLS else None
            found = None if function is None else _only_convolution(function)
            if found is not None and not _waits(node):
                self._be_depthwise(node, *found)

    def _be_depthwise(
        self, node: tf.compat.v1.NodeDef, inner: tf.compat.v1.NodeDef, images: int, weights: int
    ) -> None:
        info = self._infos.get(tensor_of(node.input[images]))
        kernel = self._value(node.input[weights])
        n_channels = None if info is None or not info.shape else info.shape[-1]
        if (
            not n_channels
            or kernel is None
            or kernel.ndim != 4
            or kernel.shape[2] != 1
            or kernel.shape[3] % n_channels
            or not _is_plain(inner)
        ):
            return
        filters = kernel.reshape(*kernel.shape[:2], n_channels, kernel.shape[3] // n_channels)
        name, taken = self._new(f"{node.name}/filters", filters), node.input[images]
        node.op = "DepthwiseConv2dNative"
        node.ClearField("input")
        node.ClearField("attr")
        node.input.extend([taken, name])
        for key in ("T", "strides", "padding"):
            node.attr[key].CopyFrom(inner.attr[key])

    # ---- what does nothing -----------------------------------------------------------------------

    def shortcuts(self) -> None:
        """Have tensors taken from where they come from: behind copies, and products with 1."""
        source: dict[str, str] = {}
        for name in in_order(self._nodes, set(self._nodes)):
            node = self._nodes[name]
            node.input[:] = [source.get(tensor_of(entry), entry) for entry in node.input]
            if _waits(node):
                continue
            for output, entry in enumerate(self._handed_on(node)):
                if f"{name}:{output}" not in self._kept:
                    source[f"{name}:{output}"] = entry
        for name in self._needed():
            for entry in self._nodes[name].input:
                tensor = entry if entry[0] == "^" else tensor_of(entry)
                self._takers.setdefault(tensor, []).append(name)

    def _handed_on(self, node: tf.compat.v1.NodeDef) -> Sequence[str]:
        """The inputs that a node's outputs are the same as."""
        if node.op in _COPIES:
            return list(node.input)
        if node.op == "Mul":
            for entry, other in (node.input, reversed(node.input)):
                value = self._value(entry)
                if value is not None and value.ndim == 0 and value == 1:
                    return [other]
        return []

    # ---- paddings --------------------------------------------------------------------------------

    def paddings(self) -> None:
        """Have convolutions pad with zeros themselves, where that was an operation of its own."""
        for node in self._part.node:
            pad = self._nodes.get(node_of(node.input[0])) if node.input else None
            if node.op in _PADDING and pad is not None and pad.op == "Pad":
                self._pad_inside(node, pad)

    def _pad_inside(self, node: tf.compat.v1.NodeDef, pad: tf.compat.v1.NodeDef) -> None:
        widths = self._value(pad.input[1])
        tensor = f"{pad.name}:0"
        if (
            node.attr["padding"].s != b"VALID"
            or widths is None
            or widths.shape != (4, 2)
            or np.delete(widths, _sides(node), axis=0).any()
            or tensor in self._kept
            or self._takers.get(tensor) != [node.name]
            or _waits(pad)
        ):
            return
        if node.op == "Conv2D":
            node.attr["padding"].s = b"EXPLICIT"
            node.attr["explicit_paddings"].list.i[:] = widths.ravel().tolist()
        elif self._is_same(node, pad, widths):
            node.attr["padding"].s = b"SAME"
        else:
            return
        node.input[0] = pad.input[0]

    def _is_same(
        self, node: tf.compat.v1.NodeDef, pad: tf.compat.v1.NodeDef, widths: NDArray[np.generic]
    ) -> bool:
        """Whether a padding is the one that SAME stands for, as shapes say."""
        info = self._infos.get(tensor_of(pad.input[0]))
        kernel = self._value(node.input[1])
        if info is None or info.shape is None or len(info.shape) != 4 or kernel is None:
            return False
        for axis, length in zip(_sides(node), kernel.shape[:2], strict=True):
            taken, stride = info.shape[axis], node.attr["strides"].list.i[axis]
            if taken is None or _is_dilated(node):
                return False
            missing = max(0, (math.ceil(taken / stride) - 1) * stride + length - taken)
            if widths[axis].tolist() != [missing // 2, missing - missing // 2]:
                return False
        return True

    # ---- channels --------------------------------------------------------------------------------

    def channels(self) -> None:
        """Fold what scales and shifts channels into the kernel before it."""
        with np.errstate(all="ignore"):
            for node in list(self._part.node):
                if node.op in _WEIGHED and node.attr["T"].type == tf.float32.as_datatype_enum:
                    self._fold_behind(node)

    def _fold_behind(self, node: tf.compat.v1.NodeDef) -> None:
        kernel = self._value(node.input[1])
        turned = "transpose_b" in node.attr and node.attr["transpose_b"].b
        if kernel is None or turned or kernel.ndim != _WEIGHED[node.op]:
            return
        n_axes = 2 if node.op == "DepthwiseConv2dNative" else 1
        outputs = math.prod(kernel.shape[-n_axes:])
        last, scale, shift = self._chain(node, outputs)
        if last is node or (node.name == node_of(last.input[0]) and (scale == 1).all()):
            return  # nothing, or a bias as it is
        if kernel.nbytes > available_bytes() // _SHARE:
            return
        new = kernel.reshape(-1, outputs).astype(np.float32, copy=False) * scale.astype(np.float32)
        bias = shift.astype(np.float32)
        if np.isfinite(new).all() and np.isfinite(bias).all():
            self._put(node, last, new.reshape(kernel.shape), bias)

    def _chain(
        self, node: tf.compat.v1.NodeDef, outputs: int
    ) -> tuple[tf.compat.v1.NodeDef, _Numbers, _Numbers]:
        """The last node that scales or shifts a result by channels, and what all of them do."""
        last, scale, shift = node, np.ones(outputs), np.zeros(outputs)
        while (found := self._next(last, node, outputs)) is not None:
            last, (times, plus) = found
            scale, shift = scale * times, shift * times + plus
        return last, scale, shift

    def _put(
        self,
        node: tf.compat.v1.NodeDef,
        last: tf.compat.v1.NodeDef,
        kernel: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        """Give a node another kernel, and have the last of the chain add the bias."""
        node.input[1] = self._new(f"{last.name}/kernel", kernel)
        added = self._new(f"{last.name}/bias", bias)
        channels_first = _channels_first(node)
        last.op = "BiasAdd"
        last.ClearField("input")
        last.ClearField("attr")
        last.input.extend([node.name, added])
        last.attr["T"].CopyFrom(node.attr["T"])
        last.attr["data_format"].s = b"NCHW" if channels_first else b"NHWC"

    def _new(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a value by a name that nothing has."""
        while name in self._nodes or f"{name}:0" in self._values:
            name += "_"
        self._values[f"{name}:0"] = tf.constant(value)
        return name

    def _next(
        self, last: tf.compat.v1.NodeDef, first: tf.compat.v1.NodeDef, outputs: int
    ) -> tuple[tf.compat.v1.NodeDef, tuple[_Numbers, _Numbers]] | None:
        """The only node that takes a result, and what it multiplies each channel by, and adds."""
        tensor = f"{last.name}:0"
        takers = self._takers.get(tensor, [])
        if len(takers) != 1 or tensor in self._kept or f"^{last.name}" in self._takers:
            return None
        node = self._nodes[takers[0]]
        if _waits(node):
            return None
        found = self._affine(node, tensor, first, outputs)
        return None if found is None else (node, found)

    def _affine(
        self, node: tf.compat.v1.NodeDef, tensor: str, first: tf.compat.v1.NodeDef, outputs: int
    ) -> tuple[_Numbers, _Numbers] | None:
        """What a node multiplies each channel of a tensor by, and adds to it."""
        one, nothing = np.ones(outputs), np.zeros(outputs)
        if node.op in _NORMS:
            return self._norm(node, tensor, first, outputs)
        if node.op not in _SCALES | _SHIFTS:
            return None
        place = [tensor_of(entry) for entry in node.input].index(tensor)
        value = self._value(node.input[1 - place])
        vector = None if value is None else _by_channel(value, node, first, outputs)
        if vector is None or (node.op == "RealDiv" and place):
            return None
        factors = {"Mul": vector, "RealDiv": one / vector, "Sub": -one if place else one}
        terms = {"Mul": nothing, "RealDiv": nothing, "Sub": vector if place else -vector}
        return factors.get(node.op, one), terms.get(node.op, vector)

    def _norm(
        self, node: tf.compat.v1.NodeDef, tensor: str, first: tf.compat.v1.NodeDef, outputs: int
    ) -> tuple[_Numbers, _Numbers] | None:
        """A batch norm with the averages it was trained to: only its first output is of use."""
        others = any(f"{node.name}:{i}" in self._takers.keys() | self._kept for i in range(1, 6))
        training = "is_training" not in node.attr or node.attr["is_training"].b
        if (
            training
            or others
            or _channels_first(node) != _channels_first(first)
            or tensor_of(node.input[0]) != tensor
        ):
            return None
        values = [self._value(entry) for entry in node.input[1:5]]
        if any(value is None or value.shape != (outputs,) for value in values):
            return None
        gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
        epsilon = node.attr["epsilon"].f if "epsilon" in node.attr else 1e-4
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale


def _channels_first(node: tf.compat.v1.NodeDef) -> bool:
    return "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC")


def _is_dilated(node: tf.compat.v1.NodeDef) -> bool:
    dilations = node.attr["dilations"].list.i if "dilations" in node.attr else []
    return any(one != 1 for one in dilations)


def _waits(node: tf.compat.v1.NodeDef) -> bool:
    """Whether it is computed after others whose values it doesn't take."""
    return any(entry[0] == "^" for entry in node.input)


def _read(handle: tf.Tensor) -> tf.Tensor | None:
    """The value of a variable of float32."""
    try:
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
    except (tf.errors.OpError, ValueError):
        return None


def _only_convolution(
    function: function_pb2.FunctionDef,
) -> tuple[tf.compat.v1.NodeDef, int, int] | None:
    """The convolution that is all of a function, and which arguments are its images and weights."""
    nodes = {node.name: node for node in function.node_def}
    inner = [node for node in function.node_def if node.op == "Conv2D"]
    handed_on = {"Identity", "EnsureShape", "ReadVariableOp"}
    others = {node.op for node in function.node_def} - handed_on - {"Conv2D", "NoOp"}
    incomplete = any(not one.input for one in function.node_def if one.op in handed_on)
    if len(inner) != 1 or others or len(function.ret) != 1 or incomplete:
        return None

    def origin(entry: str) -> str:
        while node_of(entry) in nodes and nodes[node_of(entry)].op in handed_on:
            entry = nodes[node_of(entry)].input[0]
        return node_of(entry)

    arguments = [one.name for one in function.signature.input_arg]
    ends = [origin(entry) for entry in inner[0].input[:2]]
    (returned,) = function.ret.values()
    if origin(returned) != inner[0].name or len(ends) != 2 or not set(ends) <= set(arguments):
        return None
    return inner[0], arguments.index(ends[0]), arguments.index(ends[1])


def _is_plain(node: tf.compat.v1.NodeDef) -> bool:
    """Whether a convolution slides as a depthwise one can, by steps of one length both ways."""
    strides = list(node.attr["strides"].list.i)
    return (
        not _channels_first(node)
        and len(strides) == 4
        and strides == [1, strides[1], strides[1], 1]
        and not _is_dilated(node)
        and node.attr["padding"].s in (b"SAME", b"VALID")
        and node.attr["T"].type == tf.float32.as_datatype_enum
    )


def _sides(node: tf.compat.v1.NodeDef) -> list[int]:
    """The axes that a convolution slides along."""
    return [2, 3] if _channels_first(node) else [1, 2]


def _by_channel(
    value: NDArray[np.generic],
    taker: tf.compat.v1.NodeDef,
    first: tf.compat.v1.NodeDef,
    outputs: int,
) -> _Numbers | None:
    """A constant as one number a channel; None where it differs within one."""
    rank = _WEIGHED[first.op]
    axis = 1 if _channels_first(first) else rank - 1
    shape = (1,) * (rank - value.ndim) + value.shape
    if taker.op == "BiasAdd":
        place = 1 if _channels_first(taker) else rank - 1
        shape = (1,) * place + value.shape + (1,) * (rank - place - 1)
    if len(shape) != rank or math.prod(shape) != shape[axis] or shape[axis] not in (1, outputs):
        return None
    return np.broadcast_to(np.asarray(value, np.float64).ravel(), (outputs,))
