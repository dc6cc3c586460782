"""Keras models as flat graphs: the model is called once, and each layer's call is watched.

Watching the calls treats functional, sequential, nested, shared and subclassed models alike, and
gives every layer exactly one tensor of the traced graph. It works for Keras 3 and for `tf-keras`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import keras
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network.graph import FlatGraph, GraphInput, NamedTensor, shape_of

Pack = Callable[[Sequence[tf.Tensor]], object]
_LOCK = Lock()  # the watch replaces a class's `__call__`, which all threads share
_FIRST_SIZE, _KEPT_SIZES = (256, 256), 8  # (height, width) that a model is looked at with
_RESCALING = {"Rescaling", "Normalization"}


@dataclass(slots=True)
class _Call:
    """One call of one layer."""

    layer: object
    path: tuple[str, ...]  # () for the model itself
    scope: str = ""
    named: bool = True  # whether it is a layer of the model's, and not an operation in one's code
    outputs: Sequence[object] = ()


@dataclass(slots=True)
class _Watch:
    """Calls in the order they began, and the ones under way."""

    calls: list[_Call] = field(default_factory=list)
    stack: list[_Call] = field(default_factory=list)
    legacy: bool = False  # Keras 2 opens a layer's scope inside the watched call
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def begin(self, layer: object) -> _Call:
        path: tuple[str, ...] = ()
        if self.stack:
            path = (*self.stack[-1].path, str(getattr(layer, "name", type(layer).__name__)))
            self.counts[path] += 1
            if self.counts[path] > 1:
                path = (*path[:-1], f"{path[-1]}@{self.counts[path]}")
        scope = tf.get_current_name_scope()
        if self.legacy:
            scope = "" if self.stack else str(getattr(layer, "name", ""))
        call = _Call(layer, path, scope, bool(path) and self._is_layer(layer))
        self.calls.append(call)
        self.stack.append(call)
        return call

    def _is_layer(self, layer: object) -> bool:
        """Whether a layer; or an operation (`x + y`) that stands as a step in a model's plan."""
        plan = getattr(self.stack[-1].layer, "operations", ())
        return self.legacy or hasattr(layer, "weights") or any(layer is step for step in plan)


def trace(
    model: keras.Model,
    *,
    call_owner: type,
    specs: Sequence[tf.TensorSpec],
    pack: Pack,
    scale: str | None = None,
) -> FlatGraph:
    """Call `model` in inference mode on symbolic inputs and keep the graph.

    Parameters
    ----------
    model : keras.Model
        Built, of Keras 3 or of `tf-keras`.
    call_owner : type
        The class whose `__call__` every layer's call goes through.
    specs : sequence of tf.TensorSpec
        The model's inputs, flat and named.
    pack : callable
        Makes the structure the model takes out of flat tensors.
    scale : str, optional
        How pixels were scaled in training, where known.
    """
    watch = _Watch(legacy=call_owner.__module__.startswith("tf_keras"))

    def forward(*tensors: tf.Tensor) -> object:
        outputs = model(pack(tensors), training=False)
        return [tf.identity(output) for output in _tensors(outputs)]

    with _watching(call_owner, watch):
        function = tf.function(forward).get_concrete_function(*specs)
    graph = function.graph
    inputs = tuple(
        GraphInput(spec.name, tensor.name, tensor.dtype, shape_of(tensor.shape), batched=True)
        for spec, tensor in zip(specs, function.inputs, strict=False)
    )
    rename = _renamer(watch.calls, {op.name for op in graph.get_operations()})
    return FlatGraph(
        graph_def=_renamed(graph.as_graph_def(), rename),
        weights={rename(inner.op.name): outer for outer, inner in graph.captures},
        inputs=inputs,
        outputs=tuple(rename(name) for name in _output_names(watch, graph)),
        layers=_input_layers(inputs) + _layers(watch.calls, graph, rename),
        aliases={
            tensor.name: rename(tensor.name)
            for operation in graph.get_operations()
            for tensor in operation.outputs
            if rename(tensor.name) != tensor.name
        },
        rescales=_rescales(watch.calls),
        scale=scale,
        owner=model,
    )


