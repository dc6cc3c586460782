"""Keras files whose bytes, members or configurations were changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import h5py
import pytest

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]
NAMES = (
    "Dense", "layers.Lambda", "Lambda", "Conv2D", "Functional", "Sequential", "Model", "Add",
    "Multiply", "Activation", "Embedding", "LSTM", "Reshape", "Bidirectional", "TimeDistributed",
    "TFSMLayer", "function", "__lambda__", "__numpy__", "__tensor__", "__slice__", "InputLayer",
    "MultiHeadAttention", "TFOpLambda", "DTypePolicy", "Zeros", "Orthogonal", "keras", "builtins",
    "keras.layers", "keras.utils", "keras.src.ops.numpy", "keras.initializers", "get_file", "relu",
    "softmax", "same", "channels_first", "float16", "string", "int64", "complex64", "scale", "c",
    -2, 3, 7, 10**6, 10**9, 2**40, [1, 1], [0, 0], [8, 8, 1], [None, None, None, 1], [-1],
    {"class_name": "function", "module": "keras.utils", "config": "get_file"},
    {"class_name": "Lambda", "module": "keras.layers", "config": {"function": "x"}},
    {"class_name": "__numpy__", "config": {"value": [1], "dtype": "float32"}},
    {"class_name": "GlorotUniform", "module": "keras.initializers", "config": {"seed": None}},
)  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A small network as Keras 3 and Keras 2 save it, by name of its file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import warnings

    import keras
    import tf_keras

    folder = tmp_path_factory.mktemp("networks")
    with warnings.catch_warnings(action="ignore"):
        for library in (keras, tf_keras):
            layers = library.layers
            image = library.Input((8, 8, 1), name="image")
            x = layers.Rescaling(1 / 255, name="scale")(image)
            x = layers.Conv2D(2, 3, padding="same", activation="relu", name="c")(x)
            y = layers.BatchNormalization(name="n")(x)
            body = library.Sequential([library.Input((8, 8, 2)), layers.Conv2D(2, 1)], name="body")
            x = layers.MaxPooling2D(name="p")(layers.Add(name="a")([body(y), x]) * 2.0)
            model = library.Model(image, layers.Dense(3, name="d")(layers.Flatten(name="f")(x)))
            model.save(folder / f"{library.__name__}.keras")
            model.save(folder / f"{library.__name__}.h5")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_changed(
    random: Random, data: bytes, path: Path, mutators: ModuleType, values: tuple[Any, ...]
) -> None:
    """Write a network with its bytes, a member or its configuration changed."""

    def change(random: Random, name: str, content: bytes) -> bytes:
        if name.endswith(".json") and random.random() < 0.8:
            return mutators.change_document(random, content, values=values)
        return mutators.change_bytes(random, content)

    how = random.random()
    if how < 0.25:
        path.write_bytes(mutators.change_bytes(random, data))
    elif path.suffix == ".keras":
        path.write_bytes(mutators.change_member(random, data, change))
    else:
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            text = change(random, ".json", file.attrs["model_config"].encode())
            try:
                file.attrs["model_config"] = text.decode("utf-8", "replace").replace("\0", "")
            except (ValueError, RuntimeError):  # too long for an attribute
                file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": []})


@pytest.mark.parametrize("n_inputs", [15, pytest.param(2_500, marks=SLOW)])
@pytest.mark.parametrize("name", ["keras.keras", "keras.h5", "tf_keras.keras", "tf_keras.h5"])
def test_changed_networks_end_in_a_named_error(fuzz, mutators, networks, name, n_inputs):
    values = (*mutators.ODD_VALUES, *NAMES, *NAMES)

    def make(random: Random, folder: Path) -> list[list[str]]:
        write_changed(random, networks[name], folder / name, mutators, values)
        return [["layers", name]]

    outcomes = fuzz(make, n_inputs)
    assert outcomes[4]
    assert outcomes[0]
