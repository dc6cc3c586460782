"""What is looked at in a Keras file before Keras may read it, and what Keras says if it can't.

A configuration names classes, and Keras imports and builds what it names. Only Keras's own layers
pass, and classes this process registered itself; never code, and nothing that opens other files.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import IO, TypeVar

import h5py
import keras
import tensorflow as tf

from cnnfeat.documents import parse_document
from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.formats import opened_archive
from cnnfeat.network.imports import NOTHING, Imported

T = TypeVar("T")
_WEIGHTS = "model.weights.h5"
_EXPORT = (
    "load it where it was made and export it as a SavedModel, model.export('folder'); "
    "what it runs is then checked as a graph"
)
_CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
_OPENS_FILES = ("vocabulary", "filepath", "file_path", "path")
_SIZES = ("units", "filters", "input_dim", "output_dim", "depth_multiplier", "num_heads", "key_dim")
_FUNCTION_HOMES = ("activations", "initializers", "losses", "metrics", "ops", "regularizers")
_KERAS_2_FUNCTIONS = (
    "__operators__", "math", "nn", "image", "linalg", "keras.backend", "compat.v1.transpose",
    "compat.v1.nn", "compat.v1.shape", "compat.v1.squeeze", "compat.v1.gather", "cast",
    "concat", "expand_dims", "squeeze", "reshape", "transpose", "shape", "split", "stack",
    "unstack", "strided_slice", "slice", "tile", "pad", "gather", "where", "zeros_like",
    "ones_like", "identity", "clip_by_value", "reverse", "broadcast_to", "fill", "rank",
    "stop_gradient", "convert_to_tensor", "one_hot", "sigmoid", "tanh", "nest", "debugging.assert",
    "ensure_shape", "repeat", "tensordot", "einsum", "sort", "argsort", "range", "eye", "roll",
    "norm", "meshgrid", "gather_nd", "tensor_scatter_nd_update", "sequence_mask", "signal",
    "space_to_batch", "batch_to_space", "saturate_cast", "bitcast", "zeros", "ones",
    "random.normal", "random.uniform",
)  # fmt: skip
_HDF5_SLACK_BYTES = 1 << 20
_HDF5_RATIO = (
    1_000  # declared bytes for one stored byte; more than any compression of weights gives
)
KERAS_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, OSError, AttributeError, ImportError,
    NotImplementedError, RuntimeError, tf.errors.OpError,
)  # fmt: skip


def check_archive(path: Path, own: Imported = NOTHING) -> Mapping[str, object]:
    """Look through a `.keras` archive and return its configuration.

    Parameters
    ----------
    path : Path
        The archive.
    own : Imported
        Code that the user has named.

    Raises
    ------
    UntrustedModelError
        If the archive would write outside itself or fill the memory, or its configuration holds
        code.
    NetworkError
        If it is no Keras archive, or damaged.
    """
    with opened_archive(path) as archive:
        archive.check()
        text = archive.read("config.json")
        if _WEIGHTS not in archive.names:
            raise NetworkError(f"{path}: a .keras archive without weights: it has no {_WEIGHTS}")
        with archive.seekable(_WEIGHTS) as weights:
            stored = check_hdf5(weights, name=f"{path}: {_WEIGHTS}")
    try:
        config = without_compilation(parse_document(text, finite=False))
    except ValueError as error:
        raise NetworkError(f"{path}: its config.json can't be read: {error}") from error
    check_config(config, path=path, own=own)
    check_promise(config, stored, path)
    return config


def without_compilation(config: T) -> T:
    """Leave out what models were compiled with, losses and the like: it is never loaded."""
    if isinstance(config, Mapping):
        return {  # type: ignore[return-value]
            key: without_compilation(value)
            for key, value in config.items()
            if key != "compile_config" or "class_name" not in config
        }
    if isinstance(config, list):
        return [without_compilation(one) for one in config]  # type: ignore[return-value]
    return config


def check_promise(config: Mapping[str, object], stored: int, path: Path) -> None:
    """Refuse a configuration whose weights would be far more than the file holds.

    The model is built without its weights: in a stateless scope Keras makes no arrays, and what
    it computes from shapes stays in a graph that is never run.

    Raises
    ------
    UntrustedModelError
        With both numbers.
    """
    copy = dict(deepcopy(config))
    try:
        with tf.Graph().as_default(), keras.StatelessScope():
            model = keras.saving.deserialize_keras_object(copy, safe_mode=True)
            promised = sum(math.prod(variable.shape) for variable in model.variables)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError):
        promised = _largest(config)  # no layer has fewer weights than units
    if promised > 2 * stored + (1 << 20):
        raise UntrustedModelError(
            f"{path}: its layers have {promised:,} weights, and the file holds {stored:,}",
            hint="the file is damaged, or made to fill the memory",
        )


def _largest(config: object) -> int:
    """The largest number of units, filters or the like in a configuration."""
    if isinstance(config, Mapping):
        sizes = [value for key, value in config.items() if key in _SIZES and type(value) is int]
        return max([0, *sizes, *(_largest(value) for value in config.values())])
    if isinstance(config, list):
        return max([0, *(_largest(value) for value in config)])
    return 0


def check_config(config: object, *, path: Path, own: Imported = NOTHING) -> None:
    """Refuse a configuration that holds code or names classes that are not Keras's.

    Raises
    ------
    UntrustedModelError
        With the class and what to do.
    """
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            _check_item(item, path, own)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check_item(item: Mapping[str, object], path: Path, own: Imported) -> None:
    name = item.get("class_name")
    if not isinstance(name, str):
        return
    module, registered = item.get("module"), item.get("registered_name")
    inner = item.get("config")
    config = inner if isinstance(inner, Mapping) else {}
    label = config.get("name")
    layer = f"{name} {label!r}" if label else name
    known = keras.saving.get_custom_objects()
    if name in _CODE:
        raise UntrustedModelError(f"{path}: the layer {layer} is code, not data", hint=_EXPORT)
    if name in ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod"):
        _check_function(str(config.get("function", "")), layer, path)
    for key in _OPENS_FILES:
        if isinstance(config.get(key), str):
            raise UntrustedModelError(
                f"{path}: the layer {layer} would open the file {config[key]!r}", hint=_EXPORT
            )
    if registered in known or name in known or own.knows(name, module):
        return
    if name == "function" and own.knows(inner, module):
        return
    if name == "function":
        _check_named_function(module, inner, path)
    elif module is not None and not _is_keras(module) and name not in ("__tuple__",):
        raise _unregistered(path, layer, f"{module}.{name}")
    elif isinstance(registered, str) and ">" in registered and not registered.startswith("keras"):
        raise _unregistered(path, layer, registered)


def _check_named_function(module: object, name: object, path: Path) -> None:
    homes = str(module).removeprefix("keras.").removeprefix("src.").split(".")
    if module in (None, "builtins") or not _is_keras(module) or homes[0] not in _FUNCTION_HOMES:
        raise _unregistered(path, "function", f"{module}.{name}")


def _check_function(function: str, layer: str, path: Path) -> None:
    """Keras 2 wraps TensorFlow functions as layers: only those that compute pass."""
    allowed = any(
        function == prefix or function.startswith(f"{prefix}.") for prefix in _KERAS_2_FUNCTIONS
    )
    if function and not allowed:
        raise UntrustedModelError(
            f"{path}: the layer {layer} calls tf.{function}, which is not on the list of functions "
            f"without side effects",
            hint=_EXPORT,
        )


def _is_keras(module: object) -> bool:
    return isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras")


def _unregistered(path: Path, layer: str, name: str) -> UntrustedModelError:
    """Make the error for a class that is not Keras's own."""
    return UntrustedModelError(
        f"{path}: {layer} is of a class that is not Keras's own: {name}",
        hint=f"--import my_layers.py runs the code that defines it, if you have it; {_EXPORT}; "
        f"in Python, keras.saving.register_keras_serializable makes a class known",
    )


