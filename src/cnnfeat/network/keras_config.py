"""Configurations of Keras models, looked through before Keras builds what they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import keras

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.imports import NOTHING, Imported
from cnnfeat.network.keras_names import (
    CALLERS,
    attribute_computes,
    function_computes,
    is_kerass,
    only_computes,
    tensorflow_computes,
)
from cnnfeat.network.trust import is_pure

T = TypeVar("T")
_EXPORT = (
    "load it where it was made and export it as a SavedModel, model.export('folder'); "
    "what it runs is then checked as a graph"
)
_CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
_VALUES = {
    "__tuple__", "__keras_tensor__", "__bytes__", "__ellipsis__", "__slice__", "TensorShape",
}  # fmt: skip
_ARRAYS = {"__tensor__", "__numpy__"}
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16|complex(64|128)")
_OPENS_FILES = ("vocabulary", "filepath", "file_path", "path")
_MOST_CALLS = 100_000


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


def check_config(config: object, *, path: Path, own: Imported = NOTHING) -> None:
    """Refuse a configuration that names anything but what only computes.

    Parameters
    ----------
    config : object
        As JSON holds it, at most some 64 levels deep.
    path : Path
        Of the file, for messages.
    own : Imported
        Code that the user has named.

    Raises
    ------
    UntrustedModelError
        With the class or function and what to do.
    NetworkError
        If its models call one another more often than any network does.
    """
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            if "class_name" in item:
                _check_object(item, path, own)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    if (calls := _calls(config)) > _MOST_CALLS:
        raise NetworkError(f"{path}: its layers would be called {calls:,} times")


def _calls(item: object) -> int:
    """How often objects are made or called; what is inside a model, each time the model is."""
    if isinstance(item, list):
        return sum(map(_calls, item))
    if not isinstance(item, Mapping):
        return 0
    inside = sum(map(_calls, item.values()))
    nodes = item.get("inbound_nodes")
    times = max(1, len(nodes)) if isinstance(nodes, list) else 1
    return times * (1 + inside) if "class_name" in item else inside


def _check_object(item: Mapping[str, object], path: Path, own: Imported) -> None:
    name, module, inner = item["class_name"], item.get("module"), item.get("config")
    config = inner if isinstance(inner, Mapping) else {}
    label = config.get("name")
    layer = f"{name} {label!r}" if isinstance(label, str) else str(name)
    for key in _OPENS_FILES:
        if isinstance(config.get(key), str):
            raise UntrustedModelError(
                f"{path}: the layer {layer} would open the file {config[key]!r}", hint=_EXPORT
            )
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise not_kerass(path, layer, f"{module}.{name}")
    if re.split("[.>]", name)[-1] in _CODE:
        raise UntrustedModelError(f"{path}: the layer {layer} is code, not data", hint=_EXPORT)
    if name == "function":
        _check_function(inner, module, path, own)
    elif name in _ARRAYS:
        if not _NUMBERS.fullmatch(str(config.get("dtype"))):
            raise UntrustedModelError(f"{path}: it holds an array of {config.get('dtype')!r}")
    elif name not in _VALUES:
        _check_class(item, layer, path, own)


def _check_class(item: Mapping[str, object], layer: str, path: Path, own: Imported) -> None:
    name, module, registered = (
        str(item["class_name"]),
        item.get("module"),
        item.get("registered_name"),
    )
    module = module if isinstance(module, str) else None
    if own.knows(name, module) or _is_registered(registered) or _is_registered(name):
        return
    if registered not in (None, name, f"Custom>{name}"):
        raise not_kerass(path, layer, str(registered))
    if not only_computes(name, module):
        place = name if module is None else f"{module}.{name}"
        if is_kerass(name, module):
            raise _not_listed(path, layer, place)
        raise not_kerass(path, layer, place)
    config = item.get("config")
    if name in CALLERS and isinstance(config, Mapping):
        _check_call(name, config, layer, path)


def _is_registered(name: object) -> bool:
    """Whether this process itself has made a class or function known to Keras."""
    return isinstance(name, str) and name in keras.saving.get_custom_objects()


def _check_function(name: object, module: object, path: Path, own: Imported) -> None:
    if own.knows(name, module) or _is_registered(name):
        return
    if isinstance(name, str) and function_computes(name, str(module)):
        return
    if isinstance(name, str) and isinstance(module, str) and is_kerass(name, module):
        raise _not_listed(path, "a function", f"{module}.{name}")
    raise not_kerass(path, "a function", f"{module}.{name}", kind="function")


def _check_call(name: str, config: Mapping[str, object], layer: str, path: Path) -> None:
    """Look at what a layer of Keras 2 calls, by what kind of layer it is."""
    if name == "TensorFlowOpLayer":
        node = config.get("node_def")
        called = node.get("op") if isinstance(node, Mapping) else node
        computes = isinstance(called, str) and is_pure(called) and "'func'" not in str(node)
    elif name in ("TFOpLambda", "SlicingOpLambda"):
        called = config.get("function")
        computes = isinstance(called, str) and tensorflow_computes(called)
    else:
        of_class, called = (
            config.get("cls_symbol"),
            config.get("method_name", config.get("attr_name")),
        )
        kind = str(of_class) if name == "ClassMethod" else None
        computes = isinstance(called, str) and attribute_computes(called, kind)
    if not computes:
        raise UntrustedModelError(
            f"{path}: the layer {layer} calls tf.{called}, which is not on the list of functions "
            f"without side effects",
            hint=_EXPORT,
        )


def _not_listed(path: Path, what: str, place: str) -> UntrustedModelError:
    return UntrustedModelError(
        f"{path}: {what} is {place}, which is not on the list of what only computes", hint=_EXPORT
    )


def not_kerass(path: Path, layer: str, name: str, *, kind: str = "class") -> UntrustedModelError:
    """Make the error for a class, or a function, that is not Keras's own."""
    told = "is not" if kind == "function" else "is of a class that is not"
    return UntrustedModelError(
        f"{path}: {layer} {told} Keras's own: {name}",
        hint=f"--import my_layers.py runs the code that defines it, if you have it; {_EXPORT}; "
        f"in Python, keras.saving.register_keras_serializable makes a class known",
    )


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
            return not_kerass(path, "a layer", match.group(1) or match.group(2))
        told = told.__cause__ or told.__context__
    return None


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