@contextmanager
def _watching(call_owner: type, watch: _Watch) -> Iterator[None]:
    original = call_owner.__call__

    def watched(layer: object, *args: object, **kwargs: object) -> object:
        call = watch.begin(layer)
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            watch.stack.pop()
        call.outputs = _tensors(outputs)
        return outputs

    with _LOCK:
        call_owner.__call__ = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            call_owner.__call__ = original  # type: ignore[method-assign]


def _tensors(outputs: object) -> list[object]:
    return [item for item in tf.nest.flatten(outputs) if tf.is_tensor(item)]


def _in_graph(call: _Call, graph: tf.Graph) -> list[tf.Tensor]:
    return [
        output
        for output in call.outputs
        if isinstance(output, tf.Tensor) and tf.is_symbolic_tensor(output) and output.graph is graph
    ]


def _output_names(watch: _Watch, graph: tf.Graph) -> list[str]:
    return [tensor.name for tensor in _in_graph(watch.calls[0], graph)]


def _input_layers(inputs: Sequence[GraphInput]) -> tuple[NamedTensor, ...]:
    return tuple(NamedTensor(item.name, "InputLayer", item.tensor) for item in inputs)


def _layers(
    calls: Sequence[_Call], graph: tf.Graph, rename: Callable[[str], str]
) -> tuple[NamedTensor, ...]:
    return tuple(
        NamedTensor(
            "/".join(call.path) + (f":{index}" if index else ""),
            type(call.layer).__name__,
            rename(tensor.name),
            call.path[:-1],
        )
        for call in calls
        if call.named
        for index, tensor in enumerate(_in_graph(call, graph))
    )


def _rescales(calls: Sequence[_Call]) -> bool:
    return any(type(call.layer).__name__ in _RESCALING for call in calls[:8])


def _renamer(calls: Sequence[_Call], taken: set[str]) -> Callable[[str], str]:
    """Make the function that turns traced names into the layers' own.

    `seed_1/conv2_1/relu_1/Relu:0` becomes `conv2/relu/Relu:0`, as long as that is nobody else's.
    """
    scopes = {
        call.scope: re.sub(r"[^A-Za-z0-9_./-]", "_", "/".join(call.path))
        for call in reversed(calls)
        if call.scope
    }

    def clean(node: str) -> str:
        scope = node
        while "/" in scope:
            scope = scope.rsplit("/", 1)[0]
            if scope in scopes:
                return "/".join(part for part in (scopes[scope], node[len(scope) + 1 :]) if part)
        return node

    names: dict[str, str] = {}
    used = set(taken)
    for node in sorted(taken):
        name = clean(node)
        if name != node and name not in used and re.match(r"[A-Za-z0-9.]", name):
            names[node] = name
            used.add(name)

    def rename(tensor: str) -> str:
        control, name = ("^", tensor[1:]) if tensor.startswith("^") else ("", tensor)
        node, colon, index = name.partition(":")
        return f"{control}{names.get(node, node)}{colon}{index}"

    return rename


def _renamed(
    graph_def: tf.compat.v1.GraphDef, rename: Callable[[str], str]
) -> tf.compat.v1.GraphDef:
    for node in graph_def.node:
        node.name = rename(node.name)
        inputs = [rename(entry) for entry in node.input]
        del node.input[:]
        node.input.extend(inputs)
        for index, colocated in enumerate(node.attr["_class"].list.s):
            text = colocated.decode()
            if text.startswith("loc:@"):
                node.attr["_class"].list.s[index] = f"loc:@{rename(text[5:])}".encode()
        if not node.attr["_class"].list.s:
            del node.attr["_class"]
    return graph_def


def trace_keras(
    model: keras.Model,
    config: Mapping[str, object] | None = None,
    *,
    scale: str | None = None,
    free: bool = False,
) -> FlatGraph:
    """Trace a built Keras 3 model.

    Parameters
    ----------
    model : keras.Model
        Functional, sequential or subclassed.
    config : mapping, optional
        The file's own configuration: says what shapes a subclassed model was built for.
    scale : str, optional
        How pixels were scaled in training, where known.
    free : bool
        Take images of any size, whatever size the model was built for.
    """
    specs, pack = _inputs(model, config or {}, free)

    def make(specs: Sequence[tf.TensorSpec]) -> FlatGraph:
        return trace(model, call_owner=keras.Operation, specs=specs, pack=pack, scale=scale)

    return trace_any_size(specs, make)


