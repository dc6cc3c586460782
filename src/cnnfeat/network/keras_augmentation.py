"""Keras's augmentation layers in exported graphs, taken as at inference: there they change nothing.

Keras exports a model as it is called in training where nobody says otherwise, so a graph turns and
crops each image anew. That a part of a graph is such a layer is proved by its operations: each with
all that it takes must be what the Keras that is installed makes of the layer of its name. What
can't be proved stays, and is told as random.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from cnnfeat.network.feeding import internal_input
from cnnfeat.network.graph import (
    ancestors,
    consumers_of,
    descendants,
    node_of,
    nodes_by_name,
    scopes_of,
    subgraph,
    tensor_of,
)
from cnnfeat.network.keras_files import keras_2
from cnnfeat.network.steadiness import is_random

_LOG = logging.getLogger("cnnfeat")
_Print = frozenset[tuple[tuple[str, int, str], int]]
_Shape = tuple[int | None, ...]
_SUFFIX = re.compile(r"_\d+$")
_WEIGHED = re.compile(r"Conv[23]D|MatMul")
_ANY = {"factor": 0.1}
# How each may be made, as far as that changes its operations and not only their constants.
_LAYERS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "RandomFlip": [
        {"mode": mode} for mode in ("horizontal", "vertical", "horizontal_and_vertical")
    ],
    "RandomTranslation": [{"height_factor": 0.1, "width_factor": 0.1}],
    "RandomZoom": [{"height_factor": 0.1, "width_factor": width} for width in (None, 0.1)],
    "RandomShear": [{"x_factor": 0.1, "y_factor": 0.1}],
    "RandomHue": [_ANY | {"value_range": span} for span in ((0, 255), (0, 1))],
    "RandomPosterization": [{"factor": 3}],
    **{
        name: [_ANY]
        for name in (
            "RandomRotation", "RandomContrast", "RandomBrightness", "RandomSaturation",
            "RandomSharpness", "RandomColorDegeneration", "RandomInvert", "RandomErasing",
            "RandomGaussianBlur", "RandomGrayscale", "RandomPerspective",
        )
    },
}  # fmt: skip


def at_inference(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Make Keras's augmentation layers of a graph hand on what they take, in place."""
    nodes = nodes_by_name(graph_def)
    random = [name for name, node in nodes.items() if is_random(node)]
    if not random:
        return graph_def
    consumers = consumers_of(nodes, set(nodes))
    starts = [f"{name}:0" for name, node in nodes.items() if node.op.startswith("Placeholder")]
    dependent = {node_of(name) for name in starts} | descendants(graph_def, starts)
    taken, gone = list[str](), set[str]()
    scopes = _scopes(random)
    inside: dict[str, set[str]] = {scope: set() for scope in scopes}
    for name in nodes:
        for scope in scopes_of(name):
            if scope in inside:
                inside[scope].add(name)
    for scope in scopes:
        if gone.issuperset(random):
            break
        members = inside[scope] - gone
        part = _Part(nodes, consumers, members, dependent)
        if part.whole and _is_own(part, _named(scope)):
            _hand_on(nodes[part.end], part.start)
            taken.append(scope.rsplit("/", 1)[-1])
            gone |= members - {part.end}
    if taken:
        _LOG.info(
            "%s: layers that vary images in training; taken as at inference, where they change "
            "nothing",
            ", ".join(dict.fromkeys(taken)),
        )
    return subgraph(graph_def, set(nodes) - gone) if gone else graph_def


def _scopes(random: Iterable[str]) -> list[str]:
    """Scopes that random operations lie in: of a layer's own name first, then the inner ones."""
    found = {scope for name in random for scope in scopes_of(name)}
    return sorted(found, key=lambda scope: (_named(scope) is None, -scope.count("/"), scope))


def _named(scope: str) -> str | None:
    """The layer that a scope has the name of, numbered or not."""
    return _classes().get(_SUFFIX.sub("", scope.rsplit("/", 1)[-1]))


