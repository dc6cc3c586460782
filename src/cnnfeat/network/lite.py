"""TensorFlow Lite models, run by TensorFlow's own interpreter with every tensor kept.

Quantised tensors are turned into the numbers they stand for, images into what the input stores.
Nothing else here knows the interpreter: `interpreter` makes it.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network.formats import opened
from cnnfeat.network.graph import FlatGraph, GraphInput, NamedTensor
from cnnfeat.network.starting import native_stderr_hidden
from cnnfeat.network.telling import told
from cnnfeat.records import Array, TensorInfo

_Details: TypeAlias = Mapping[str, Any]
_LITE_ERRORS = (ValueError, RuntimeError, TypeError, IndexError)
_FREE = 64  # of an open length, until an image says it
_NAMED_SCALES = {"unit": (0.0, 1.0), "symmetric": (-1.0, 1.0), "raw": (0.0, 255.0)}


def interpreter(content: bytes) -> Any:
    """Make an interpreter that keeps all tensors.

    Raises
    ------
    NetworkError
        If it can't be read, or has operations that the interpreter hasn't.
    """
    kinds = tf.lite.experimental.OpResolverType
    with warnings.catch_warnings(action="ignore"), native_stderr_hidden(hidden=True):
        made = tf.lite.Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        for item in made.get_input_details():
            signature = item["shape_signature"]
            if (signature[1:] < 0).any():
                shape = [1, *np.where(signature < 0, _FREE, signature)[1:]]
                made.resize_tensor_input(item["index"], shape)
        made.allocate_tensors()
    return made


def load_lite(path: Path) -> FlatGraph:
    """Load a TensorFlow Lite model: its tensors by name, and what runs it.

    Raises
    ------
    NetworkError
        If it can't be read.
    """
    with opened(path) as file:
        content = file.read()
    try:
        lite = interpreter(content)
        operations = lite._get_ops_details()
    except _LITE_ERRORS as error:
        raise NetworkError(
            f"{path}: TensorFlow {tf.__version__} can't run it: {told(error)}"
        ) from error
    details = {item["index"]: item for item in lite.get_tensor_details() if item["name"]}
    names = _names(details)
    graph_def = tf.compat.v1.GraphDef()
    infos: dict[str, TensorInfo] = {}
    inputs = {item["index"] for item in lite.get_input_details()}
    made = {index for operation in operations for index in operation["outputs"]}
    for index in [*inputs, *(set(details) - made - inputs)]:
        kind = "Placeholder" if index in inputs else "Weight"
        node = graph_def.node.add(name=names[index], op=kind)
        node.attr["dtype"].type = tf.float32.as_datatype_enum
        infos[f"{names[index]}:0"] = _info(names[index], kind, details[index])
    layers, placed = [], {node.name for node in graph_def.node}
    for operation in operations:
        sources = [names[index] for index in operation["inputs"] if index in names]
        for index in operation["outputs"]:
            if index in names and names[index] not in placed:
                placed.add(names[index])
                kind = operation["op_name"]
                graph_def.node.add(name=names[index], op=kind, input=sources)
                infos[f"{names[index]}:0"] = _info(names[index], kind, details[index])
                layers.append(NamedTensor(names[index], kind, f"{names[index]}:0"))
    images = [_input(names[item["index"]], item) for item in lite.get_input_details()]
    return FlatGraph(
        graph_def=graph_def,
        weights={},
        inputs=tuple(images),
        outputs=tuple(f"{names[item['index']]}:0" for item in lite.get_output_details()),
        layers=tuple(NamedTensor(item.name, "Input", item.tensor) for item in images)
        + tuple(layers),
        scale=_scale(lite.get_input_details()),
        aliases={item["name"]: f"{names[index]}:0" for index, item in details.items()},
        infos=infos,
        run=_runner(content, {name: index for index, name in names.items()}),
    )


def _names(details: Mapping[int, _Details]) -> dict[int, str]:
    """Tensors' names as they may be typed: of those that were made one, the first."""
    found: dict[int, str] = {}
    taken: set[str] = set()
    for index, item in details.items():
        name = re.sub(r"[^A-Za-z0-9_./-]", "_", item["name"].split(";")[0]).strip("/") or "tensor"
        found[index] = name if name not in taken else f"{name}_{index}"
        taken.add(found[index])
    return found


