"""Whole models of Keras: `.keras` archives and HDF5, of Keras 3 and of Keras 2."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import h5py
import keras
import tensorflow as tf

from cnnfeat.documents import parse_document
from cnnfeat.errors import MissingInputError, NetworkError
from cnnfeat.network.formats import read_json
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.imports import NOTHING, Imported
from cnnfeat.network.keras_archive import as_keras_reads_it
from cnnfeat.network.keras_config import (
    check_config,
    check_meanings,
    unknown_class,
    without_compilation,
)
from cnnfeat.network.keras_homes import check_axes, with_homes
from cnnfeat.network.keras_nodes import check_order
from cnnfeat.network.keras_trust import (
    KERAS_ERRORS,
    check_archive,
    check_hdf5,
    check_promise,
    is_keras_2,
    regular_name,
)
from cnnfeat.network.telling import told
from cnnfeat.network.tracing import trace, trace_any_size, trace_keras

_LOG = logging.getLogger("cnnfeat")
_LEGACY_HINT = "Keras 2 may read it: pip install 'cnnfeat[legacy]'"
_KERAS_2_ONLY = (
    "TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceProperty", "InstanceMethod",
    "ThresholdedReLU", "LocallyConnected", "CuDNNLSTM", "CuDNNGRU", "'Functional'",
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Keras's warnings off stderr: they are of how a model was written, not of what it is."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@quiet()
def load_keras(path: Path, own: Imported = NOTHING) -> FlatGraph:
    """Load a `.keras` file and trace it, with layers of the user's `own` code.

    Raises
    ------
    UntrustedModelError
        If its configuration holds code or classes that are not Keras's own.
    NetworkError
        If it can't be read.
    """
    config = check_archive(path, own)
    with as_keras_reads_it(path, config) as readable:
        try:
            if is_keras_2(path):
                check_meanings(json.dumps(config))
            with regular_name(readable, ".keras") as named:
                model = keras.saving.load_model(named, compile=False, safe_mode=True)
            return trace_keras(model, config)
        except KERAS_ERRORS as error:
            if is_keras_2(path):
                return _load_keras_2(readable, ".keras", config, reason=error, name=path)
            raise unknown_class(path, error) or NetworkError(
                f"{path}: Keras {keras.__version__} can't read it: {told(error)}"
            ) from error


@quiet()
def load_weights(path: Path, architecture: Path, own: Imported = NOTHING) -> FlatGraph:
    """Load a file of weights into the model whose JSON is given, and trace it.

    Raises
    ------
    MissingInputError
        If there is no such JSON.
    UntrustedModelError
        If it holds code, or is of classes that are not Keras's or the user's `own`.
    NetworkError
        If the weights don't fit it.
    """
    if not architecture.is_file():
        raise MissingInputError(f"there is no architecture {architecture}")
    stored = check_hdf5(path, name=str(path))
    with _opened(path) as file:
        if "model_config" in file.attrs:
            raise NetworkError(f"{path} is a whole model: it has an architecture of its own")
        suffix = ".h5" if "layer_names" in file.attrs else ".weights.h5"
    config = read_json(architecture, otherwise=" is no Keras configuration")
    config = without_compilation(config)
    check_config(config, path=architecture, own=own)
    check_promise(config, stored, path)
    reasons = []
    for library in (keras, keras_2()):
        if library is None:
            continue
        if library is not keras:
            check_order(config, path=architecture)
        try:
            with regular_name(path, suffix) as named:
                if library is keras and not str(config.get("keras_version", "3")).startswith("3"):
                    check_meanings(json.dumps(config))
                model = library.models.model_from_json(json.dumps(config))
                model.load_weights(str(named))
            if library is keras:
                return trace_keras(model, config)
            return trace_keras_2(model, library.layers.Layer, path=str(path))
        except KERAS_ERRORS as error:
            reasons.append(error)
    raise unknown_class(architecture, reasons[-1]) or NetworkError(
        f"{path}: no weights of the model in {architecture}: {told(reasons[-1])}"
    ) from reasons[-1]


@quiet()
def load_hdf5(path: Path, own: Imported = NOTHING) -> FlatGraph:
    """Load a whole model from HDF5 and trace it, with layers of the user's `own` code.

    Raises
    ------
    UntrustedModelError
        If its configuration holds code or unknown classes, or it links to other files.
    NetworkError
        If it holds no whole model, or only Keras 2 reads it and that isn't installed.
    """
    stored = check_hdf5(path, name=str(path))
    config, version = _configuration(path)
    _refuse_keras_1(config, version, path)
    of_keras_3 = version.startswith("3")
    if of_keras_3:
        config = {**config, **without_compilation(config)}
    check_config(config, path=path, own=own)
    if of_keras_3:
        config = with_homes(config, own)
    check_promise(config, stored, path)
    try:
        with regular_name(path, ".h5") as named:
            if of_keras_3:
                model = keras.saving.deserialize_keras_object(config, safe_mode=True)
                model.load_weights(str(named))
            else:
                check_meanings(json.dumps(config))
                check_axes(config)
                model = keras.saving.load_model(str(named), compile=False, safe_mode=True)
        return trace_keras(model)
    except KERAS_ERRORS as error:
        if of_keras_3:
            raise unknown_class(path, error) or NetworkError(
                f"{path}: Keras {keras.__version__} can't read it: {told(error)}"
            ) from error
        _LOG.debug("%s: Keras 3 can't read it: %s", path, told(error))
        return _load_keras_2(path, ".h5", config, reason=error)


def _refuse_keras_1(config: Mapping[str, object], version: str, path: Path) -> None:
    """Refuse what was made by a Keras that none of today reads."""
    old = ('"nb_filter"', '"border_mode"', '"output_dim_', '"Convolution2D"')
    text = json.dumps(config)
    if version.startswith(("0.", "1.")) or (not version and any(word in text for word in old)):
        raise NetworkError(
            f"{path} was made by Keras {version or 1}, whose layers later ones don't read",
            hint="Keras 2.0 to 2.3 reads it: load it there, and save it again",
        )


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file of HDF5, whose attributes may be damaged where its groups are not."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except NetworkError:
        raise
    except KERAS_ERRORS as error:
        raise NetworkError(f"{path}: damaged HDF5: {error}") from error


def _configuration(path: Path) -> tuple[Mapping[str, object], str]:
    """The model's configuration and the version of Keras that wrote it."""
    with _opened(path) as file:
        text = file.attrs.get("model_config")
        version = _text(file.attrs.get("keras_version", ""))
        if text is None:
            raise _no_model(path, file)
    try:
        return parse_document(_text(text), finite=False), version
    except ValueError as error:
        raise NetworkError(f"{path}: its model_config can't be read: {error}") from error


