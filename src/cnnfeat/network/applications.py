"""The networks of `keras.applications`, by name: `keras:MobileNetV2`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cnnfeat.errors import DownloadError, MissingInputError, NetworkError, near_names
from cnnfeat.network.graph import FlatGraph, node_of
from cnnfeat.network.keras_trust import KERAS_ERRORS, check_hdf5, first_line
from cnnfeat.network.tracing import trace_keras
from cnnfeat.network.weights import weights_digest

# How each family's pixels were scaled in training (its `preprocess_input`).
_SCALES = {
    "ConvNeXt": "raw", "DenseNet": "imagenet", "EfficientNet": "raw",
    "InceptionResNet": "symmetric", "InceptionV3": "symmetric", "MobileNetV3": "raw",
    "MobileNet": "symmetric", "NASNet": "symmetric", "ResNet50V2": "symmetric",
    "ResNet101V2": "symmetric", "ResNet152V2": "symmetric", "ResNet": "caffe", "VGG": "caffe",
    "Xception": "symmetric",
}  # fmt: skip


def application_names() -> tuple[str, ...]:
    """Name the networks there are."""
    return tuple(
        name
        for name in sorted(dir(keras.applications))
        if name[0].isupper() and callable(getattr(keras.applications, name))
    )


def load_application(name: str, *, weights: str | None = None) -> tuple[FlatGraph, str]:
    """Build a network of `keras.applications` without its classifier's limits on image size.

    Parameters
    ----------
    name : str
        "MobileNetV2" ...
    weights : str, optional
        "imagenet" (the default; Keras downloads them once), "none" for random ones, the same each
        time, or a weights file.

    Returns
    -------
    graph : FlatGraph
    digest : str
        SHA-256 over names and values of all weights, hexadecimal.

    Raises
    ------
    NetworkError
        If there is no such network, or the weights don't fit it.
    DownloadError
        If the weights can't be downloaded.
    """
    known = {choice.lower(): choice for choice in application_names()}
    if name.lower() not in known:
        raise NetworkError(
            f"keras.applications has no {name!r}",
            hint=near_names(name, known.values()) or "it has " + ", ".join(known.values()),
        )
    name = known[name.lower()]
    model = _build(name, weights or "imagenet")
    graph = trace_keras(model, scale=scale_of(name), free=True)
    _state_size(graph, model.input_shape)
    return graph, weights_digest((item.path, item.numpy()) for item in model.weights)


def scale_of(name: str) -> str:
    """How a network's pixels were scaled in training."""
    return next(scale for family, scale in _SCALES.items() if name.startswith(family))


def _state_size(graph: FlatGraph, shape: Sequence[int | None]) -> None:
    """Note the size the network was trained on, so that shapes are listed for it."""
    for node in graph.graph_def.node:
        if node.name == node_of(graph.inputs[0].tensor):
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


def _build(name: str, weights: str) -> keras.Model:
    make = getattr(keras.applications, name)
    if weights == "imagenet":
        try:
            return make(weights="imagenet")
        except (OSError, ValueError, RuntimeError) as error:
            raise DownloadError(
                f"the weights of {name} can't be downloaded: {first_line(error)}",
                hint="--weights FILE takes a file you have, --weights none random ones",
            ) from error
    if weights == "none":
        return _randomly(make(weights=None))
    path = Path(weights)
    if not path.is_file():
        raise MissingInputError(
            f"there is no weights file {weights}", hint="--weights imagenet, none, or a file"
        )
    check_hdf5(path, name=weights)
    model = make(weights=None)
    try:
        model.load_weights(str(path))
    except KERAS_ERRORS as error:
        raise NetworkError(f"{path}: no weights of {name}: {first_line(error)}") from error
    return model


def _randomly(model: keras.Model) -> keras.Model:
    """Give all kernels the same random values each time, without touching global seeds."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) >= 2:
            fan_in = max(1, int(np.prod(variable.shape[:-1])))
            variable.assign(
                random.standard_normal(variable.shape, dtype=np.float32) * np.sqrt(2 / fan_in)
            )
    return model
