"""The networks of `keras.applications`, by name: `keras:MobileNetV2`."""

from __future__ import annotations

import http.client
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cnnfeat.errors import DownloadError, MissingInputError, NetworkError, near_names
from cnnfeat.network.graph import FlatGraph, node_of
from cnnfeat.network.keras_trust import KERAS_ERRORS, check_hdf5
from cnnfeat.network.telling import told
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
_DOWNLOAD_ERRORS = (OSError, ValueError, RuntimeError, http.client.HTTPException)
_LOG = logging.getLogger("cnnfeat")


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
    """Build it in a thread of its own: for each, Keras counts names of layers from the start."""
    built: Future[keras.Model] = Future()

    def build() -> None:
        keras.config.disable_interactive_logging()  # of this thread; stdout is for data
        try:
            built.set_result(_with_weights(name, weights))
        except BaseException as error:  # noqa: BLE001 - is raised where it is waited for
            built.set_exception(error)

    threading.Thread(target=build, daemon=True).start()
    return built.result()


def _with_weights(name: str, weights: str) -> keras.Model:
    make = getattr(keras.applications, name)
    if weights == "imagenet":
        return _trained(make, name)
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
        raise NetworkError(f"{path}: no weights of {name}: {told(error)}") from error
    return model


def _trained(make: Callable[..., keras.Model], name: str) -> keras.Model:
    """With the weights in Keras's cache, which it fetches if they aren't there."""
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras") / "models"
    _LOG.info("the weights of %s: from %s, or else from the internet", name, cache)
    try:
        return make(weights="imagenet")
    except Exception as error:
        # Where it can't download, Keras raises no narrower class than this.
        if type(error) is not Exception and not isinstance(error, _DOWNLOAD_ERRORS):
            raise
        raise DownloadError(
            f"the weights of {name} are not in {cache}, and they can't be downloaded: "
            + told(error),
            hint=f"put the file that is named there into {cache}, or give it with --weights FILE; "
            "--weights none takes random ones",
        ) from error


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