def _no_model(path: Path, file: h5py.File) -> NetworkError:
    if str(_text(file.attrs.get("format", ""))).startswith("cnnfeat"):
        return NetworkError(
            f"{path} is a file of features, no network", hint="`cnnfeat info` says what is in it"
        )
    keras_3 = "layers" in file or "_layer_checkpoint_dependencies" in file
    if "layer_names" in file.attrs or keras_3:
        return NetworkError(
            f"{path} holds weights only, not the network they belong to",
            hint="--architecture model.json (of model.to_json()) or keras:NAME says which; or, "
            "in Keras, build the model, load_weights(...), then save('model.keras')",
        )
    return NetworkError(f"{path} is an HDF5 file, but no Keras model: it has no model_config")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _load_keras_2(
    readable: Path,
    suffix: str,
    config: Mapping[str, object],
    *,
    reason: Exception,
    name: Path | None = None,
) -> FlatGraph:
    """Load a file of Keras 2 with Keras 2; `tf-keras`, an extra, is Keras 2 kept alive.

    Parameters
    ----------
    readable : Path
        The file, or a copy of it.
    suffix : str
        The ending Keras wants to see.
    config : mapping
        The model's configuration.
    reason : Exception
        What Keras 3 said.
    name : Path, optional
        The file as it was given, where `readable` is a copy.

    Raises
    ------
    NetworkError
        If `tf-keras` is not installed, or can't read it either.
    """
    tf_keras, path = keras_2(), name or readable
    if tf_keras is None:
        stranger = unknown_class(path, reason)
        if stranger is not None and not any(name in str(reason) for name in _KERAS_2_ONLY):
            raise stranger from reason
        raise NetworkError(
            f"{path}: a Keras 2 file that Keras {keras.__version__} can't read: {told(reason)}",
            hint=_LEGACY_HINT,
        ) from reason
    check_order(config, path=path)
    try:
        with regular_name(readable, suffix) as named:
            model = tf_keras.models.load_model(str(named), compile=False, safe_mode=True)
    except KERAS_ERRORS as error:
        raise unknown_class(path, error) or NetworkError(
            f"{path}: neither Keras {keras.__version__} nor Keras {tf_keras.__version__} reads it: "
            f"{told(error)}",
            hint="load it where it was made and export it as a SavedModel",
        ) from error
    return trace_keras_2(model, tf_keras.layers.Layer, path=str(path))


def trace_keras_2(model: tf.Module, layer: type, *, path: str) -> FlatGraph:
    """Trace a built model of `tf-keras`, whose class of layers is `layer`.

    Raises
    ------
    NetworkError
        If nothing says what images it takes.
    """
    if model.inputs is None and getattr(model, "layers", None):
        n_weights = sum(len(one.weights) for one in model.layers)
        with suppress(*KERAS_ERRORS):  # a sequence whose first layer is a model says it there
            model.build(model.layers[0].input_shape)
        if sum(len(one.weights) for one in model.layers) != n_weights:  # new ones, of no file
            raise NetworkError(f"{path}: it holds no weights of some of its layers")
    if model.inputs is None:
        raise NetworkError(
            f"{path}: the model doesn't say what shape its input has",
            hint="where it was made, call it once and save it again",
        )
    specs = [tf.TensorSpec(item.shape, item.dtype, name=item.name) for item in model.inputs]
    struct = getattr(model, "_nested_inputs", None)
    struct = model.inputs if struct is None else struct

    def pack(tensors: Sequence[tf.Tensor]) -> object:
        return tf.nest.pack_sequence_as(struct, tensors)

    def make(specs: Sequence[tf.TensorSpec]) -> FlatGraph:
        return trace(model, call_owner=layer, specs=specs, pack=pack)

    return trace_any_size(specs, make)


def keras_2() -> ModuleType | None:
    try:
        import tf_keras
    except ImportError:
        return None
    module: ModuleType = tf_keras
    return module