def is_keras_2(path: Path) -> bool:
    """Whether a `.keras` archive says that Keras 2 wrote it."""
    with opened_archive(path) as archive:
        if "metadata.json" not in archive.names:
            return False
        text = archive.read("metadata.json").decode("utf-8", "replace")
    return '"keras_version": "2' in text


def check_meanings(text: str) -> None:
    """Raise where a configuration of Keras 2 means something else to Keras 3.

    Keras 2's `hard_sigmoid`, the gate of old recurrent layers, is 0.2 x + 0.5; Keras 3's is
    x / 6 + 0.5.

    Raises
    ------
    ValueError
        Saying what.
    """
    if '"hard_sigmoid"' in text:
        raise ValueError("hard_sigmoid is another function in Keras 3")


@contextmanager
def regular_name(path: Path, suffix: str) -> Iterator[Path]:
    """Give a file the ending Keras wants to see, where it has another."""
    if path.name.endswith(suffix) and (suffix != ".h5" or not path.name.endswith(".weights.h5")):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
        named = Path(folder) / f"{path.stem or 'model'}{suffix}"
        named.symlink_to(path.resolve())
        yield named


def check_hdf5(file: IO[bytes] | Path, *, name: str) -> int:
    """Walk a file's links and datasets without reading any data.

    Returns
    -------
    int
        How many numbers its datasets hold.

    Raises
    ------
    UntrustedModelError
        If something in it points out of it, or declares far more than it holds.
    NetworkError
        If it is damaged.
    """
    try:
        with h5py.File(file, "r", locking=False) as opened:
            return _check_group(opened, name, seen=set())
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, UntrustedModelError):
            raise
        raise NetworkError(f"{name}: damaged HDF5: {error}") from error