def _info(name: str, kind: str, item: _Details) -> TensorInfo:
    shape: tuple[int | None, ...] = tuple(int(length) for length in item["shape"])
    dtype = "float32" if _is_quantised(item) else np.dtype(item["dtype"]).name
    stated = item["shape_signature"]
    open_ = len(stated) == len(shape)
    shape = tuple(
        None if open_ and stated[axis] < 0 else length for axis, length in enumerate(shape)
    )
    known = (None, *shape[1:]) if shape and shape[0] == 1 else shape
    return TensorInfo(name=f"{name}:0", op=kind, shape=known, dtype=dtype)


def _is_quantised(item: _Details) -> bool:
    return bool(len(item["quantization_parameters"]["scales"]))


def _input(name: str, item: _Details) -> GraphInput:
    stated = item.get("shape_signature", item["shape"])
    shape = tuple(None if length < 0 else int(length) for length in stated)
    quantised = _is_quantised(item)
    dtype = tf.float32 if quantised else tf.dtypes.as_dtype(item["dtype"])
    return GraphInput(
        name, f"{name}:0", dtype, ((shape[:1] or (1,))[0] or 1, *shape[1:]), batched=True
    )


def _scale(inputs: Sequence[_Details]) -> str | None:
    """How pixels are scaled, where the input's own range says it: it was that of the training."""
    for item in inputs:
        if _is_quantised(item) and len(item["shape"]) == 4:
            whole = np.iinfo(item["dtype"])
            scale, zero = item["quantization"]
            ends = (whole.min - zero) * scale, (whole.max - zero) * scale
            for name, known in _NAMED_SCALES.items():
                if np.allclose(ends, known, atol=0.05 * (known[1] - known[0])):
                    return name
    return None


def _runner(
    content: bytes, indices: Mapping[str, int]
) -> Callable[[Mapping[str, Array], Sequence[str]], list[Array]]:
    """Make the function that runs one image, with an interpreter for each thread."""
    own = threading.local()

    def run(values: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        if not hasattr(own, "lite"):
            own.lite = interpreter(content)
        lite = own.lite
        known = {item["index"]: item for item in lite.get_input_details()}
        given = {
            known[index]["index"]: value
            for name, value in values.items()
            if (index := indices[name.removesuffix(":0")]) in known
        }
        resized = [i for i, value in given.items() if tuple(known[i]["shape"]) != value.shape]
        for index in resized:
            lite.resize_tensor_input(index, given[index].shape)
        if resized:
            lite.allocate_tensors()
        for index, value in given.items():
            lite.set_tensor(index, _stored(value, known[index]))
        lite.invoke()
        details = {item["index"]: item for item in lite.get_tensor_details()}
        wanted = [details[indices[name.removesuffix(":0")]] for name in fetches]
        return [_meant(lite.get_tensor(item["index"]), item) for item in wanted]

    return run


def _stored(value: Array, item: _Details) -> Array:
    """What an input stores for numbers."""
    if not _is_quantised(item):
        return value.astype(item["dtype"])
    scale, zero = item["quantization"]
    whole = np.iinfo(item["dtype"])
    stored: Array = np.clip(np.rint(value / scale) + zero, whole.min, whole.max)
    return stored.astype(item["dtype"])


def _meant(value: Array, item: _Details) -> Array:
    """The numbers that a tensor stands for."""
    if not _is_quantised(item):
        return value
    parts = item["quantization_parameters"]
    shape = [1] * value.ndim
    if len(parts["scales"]) > 1:
        shape[parts["quantized_dimension"]] = len(parts["scales"])
    scales, zeros = parts["scales"].reshape(shape), parts["zero_points"].reshape(shape)
    meant: Array = ((value.astype(np.float32) - zeros) * scales).astype(np.float32)
    return meant
