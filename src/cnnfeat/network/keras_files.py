"""`.keras` files and whole models in HDF5: from the file to a flat graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import keras_trust
from cnnfeat.network.graph import FlatGraph
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
        with keras_trust.regular_name(path, ".keras") as named:
            model = keras.saving.load_model(named, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError) as error:
        raise NetworkError(
            f"{path}: Keras {keras.__version__} can't read it: {_first(error)}"
        ) from error
    return trace_keras(model, config)


def trace_keras(
    model: keras.Model,
    config: Mapping[str, object] | None = None,
    *,
    scale: str | None = None,
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
    """
    specs, pack = _inputs(model, config or {})
    return trace(model, call_owner=keras.Operation, specs=specs, pack=pack, scale=scale)


def _inputs(model: keras.Model, config: Mapping[str, object]) -> tuple[list[tf.TensorSpec], Pack]:
    struct = getattr(model, "_inputs_struct", None)
    functional = getattr(model, "_functional", None)
    if struct is None and functional is not None:
        struct = functional._inputs_struct
    if struct is not None:
        specs = [
            tf.TensorSpec(item.shape, item.dtype, name=item.name)
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


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
