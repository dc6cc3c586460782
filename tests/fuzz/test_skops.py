"""Saved machines whose bytes, nodes, arrays or metadata were changed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.svm import svm_stage

SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
OPTIONS = {
    "linear": SvmOptions(C=1.0),
    "pca": SvmOptions(C=1.0, normalize="l2", pca=3, class_weight=(("1", 2.0),)),
    "calibrated": SvmOptions(C=1.0, normalize="none", probability=True),
    "rbf": SvmOptions(C=1.0, kernel="rbf"),
    "poly": SvmOptions(C=1.0, kernel="poly"),
    "nystroem": SvmOptions(C=1.0, kernel="nystroem"),
}
NODE = {
    "__loader__": (
        "ObjectNode", "DictNode", "ListNode", "TupleNode", "JsonNode", "NdArrayNode", "CachedNode",
        "FunctionNode", "TypeNode", "PartialNode", "MethodNode", "SetNode", "BytesNode",
        "ConstructorFromReduceNode", "RandomStateNode", "SparseMatrixNode", "SliceNode", "x", None,
    ),
    "__module__": (
        "builtins", "numpy", "posix", "os", "sklearn.svm._classes", "sklearn.pipeline", "", None,
        "sklearn.preprocessing._data", "sklearn.decomposition._pca", "collections", "numpy.random",
    ),
    "__class__": (
        "dict", "list", "tuple", "str", "int", "range", "bytearray", "eval", "system", "ndarray",
        "matrix", "float64", "int32", "bool", "void", "longdouble", "SVC", "NuSVC", "LinearSVC",
        "OneClassSVM", "PCA", "Pipeline", "StandardScaler", "Normalizer", "OrderedDict", 1,
    ),
    "type": ("numpy", "json", "x", None),
    "content": (
        None, "null", "NaN", "1e999", "[1]", "{}", "[" * 100_000, "9" * 5_000,
        '"\\ud800"', '"\\u0000"', "true", "1", "-1", "1e308", "1e-320", '"x"', [], {}, 3, "", "x",
    ),
    "file": ("x.npy", "../x", "", "schema.json", None, 3),
    "__id__": (0, 1, -1, "x", None),
    "protocol": (0, 1, 3, -1, "x"),
}  # fmt: skip
TYPES = ("<f8", ">f8", "<f4", "<f2", "<i4", ">i4", "<i8", "|u1", "|b1", "<c16", "<U3", "<M8[s]")
NUMBERS = (0.0, -1.0, 1e300, -1e300, 1e-300, np.nan, np.inf, 2**31 - 1, -(2**31), 2**20)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """Features, and a machine of each kind for two classes and for three."""
    X, y = load_digits(return_X_y=True)
    folder, made = tmp_path_factory.mktemp("machines"), []
    for n_classes in (2, 3):
        rows = np.flatnonzero(y < n_classes)[:60]
        features = folder / f"of{n_classes}.h5"
        write_arrays(
            features,
            {"train": {"x": X[rows, 8:24].astype(np.float32).reshape(-1, 4, 4)}},
            labels={"train": y[rows].astype(np.int64)},
            classes=tuple("012"[:n_classes]),
            attributes={"network": "model.keras", "network_sha256": "5f" * 32, "source": "digits"},
        )
        for kind, options in OPTIONS.items():
            svm_stage(features, folder / kind, options=options, overwrite=True)
            made.append((folder / kind / "svm.skops").read_bytes())
    return folder / "of2.h5", made


def nodes(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a schema."""
    found, waiting = [], [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict) and "__loader__" in item:
            found.append(item)
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
    return found


def change_nodes(random: Random, text: bytes) -> bytes:
    """Change what a few nodes are, exchange two, or put one into another."""
    schema = json.loads(text)
    for _ in range(random.choice((1, 1, 2, 4))):
        node, other = random.choice(nodes(schema)), random.choice(nodes(schema))
        how = random.randrange(5)
        if how <= 2:
            name = random.choice([name for name in NODE if name in node] or ["content"])
            node[name] = random.choice(NODE[name])
        elif how == 3:
            node.update(json.loads(json.dumps(other)))
        elif isinstance(node.get("content"), list | dict):
            content = node["content"]
            places = list(content) if isinstance(content, dict) else list(range(len(content)))
            if places:
                place = random.choice(places)
                if random.random() < 0.5:
                    del content[place]
                else:
                    content[place] = json.loads(json.dumps(other))
    return json.dumps(schema).encode()


