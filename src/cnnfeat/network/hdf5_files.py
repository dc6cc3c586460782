"""Whole models in HDF5, of Keras 3 and Keras 2."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import keras

from cnnfeat.errors import NetworkError
from cnnfeat.network import keras_trust
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.hdf5_trust import check_hdf5
from cnnfeat.network.keras_errors import KERAS_ERRORS, first_line, unknown_class
from cnnfeat.network.keras_files import trace_keras
from cnnfeat.network.legacy import load_legacy

_LOG = logging.getLogger("cnnfeat")


def load_hdf5(path: Path) -> FlatGraph:
    """Load a whole model from HDF5 and trace it.

    Raises
    ------
    UntrustedModelError
        If its configuration holds code or unknown classes, or it links to other files.
    NetworkError
        If it holds no whole model, or only Keras 2 reads it and that isn't installed.
    """
    check_hdf5(path, name=str(path))
    config, version = _configuration(path)
    keras_trust.check_config(config, path=path)
    try:
        if not version.startswith("3"):
            keras_trust.check_meanings(json.dumps(config))
        with (
            keras_trust.regular_name(path, ".h5") as named,
            keras.saving.custom_object_scope(_operations(config)),
        ):
            model = keras.saving.load_model(str(named), compile=False, safe_mode=True)
        return trace_keras(model)
    except KERAS_ERRORS as error:
        if version.startswith("3"):
            raise unknown_class(path, error) or NetworkError(
                f"{path}: Keras {keras.__version__} can't read it: {first_line(error)}"
            ) from error
        _LOG.debug("%s: Keras 3 can't read it: %s", path, first_line(error))
        return load_legacy(path, ".h5", reason=error)


def _operations(config: object) -> dict[str, type]:
    """Keras's own operations (`x / 2`) in a model: Keras 3 writes them and doesn't find them again.

    Some have the name of a layer (`Subtract`), but no layer is without the key `trainable`.
    """
    known = {kind.__name__: kind for kind in _kinds(keras.Operation)}
    used: dict[str, bool] = {}
    waiting: list[object] = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            name, inner = item.get("class_name"), item.get("config")
            if isinstance(inner, Mapping) and name in known:
                used[str(name)] = used.get(str(name), True) and "trainable" not in inner
        waiting.extend(_inside(item))
    return {name: known[name] for name, always in used.items() if always}


def _kinds(parent: type) -> Iterator[type]:
    children: list[type] = parent.__subclasses__()
    for kind in children:
        if kind.__module__.startswith("keras.src.ops."):
            yield kind
            yield from _kinds(kind)


def _inside(item: object) -> list[object]:
    if isinstance(item, Mapping):
        return list(item.values())
    return item if isinstance(item, list) else []


def _configuration(path: Path) -> tuple[Mapping[str, object], str]:
    """The model's configuration and the version of Keras that wrote it."""
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        version = _text(file.attrs.get("keras_version", ""))
        if text is None:
            raise _no_model(path, file)
    try:
        config = json.loads(_text(text))
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{path}: its model_config can't be read: {error}") from error
    if not isinstance(config, dict):
        raise NetworkError(f"{path}: its model_config is no Keras configuration")
    return config, version


def _no_model(path: Path, file: h5py.File) -> NetworkError:
    if str(_text(file.attrs.get("format", ""))).startswith("cnnfeat"):
        return NetworkError(
            f"{path} is a file of features, no network", hint="`cnnfeat info` says what is in it"
        )
    keras_3 = "layers" in file or "_layer_checkpoint_dependencies" in file
    if "layer_names" in file.attrs or keras_3:
        return NetworkError(
            f"{path} holds weights only, not the network they belong to",
            hint="in Keras, build the model, load_weights(...), then save('model.keras')",
        )
    return NetworkError(f"{path} is an HDF5 file, but no Keras model: it has no model_config")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