def _check_group(group: h5py.Group, name: str, *, seen: set[int]) -> int:
    numbers = 0
    for key in group:
        where = f"{group.name.rstrip('/')}/{key}"
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UntrustedModelError(
                f"{name}: {where} is an external link to {link.filename!r}: a model reads no "
                f"other files",
                hint="get the model from someone you trust",
            )
        if isinstance(link, h5py.SoftLink):
            raise UntrustedModelError(
                f"{name}: {where} is a link to {link.path!r}; Keras writes none",
                hint="get the model from someone you trust",
            )
        item = group[key]
        if isinstance(item, h5py.Dataset):
            numbers += _check_dataset(item, name)
        elif isinstance(item, h5py.Group):
            address = h5py.h5o.get_info(item.id).addr
            if address not in seen:
                seen.add(address)
                numbers += _check_group(item, name, seen=seen)
    return numbers


def _check_dataset(dataset: h5py.Dataset, name: str) -> int:
    if dataset.is_virtual or dataset.external:
        raise UntrustedModelError(
            f"{name}: {dataset.name} keeps its data in other files; a model reads none",
            hint="get the model from someone you trust",
        )
    declared = dataset.nbytes if dataset.shape is not None else 0
    stored = dataset.id.get_storage_size()
    if declared > _HDF5_SLACK_BYTES + _HDF5_RATIO * stored:
        raise UntrustedModelError(
            f"{name}: {dataset.name} declares {dataset.shape}, {declared:,} bytes, and holds "
            f"{stored:,}",
            hint="the file is damaged, or made to fill the memory",
        )
    return int(dataset.size or 0)


def unknown_class(path: Path, error: BaseException) -> UntrustedModelError | None:
    """Say it plainly where Keras failed for want of a class that somebody wrote."""
    told: BaseException | None = error
    while told is not None:
        match = re.search(
            r"(?:Unknown layer|Could not locate class|Unknown object): ?'?(\w+)"
            r"|Could not locate (?:class|function) '([\w>.]+)'",
            str(told),
        )
        if match is not None:
            return _unregistered(path, "a layer", match.group(1) or match.group(2))
        told = told.__cause__ or told.__context__
    return None
