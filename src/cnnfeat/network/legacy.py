"""Files that only Keras 2 reads; `tf-keras`, an extra, is Keras 2 kept alive."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import keras
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import keras_trust
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.keras_errors import KERAS_ERRORS, first_line, unknown_class
from cnnfeat.network.tracing import trace

LEGACY_HINT = "Keras 2 may read it: pip install 'cnnfeat[legacy]'"
_KERAS_2_ONLY = (
    "TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceProperty", "InstanceMethod",
    "ThresholdedReLU", "LocallyConnected", "CuDNNLSTM", "CuDNNGRU", "'Functional'",
)  # fmt: skip


def load_legacy(path: Path, suffix: str, *, reason: Exception) -> FlatGraph:
    """Load a file of Keras 2 with Keras 2.

    Raises
    ------
    NetworkError
        If `tf-keras` is not installed, or can't read it either.
    """
    tf_keras = _keras_2()
    if tf_keras is None:
        stranger = unknown_class(path, reason)
        if stranger is not None and not any(name in str(reason) for name in _KERAS_2_ONLY):
            raise stranger from reason
        raise NetworkError(
            f"{path}: a Keras 2 file that Keras {keras.__version__} can't read: "
            f"{first_line(reason)}",
            hint=LEGACY_HINT,
        ) from reason
    try:
        with keras_trust.regular_name(path, suffix) as named:
            model = tf_keras.models.load_model(str(named), compile=False, safe_mode=True)
    except KERAS_ERRORS as error:
        raise unknown_class(path, error) or NetworkError(
            f"{path}: neither Keras {keras.__version__} nor Keras {tf_keras.__version__} reads it: "
            f"{first_line(error)}",
            hint="load it where it was made and export it as a SavedModel",
        ) from error
    if model.inputs is None:
        raise NetworkError(
            f"{path}: the model doesn't say what shape its input has",
            hint="where it was made, call it once and save it again",
        )
    specs = [tf.TensorSpec(item.shape, item.dtype, name=item.name) for item in model.inputs]
    struct = getattr(model, "_nested_inputs", None)
    struct = model.inputs if struct is None else struct
    return trace(
        model,
        call_owner=tf_keras.layers.Layer,
        specs=specs,
        pack=lambda tensors: tf.nest.pack_sequence_as(struct, tensors),
    )


def _keras_2() -> ModuleType | None:
    try:
        import tf_keras
    except ImportError:
        return None
    module: ModuleType = tf_keras
    return module