def change_metadata(random: Random, text: bytes, values: tuple[Any, ...]) -> bytes:
    """Change one thing that the machine says of itself."""
    schema = json.loads(text)
    said = schema["content"]["content"]["cnnfeat_"]
    inner = random.choice([node for node in nodes(said) if node["__loader__"] == "JsonNode"])
    value = json.loads(inner["content"])
    odd = random.choice((*values, value * 2 if isinstance(value, int | str) else value, "\ud800"))
    inner["content"] = json.dumps(odd)
    if random.random() < 0.2:
        inner["content"] = json.dumps(json.dumps({"model": odd, "data": {"resize": odd}}))
    return json.dumps(schema).encode()


def change_array(random: Random, data: bytes) -> bytes:
    """Give an array another shape, type, order or other numbers."""
    array = np.load(io.BytesIO(data))
    how = random.randrange(7)
    if how == 0:
        array = np.zeros(array.shape, random.choice(TYPES))
    elif how == 1:
        shape = list(array.shape) or [1]
        place = random.randrange(len(shape))
        shape[place] = random.choice((0, 1, shape[place] - 1, shape[place] + 1, 2 * shape[place]))
        array = np.resize(array, [max(0, n) for n in shape])
    elif how == 2:
        array = random.choice((array.T, array[None], array.ravel(), array[::-1], np.sort(array)))
    elif how == 3 and array.size:
        array = array.astype(np.float64) if random.random() < 0.1 else array.copy()
        with np.errstate(all="ignore"):
            number = np.array(random.choice(NUMBERS)).astype(array.dtype)
        array.flat[random.randrange(array.size)] = number
    elif how == 4:
        array = np.full_like(array, random.choice((0, 1, 127)))
    elif how == 5:
        array = array.astype(array.dtype.newbyteorder(random.choice("<>")))
    else:
        array = np.asfortranarray(array)
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def repacked(data: bytes, changes: Mapping[str, Callable[[bytes], bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, bytes)(old.read(name)))
    return packed.getvalue()


def changed(random: Random, mutators: ModuleType, data: bytes) -> bytes:
    """A machine that is wrong in one way."""
    how = random.random()
    if how < 0.15:
        return mutators.change_bytes(random, data)
    if how < 0.25:
        return mutators.change_member(
            random, data, lambda random, name, content: mutators.change_bytes(random, content)
        )
    if how < 0.35:
        return repacked(data, {"schema.json": lambda text: mutators.change_document(random, text)})
    if how < 0.55:
        return repacked(data, {"schema.json": lambda text: change_nodes(random, text)})
    if how < 0.7:
        values = mutators.ODD_VALUES
        return repacked(data, {"schema.json": lambda text: change_metadata(random, text, values)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".npy"))
    chosen = random.sample(names, random.choice((1, 1, 1, 2)))
    return repacked(data, {name: lambda array: change_array(random, array) for name in chosen})


@pytest.mark.parametrize("n_inputs", [50, pytest.param(10_000, marks=SLOW)])
def test_changed_machines_end_in_a_named_error(fuzz, mutators, machines, n_inputs):
    features, sound = machines

    def make(random: Random, folder: Path) -> list[list[str]]:
        (folder / "svm.skops").write_bytes(changed(random, mutators, random.choice(sound)))
        commands = [
            ["predict", features, "--svm", "svm.skops", "--csv"],
            ["info", "svm.skops"],
        ]
        if random.random() < 0.1:
            commands.append(["predict", "digits", "--svm", "svm.skops"])
        return commands

    outcomes = fuzz(make, n_inputs)
    assert outcomes[3] and outcomes[0]
