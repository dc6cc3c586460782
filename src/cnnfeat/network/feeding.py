"""What a graph is fed: which tensor takes the images, which others could, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from cnnfeat.errors import NetworkError, near_names
from cnnfeat.network.flattening import importable
from cnnfeat.network.graph import (
    WEIGHED,
    Feed,
    GraphInput,
    ImageInput,
    ancestors,
    descendants,
    node_of,
    nodes_by_name,
    shape_of,
    tensor_of,
)
from cnnfeat.records import TensorInfo

_CHANNELS = (1, 3, 4)
_MOST_NUMBERS = 4 * 10**8  # in an input: an image of 10,000 x 10,000 pixels
_FED = {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"}
_PIPELINES = {
    "IteratorGetNext", "QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2",
    "QueueDequeue", "QueueDequeueMany", "QueueDequeueUpTo",
}  # fmt: skip
_DECODERS = {
    "DecodeJpeg", "DecodePng", "DecodeBmp", "DecodeGif", "DecodeImage", "DecodeAndCropJpeg",
    "ParseExample", "ParseExampleV2",
}  # fmt: skip
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SOURCES = {"Placeholder", "PlaceholderV2", "IteratorGetNext", "QueueDequeueV2"}


def image_input(
    inputs: Sequence[GraphInput], *, name: str | None = None, fed: Sequence[str] = ()
) -> ImageInput:
    """Choose the input that takes the images; none of those that are `fed` something else.

    Raises
    ------
    NetworkError
        If none can, if several can and `name` is None, or if `name` is none of them.
    """
    if name is not None:
        return _checked(_named(inputs, name))
    inputs = [item for item in inputs if not any(_goes_by(item, other) for other in fed)]
    behind = [item for item in inputs if item.weighed and _rating(item)]
    rated = [(_rating(item), item) for item in behind or inputs]
    best = max((rating for rating, _ in rated), default=0)
    chosen = [item for rating, item in rated if rating == best]
    if best == 0:
        raise NetworkError(
            f"no input of the network can take images: {_listed(inputs) or 'it has none'}",
            hint="--input NAME names a tensor of shape (batch, height, width, channels)",
        )
    if len(chosen) > 1:
        raise NetworkError(
            f"several inputs could take the images: {_listed(chosen)}",
            hint=f"say which with --input, such as --input {chosen[0].name}",
        )
    return _checked(_describe(chosen[0]))


def _checked(images: ImageInput) -> ImageInput:
    """Refuse to make images that nothing could hold."""
    lengths = [images.height, images.width, images.channels, images.features, images.batch]
    numbers = math.prod(length for length in lengths if length)
    if numbers > _MOST_NUMBERS:
        raise NetworkError(
            f"the input {images.name!r} takes {numbers:,} numbers at a time, {images} for each "
            f"image; {_MOST_NUMBERS:,} are the most"
        )
    return images


def can_take_images(item: GraphInput) -> bool:
    """Whether an input's type and shape could be those of images."""
    return _rating(item) > 0


def _named(inputs: Sequence[GraphInput], name: str) -> ImageInput:
    for item in inputs:
        if _goes_by(item, name):
            if not _rating(item):
                raise NetworkError(
                    f"input {name!r} can't take images: its shape is "
                    f"{_shape_text(item)} and its type {item.dtype.name}"
                )
            return _describe(item)
    raise NetworkError(
        f"no input is called {name!r}; the network has {_listed(inputs) or 'none'}",
        hint=near_names(name, [item.name for item in inputs]),
    )


def _goes_by(item: GraphInput, name: str) -> bool:
    """Whether a name is an input's, as a person or the graph calls it."""
    return name.removesuffix(":0") in (item.name, item.tensor.removesuffix(":0"))


def _rating(item: GraphInput) -> int:
    """How much an input looks like one for images; 0: not at all."""
    if not (item.dtype.is_floating or item.dtype.is_integer) or item.dtype.is_quantized:
        return 0
    if item.shape is None:
        return 1
    rank = len(item.shape)
    if rank == 4:
        return 6 if item.shape[3] in _CHANNELS else 5 if item.shape[1] in _CHANNELS else 4
    if rank == 3:
        return 3 if item.dtype.is_floating or item.dtype.size == 1 else 0
    return 2 if rank == 2 and (item.shape[1] or 0) > 1 else 0


def _describe(item: GraphInput) -> ImageInput:
    layout, (height, width, channels), features = _layout(item.shape, batched=item.batched)
    return ImageInput(
        name=item.name,
        tensor=item.tensor,
        dtype=item.dtype.name,
        layout=layout,
        height=height,
        width=width,
        channels=channels,
        features=features,
        batch=1 if layout == "HWC" else item.shape[0] if item.shape else None,
    )


def _layout(
    shape: tuple[int | None, ...] | None, *, batched: bool
) -> tuple[str, tuple[int | None, int | None, int | None], int | None]:
    if shape is None:
        return "NHWC", (None, None, None), None
    if len(shape) == 4:
        _, first, second, last = shape
        if first in _CHANNELS and last not in _CHANNELS:
            return "NCHW", (second, last, first), None
        return "NHWC", (first, second, last), None
    if len(shape) == 3 and shape[2] in _CHANNELS:
        pixels = batched or (shape[0] is None and shape[1] is not None)
        own = (None, None, shape[2]) if pixels else shape
        return ("pixels", own, shape[1]) if pixels else ("HWC", own, None)
    if len(shape) == 3:
        return "NHW", (shape[1], shape[2], 1), None
    return "flat", (None, None, None), shape[1]