def trace_any_size(
    specs: Sequence[tf.TensorSpec], make: Callable[[Sequence[tf.TensorSpec]], FlatGraph]
) -> FlatGraph:
    """Trace a model for images of any size; where that can't be, anew for each size.

    Some layers compute sizes as Python numbers, which there must be then.

    Parameters
    ----------
    specs : sequence of tf.TensorSpec
        The inputs.
    make : callable
        Traces the model for such inputs.
    """
    try:
        return make(specs)
    except (ValueError, TypeError, AttributeError, tf.errors.OpError):
        if not any(_is_free(spec) for spec in specs):
            raise

    @functools.lru_cache(maxsize=_KEPT_SIZES)
    def sized(size: tuple[int, int]) -> FlatGraph:
        whole = [_of_size(spec, size) if _is_free(spec) else spec for spec in specs]
        return make(whole)

    graph = sized(_FIRST_SIZE)
    inputs = tuple(
        dataclasses.replace(item, shape=shape_of(spec.shape))
        for item, spec in zip(graph.inputs, specs, strict=True)
    )
    return dataclasses.replace(graph, inputs=inputs, sized=sized)


def _is_free(spec: tf.TensorSpec) -> bool:
    return spec.shape.rank == 4 and None in spec.shape.as_list()[1:]


def _of_size(spec: tf.TensorSpec, size: tuple[int, int]) -> tf.TensorSpec:
    """Fill the lengths that are open with the image's; a batch stays open."""
    shape = spec.shape.as_list()
    places = [2, 3] if shape[1] is not None and shape[3] is None else [1, 2]  # channels first
    for place, length in zip(places, size, strict=True):
        shape[place] = length if shape[place] is None else shape[place]
    return tf.TensorSpec(shape, spec.dtype, name=spec.name)


def _free(shape: Sequence[int | None]) -> list[int | None]:
    return [None, None, None, *shape[3:]] if len(shape) == 4 else list(shape)


def _takes_any_number(model: keras.Model) -> bool:
    """Whether a model is a sequence of layers, none of which keeps a state for each image."""
    sequence = isinstance(model, keras.Sequential)
    return sequence and not any(getattr(layer, "stateful", False) for layer in model.layers)


def _name(tensor: keras.KerasTensor) -> str:
    """The name of an input's layer."""
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def _inputs(
    model: keras.Model, config: Mapping[str, object], free: bool
) -> tuple[list[tf.TensorSpec], Pack]:
    struct = getattr(model, "_inputs_struct", None)
    functional = getattr(model, "_functional", None)
    if struct is None and functional is not None:
        struct = functional._inputs_struct
    if struct is not None:
        # One without an Input takes as many images as it was first called with, says Keras.
        first = [None] if _takes_any_number(model) else []
        shapes = [[*first, *item.shape[len(first) :]] for item in keras.tree.flatten(struct)]
        specs = [
            tf.TensorSpec(_free(shape) if free else shape, item.dtype, name=_name(item))
            for shape, item in zip(shapes, keras.tree.flatten(struct), strict=True)
        ]
        return specs, lambda tensors: keras.tree.pack_sequence_as(struct, tensors)
    return _built_inputs(model, config)


def _built_inputs(
    model: keras.Model, config: Mapping[str, object]
) -> tuple[list[tf.TensorSpec], Pack]:
    """What a subclassed model takes, from the shapes it was built with."""
    build = config.get("build_config")
    shape = build.get("input_shape") if isinstance(build, Mapping) else None
    shape = shape or getattr(model, "_build_shapes_dict", None) or {}
    if isinstance(shape, Mapping):
        shape = next(iter(shape.values()), None)
    lengths = _lengths(shape)
    if lengths is None:
        raise NetworkError(
            f"the model {model.name!r} doesn't say what shape its input has",
            hint="call it on images once before it is saved or given here; or export it: "
            "model.export('folder')",
        )
    spec = tf.TensorSpec([None, *lengths[1:]], model.input_dtype, name="input")
    return [spec], lambda tensors: tensors[0]


def _lengths(shape: object) -> list[int | None] | None:
    if not isinstance(shape, list | tuple):
        return None
    whole = all(length is None or isinstance(length, int) for length in shape)
    return list(shape) if whole else None
