"""`.keras` files and whole models in HDF5: from the file to a flat graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import keras_trust
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.keras_errors import KERAS_ERRORS, first_line, unknown_class
from cnnfeat.network.legacy import load_legacy
from cnnfeat.network.tracing import trace

Pack = Callable[[Sequence[tf.Tensor]], object]


def load_keras(path: Path) -> FlatGraph:
    """Load a `.keras` file and trace it.

    Raises
    ------
    UntrustedModelError
        If its configuration holds code or classes that are not Keras's own.
    NetworkError
        If it can't be read.
    """
    config = keras_trust.check_archive(path)
    try:
        if keras_trust.is_keras_2(path):
            keras_trust.check_meanings(json.dumps(config))
        with keras_trust.regular_name(path, ".keras") as named:
            model = keras.saving.load_model(named, compile=False, safe_mode=True)
        return trace_keras(model, config)
    except KERAS_ERRORS as error:
        if keras_trust.is_keras_2(path):
            return load_legacy(path, ".keras", reason=error)
        raise unknown_class(path, error) or NetworkError(
            f"{path}: Keras {keras.__version__} can't read it: {first_line(error)}"
        ) from error


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
    return trace(model, call_owner=keras.Operation, specs=specs, pack=pack, scale=scale)


def _free(shape: Sequence[int | None]) -> list[int | None]:
    return [None, None, None, *shape[3:]] if len(shape) == 4 else list(shape)


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
        specs = [
            tf.TensorSpec(_free(item.shape) if free else item.shape, item.dtype, name=_name(item))
            for item in keras.tree.flatten(struct)
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
            hint="save it after it was called once, or export it: model.export('folder')",
        )
    spec = tf.TensorSpec([None, *lengths[1:]], model.input_dtype, name="input")
    return [spec], lambda tensors: tensors[0]


def _lengths(shape: object) -> list[int | None] | None:
    if not isinstance(shape, list | tuple):
        return None
    whole = all(length is None or isinstance(length, int) for length in shape)
    return list(shape) if whole else None