def _shape_text(item: GraphInput) -> str:
    if item.shape is None:
        return "unknown"
    inner = ", ".join("any" if length is None else str(length) for length in item.shape)
    return f"({inner}{',' if len(item.shape) == 1 else ''})"


def _listed(inputs: Sequence[GraphInput]) -> str:
    return ", ".join(f"{item.name} {_shape_text(item)} {item.dtype.name}" for item in inputs)


def graph_inputs(graph_def: tf.compat.v1.GraphDef) -> tuple[GraphInput, ...]:
    """List what could take images: placeholders, else where a pipeline or decoder ends."""
    graph = _imported(graph_def)
    nodes = nodes_by_name(graph_def)
    weighed = [node.name for node in graph_def.node if WEIGHED.match(node.op)]
    behind = ancestors(nodes, weighed, control=False)
    reaching = {tensor_of(entry) for name in behind for entry in nodes[name].input}
    starts = [f"{node.name}:0" for node in graph_def.node if node.op == "Enter"]
    looped = {node_of(start) for start in starts} | descendants(graph_def, starts)
    inputs = [
        GraphInput(
            name=tensor.name.removesuffix(":0"),
            tensor=tensor.name,
            dtype=tensor.dtype.base_dtype,
            shape=shape_of(tensor.shape),
            weighed=tensor.name in reaching,
        )
        for operation in graph.get_operations()
        if operation.type in _FED | _PIPELINES
        or (operation.type in _DECODERS and operation.name not in looped)
        for tensor in operation.outputs
    ]
    return tuple(item for item in inputs if item.dtype not in (tf.resource, tf.variant))


def _imported(graph_def: tf.compat.v1.GraphDef) -> tf.Graph:
    """Import a graph without what importing it could run."""
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(importable(graph_def), name="")
    return graph


def internal_input(graph_def: tf.compat.v1.GraphDef, name: str) -> GraphInput | None:
    """Describe any tensor as an input, for `--input` to name one in the middle of the graph."""
    try:
        tensor = _imported(graph_def).get_tensor_by_name(tensor_of(name))
    except (KeyError, ValueError):
        return None
    return GraphInput(name, tensor.name, tensor.dtype.base_dtype, shape_of(tensor.shape))


def fed_tensors(
    feeds: Mapping[str, bool | float | str],
    tensors: Mapping[str, TensorInfo],
    *,
    named: Mapping[str, str],
) -> dict[str, Feed]:
    """Turn `{"keep_prob": "1.0"}` into values of the tensors' own types.

    Parameters
    ----------
    feeds : mapping
        Values by name.
    tensors : mapping
        All tensors by name.
    named : mapping
        Tensors by the names a signature gives them.

    Raises
    ------
    NetworkError
        If there is no such tensor, or the value is not of its type.
    """
    return dict(
        _fed(name, value, tensors, spelled=named.get(name, name)) for name, value in feeds.items()
    )


def _fed(
    name: str, value: bool | float | str, tensors: Mapping[str, TensorInfo], *, spelled: str
) -> tuple[str, Feed]:
    full = spelled if spelled in tensors else f"{spelled}:0"
    if full not in tensors:
        endings = [tensor for tensor in tensors if tensor.endswith(f"/{full}")]
        if len(endings) != 1:
            sources = [info.name[:-2] for info in tensors.values() if info.op in _SOURCES]
            raise NetworkError(
                f"--feed {name}: the network has no tensor of that name",
                hint=near_names(name, sources) or "it takes: " + (", ".join(sources) or "nothing"),
            )
        full = endings[0]
    dtype = tf.dtypes.as_dtype(tensors[full].dtype)
    try:
        return full, Feed(tf.constant(_parsed(value, dtype), dtype), tensors[full].shape)
    except (ValueError, TypeError) as error:
        raise NetworkError(
            f"--feed {name}={value}: the tensor takes {dtype.name}, such as {_example(dtype)}"
        ) from error


def _parsed(value: bool | float | str, dtype: tf.DType) -> bool | float | str:
    text = str(value).strip()
    if dtype == tf.bool:
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if dtype.is_integer:
        return int(text)
    if dtype == tf.string:
        return text
    return float(text)


def check_placeholders(needed: Iterable[tf.compat.v1.NodeDef], images: ImageInput) -> None:
    """Refuse to go on while a needed placeholder has no value.

    Raises
    ------
    NetworkError
        Naming each with the flag to add.
    """
    empty = [node for node in needed if node.op in _SOURCES]
    if not empty:
        return
    names = ", ".join(f"{node.name!r}" for node in empty)
    flags = " ".join(f"--feed {node.name}={_example(_dtype(node))}" for node in empty)
    several = len(empty) > 1
    raise NetworkError(
        f"the input{'s' if several else ''} {names} need{'' if several else 's'} a value too "
        f"(images go to {images.name!r})",
        hint=f"add {flags}, or whatever is right in use (not in training)",
    )


def _dtype(node: tf.compat.v1.NodeDef) -> tf.DType:
    return tf.dtypes.as_dtype(node.attr["dtype"].type or tf.float32)


def _example(dtype: tf.DType) -> str:
    if dtype == tf.bool:
        return "false"
    return "1.0" if dtype.is_floating else "text" if dtype == tf.string else "1"
