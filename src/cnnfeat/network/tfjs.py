"""Layers models of TensorFlow.js: `model.json`, and shards of weights beside it.

They are Keras models with their weights in another place, so they are brought into Keras's own
HDF5 form and read as that is, with all that is checked there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.formats import opened, read_json, refuse_pointer
from cnnfeat.regular import is_inside
from cnnfeat.temporary import temporary_folder

_TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "bool": "?",
          "uint16": "<u2", "int8": "i1"}  # fmt: skip


@contextmanager
def as_hdf5(path: Path) -> Iterator[Path]:
    """Write a layers model as a file of Keras, for the length of the block.

    Parameters
    ----------
    path : Path
        `model.json`.

    Raises
    ------
    NetworkError
        If it is no such model, or a shard is missing or too short.
    """
    document = read_json(path, otherwise=": no model of TensorFlow.js")
    topology = document.get("modelTopology")
    if not isinstance(topology, Mapping):
        raise NetworkError(
            f"{path}: a graph model of TensorFlow.js, or no model of it",
            hint="layers models are read; of a graph model give the SavedModel it was made from",
        )
    config = topology.get("model_config", topology)
    version = str(topology.get("keras_version", ""))
    version = version.removeprefix("tfjs-layers ") if version[:1].isdigit() else "2.0"
    weights = _weights(path, document.get("weightsManifest"))
    with temporary_folder() as folder:
        whole = folder / f"{path.stem}.h5"
        with h5py.File(whole, "w") as file:
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = version
            _store(file.create_group("model_weights"), config, weights, path)
        yield whole


def _weights(path: Path, manifest: object) -> dict[str, NDArray[np.generic]]:
    """Read the shards: each group is one run of bytes, however it is divided."""
    found: dict[str, NDArray[np.generic]] = {}
    for group in manifest if isinstance(manifest, list) else []:
        paths = group.get("paths", []) if isinstance(group, Mapping) else []
        data = b"".join(_shard(path.parent, str(name)) for name in paths)
        start = 0
        for spec in group.get("weights", []):
            start, found[str(spec["name"])] = _weight(path, spec, data, start)
    return found


def _shard(folder: Path, name: str) -> bytes:
    shard = folder / name
    if not is_inside(shard, folder):
        raise UntrustedModelError(f"{name} lies outside {folder}: a model reads no other files")
    if not shard.is_file():
        raise NetworkError(
            f"weights are missing: there is no {shard}", hint="shards lie beside model.json"
        )
    with opened(shard) as file:
        data = file.read()
    refuse_pointer(shard, data[:64])
    return data


def _weight(
    path: Path, spec: Mapping[str, object], data: bytes, start: int
) -> tuple[int, NDArray[np.generic]]:
    """Read one weight; those that were quantised become numbers again."""
    name, shape = spec.get("name"), spec.get("shape")
    packed = spec.get("quantization")
    how = packed if isinstance(packed, Mapping) else {}
    dtype = _TYPES.get(str(how.get("dtype", spec.get("dtype"))))
    if dtype is None or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise NetworkError(f"{path}: the weight {name!r} is of a type that isn't known here")
    stop = start + math.prod(shape) * np.dtype(dtype).itemsize
    if not 0 <= start <= stop <= len(data):
        raise NetworkError(f"{path}: its shards end before the weight {name!r} does")
    value = np.frombuffer(data[start:stop], dtype).reshape(shape)
    if "scale" in how:
        value = value * np.float32(how["scale"]) + np.float32(how.get("min", 0))
    own = _TYPES.get(str(spec.get("dtype")), "<f4")
    return stop, value.astype(own)


def _store(
    group: h5py.Group,
    config: object,
    weights: Mapping[str, NDArray[np.generic]],
    path: Path,
) -> None:
    """Lay weights down by the outer layer they belong to, as Keras does."""
    layers = [(name, {name, *inner}) for name, inner in _layers(config)]
    names: dict[str, list[str]] = {name: [] for name, _ in layers}
    for weight in weights:
        parts = weight.split("/")
        home = next((n for part in parts[:-1] for n, own in layers if part in own), None)
        if home is None:
            raise NetworkError(f"{path}: the weight {weight!r} belongs to no layer")
        names[home].append(weight)
    group.attrs["layer_names"] = [name.encode() for name in names]
    group.attrs["backend"] = b"tensorflow"
    for layer, own in names.items():
        inside = group.create_group(layer)
        inside.attrs["weight_names"] = [name.encode() for name in own]
        for name in own:
            inside[name] = weights[name]


def _layers(config: object) -> list[tuple[str, list[str]]]:
    """Layers of a configuration, each with the names of those inside it."""
    inner = config.get("config") if isinstance(config, Mapping) else None
    listed: object = inner.get("layers") if isinstance(inner, Mapping) else inner
    found = []
    for item in listed if isinstance(listed, Sequence) and not isinstance(listed, str) else []:
        if isinstance(item, Mapping) and isinstance(item.get("config"), Mapping):
            name = str(item.get("name") or item["config"].get("name"))
            below = [n for one, more in _layers(item) for n in (one, *more)]
            wrapped = item["config"].get("layer")
            if isinstance(wrapped, Mapping) and isinstance(wrapped.get("config"), Mapping):
                below.append(str(wrapped["config"].get("name")))
            found.append((name, below))
    return found
