"""Configurations in HDF5: Keras 3 writes them without the modules that its classes lie in.

Reading such ones, it takes an operation (`x + 1`) for the layer of its name, finds no operation
that isn't a layer, too, and leaves out an `axis` of several numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TypeVar

import keras

from cnnfeat.network.imports import Imported
from cnnfeat.network.keras_names import MODELS, OF_APPLICATIONS, only_computes

T = TypeVar("T")


def with_homes(config: T, own: Imported) -> T:
    """Copy a configuration, and say of each layer and operation where it lies.

    Parameters
    ----------
    config : object
        As JSON holds it.
    own : Imported
        Code that the user has named, whose classes have no home in Keras.
    """
    if isinstance(config, list):
        return [with_homes(one, own) for one in config]  # type: ignore[return-value]
    if not isinstance(config, Mapping):
        return config
    copy = {key: with_homes(value, own) for key, value in config.items()}
    name = copy.get("class_name")
    if isinstance(name, str) and "module" not in copy and not own.knows(name, None):
        home = _home(name, copy.get("config"))
        copy |= {} if home is None else {"module": home}
    return copy  # type: ignore[return-value]


def check_axes(config: object) -> None:
    """Raise where Keras 3 would leave out what Keras 2 wrote: an `axis` of several numbers.

    Raises
    ------
    ValueError
        With the axes.
    """
    if isinstance(config, Mapping):
        axis = config.get("axis")
        if isinstance(axis, list) and len(axis) > 1:
            raise ValueError(f"Keras 3 leaves out the axes {axis} of files of Keras 2")
    for item in _inside(config):
        check_axes(item)


def _home(name: str, config: object) -> str | None:
    """The module of a class of Keras, or None; no layer is without the key `trainable`."""
    if isinstance(config, Mapping) and "trainable" not in config and name in _operations():
        return _operations()[name]
    for module, names in OF_APPLICATIONS.items():
        if name in names:
            return module
    if name in MODELS:
        return str(getattr(keras.src.models, name).__module__)
    is_layer = hasattr(keras.layers, name) and only_computes(name, "keras.layers")
    return "keras.layers" if is_layer else None


@cache
def _operations() -> dict[str, str]:
    return {kind.__name__: kind.__module__ for kind in _kinds(keras.Operation)}


def _kinds(parent: type) -> Iterator[type]:
    children: list[type] = parent.__subclasses__()
    for kind in children:
        if kind.__module__.startswith("keras.src.ops."):
            yield kind
            yield from _kinds(kind)


def _inside(item: object) -> list[object]:
    """What a list or a mapping holds."""
    if isinstance(item, Mapping):
        return list(item.values())
    return item if isinstance(item, list) else []