class _Part:
    """Nodes of one scope: the one tensor of images that comes in, and the one that goes out."""

    def __init__(
        self,
        nodes: Mapping[str, tf.compat.v1.NodeDef],
        consumers: Mapping[str, Sequence[str]],
        members: set[str],
        dependent: set[str],
    ) -> None:
        self.nodes, self.members = nodes, members
        entries = [
            self.source(entry)
            for name in members
            for entry in nodes[name].input
            if entry[0] != "^" and node_of(self.source(entry)) not in members
        ]
        starts = {
            entry for entry in entries if node_of(entry) in dependent and self._is_image(entry)
        }
        ends = {
            name
            for name in members
            if name in dependent and any(taker not in members for taker in consumers.get(name, ()))
        }
        self.whole = len(starts) == 1 and len(ends) == 1
        self.start, self.end = (starts.pop(), ends.pop()) if self.whole else ("", "")

    def _is_image(self, entry: str) -> bool:
        """Whether no variable, which a seed lies in."""
        node = self.nodes[node_of(entry)]
        variable = "dtype" in node.attr and node.attr["dtype"].type == tf.resource.as_datatype_enum
        return not variable and node.op != "VarHandleOp"

    def source(self, entry: str) -> str:
        """Where a tensor comes from, behind identities."""
        while (node := self.nodes.get(node_of(entry))) is not None and node.op == "Identity":
            entry = node.input[0]
        return tensor_of(entry)

    def print(self) -> _Print:
        """Each operation that makes the end, and what it takes."""
        found: Counter[tuple[str, int, str]] = Counter()
        waiting, seen = [self.source(self.end)], set[str]()
        while waiting:
            node = self.nodes[node_of(waiting.pop())]
            if node.name in seen:
                continue
            seen.add(node.name)
            for slot, entry in enumerate(item for item in node.input if item[0] != "^"):
                source = self.source(entry)
                found[node.op, slot, self._word(source)] += 1
                if node_of(source) in self.members and source != self.start:
                    waiting.append(source)
        return frozenset(found.items())

    def _word(self, source: str) -> str:
        if source == self.start:
            return "images"
        operation = self.nodes[node_of(source)].op
        return "seed" if operation in ("VarHandleOp", "Placeholder") else str(operation)


def _is_own(part: _Part, named: str | None) -> bool:
    """Whether a part is what an installed Keras makes of the layer of its name, or of any."""
    if not named and any(_WEIGHED.fullmatch(part.nodes[name].op) for name in part.members):
        return False
    shape, dtype = _type_of(part.nodes, part.start)
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4):
        return False
    known = part.print()
    layers = [named] if named else list(_LAYERS)
    return any(known in _prints(layer, shape, dtype) for layer in layers)


def _type_of(nodes: Mapping[str, tf.compat.v1.NodeDef], entry: str) -> tuple[_Shape, str]:
    """Shape and type of a tensor, by importing what makes it."""
    graph_def = tf.compat.v1.GraphDef(node=[nodes[name] for name in ancestors(nodes, [entry])])
    found = internal_input(graph_def, entry)
    return (found.shape or (), found.dtype.name) if found else ((), "float32")


@functools.cache
def _classes() -> dict[str, str]:
    """The layers by the names that they go by where nobody names them."""
    return {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): name for name in _LAYERS}


@functools.cache
def _prints(layer: str, shape: _Shape, dtype: str) -> tuple[_Print, ...]:
    return tuple(dict.fromkeys(_traced(layer, shape, dtype)))


def _traced(layer: str, shape: _Shape, dtype: str) -> Iterator[_Print]:
    """Trace a layer in training, of each Keras there is and in each way it can be made."""
    for library in (keras, keras_2()):
        make: Callable[..., Callable[..., tf.Tensor]] | None
        make = getattr(library.layers, layer, None) if library else None
        for options in _LAYERS[layer]:
            if make is None:
                continue
            try:
                one = make(**options)
                function = tf.function(
                    lambda images, one=one: one(images, training=True), autograph=False
                )
                graph = function.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
            except (TypeError, ValueError, AttributeError):
                continue  # this Keras doesn't make it so
            nodes = nodes_by_name(graph.as_graph_def())
            part = _Part(nodes, {}, set(nodes), set())
            part.start, part.end = graph.inputs[0].name, node_of(graph.outputs[0].name)
            yield part.print()


def _hand_on(node: tf.compat.v1.NodeDef, entry: str) -> None:
    """Make a node an identity of another tensor."""
    dtype = next(node.attr[key].type for key in ("T", "dtype", "DstT") if key in node.attr)
    node.op = "Identity"
    node.ClearField("attr")
    node.ClearField("input")
    node.input.append(entry.removesuffix(":0"))
    node.attr["T"].type = dtype
