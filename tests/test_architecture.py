"""The house rules: who may import whom, who owns which library, how long a module gets."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "cnnfeat"

# A room may import rooms of a lower level, and itself.
LEVELS = [
    {"errors", "memory", "processor", "regular", "temporary", "watch"},
    {"records", "progress", "documents", "archives", "npyheader", "address", "patterns"},
    {"files", "knobs", "store", "parts", "shards", "brightness", "pixels", "spelling"},
    {"options", "card", "result", "stages", "divided", "provenance", "transfer"},
    {"data", "network", "features", "configfile", "copies"},
    {"pictures", "origin"},
    {"export"},
    {"extraction", "svm"},
    {"activations"},
    {"report", "transformer", "prediction", "artifact"},
    {"pipeline", "predictor"},
    {"cluster"},
    {"commands", "doctor"},
    {"cli"},
    {"__main__"},
]
NEVER = {("network", "svm"), ("svm", "network"), ("extraction", "network")}

# library: the rooms that may import it
OWNERS = {
    "tensorflow": {"network"},
    "keras": {"network"},
    "tf_keras": {"network"},
    # data reads images from HDF5 files, network looks into .h5 models before Keras does, export
    # writes what AnnData reads
    "h5py": {"features", "data", "network", "export"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "pooch": {"data"},
    "skops": {"svm"},
    "filelock": {"files"},
    "fsspec": {"store"},
    # archives reads them, for all; the others write
    "zipfile": {"archives", "export", "network"},
    "pyarrow": {"export", "data"},
    "pillow_heif": {"data"},
    "pydicom": {"data"},
    "dask": {"cluster"},
    "distributed": {"cluster"},
}
LONGEST_MODULE = 600
LONGEST_FUNCTION = 60
LONGEST_CHAIN = 11


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Name every module imported anywhere in a file, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found |= (
                {f"{base}.{alias.name}" for alias in node.names} if base == "cnnfeat" else {base}
            )
    return found


def level_of(room: str) -> int:
    matches = [i for i, rooms in enumerate(LEVELS) if room in rooms]
    assert matches, f"room {room!r} has no place in the house: give it one in LEVELS"
    return matches[0]


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_run_one_way(path: Path):
    room = room_of(module_name(path))
    if not room:  # the package itself, which names its exports lazily
        return
    for imported in imports(path):
        if not imported.startswith("cnnfeat.") or imported == "cnnfeat.__version__":
            continue
        other = room_of(imported)
        assert (room, other) not in NEVER, f"{room} must not import {other}"
        assert other == room or level_of(other) < level_of(room), f"{room} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_libraries_stay_with_their_owners(path: Path):
    room = room_of(module_name(path))
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in OWNERS:
            assert room in OWNERS[library], f"{library} belongs to {OWNERS[library]}"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_modules_and_functions_stay_short(path: Path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, node.name


def test_every_room_has_a_place():
    rooms = {room_of(module_name(path)) for path in modules()} - {""}
    for room in rooms:
        level_of(room)


def test_exported_names_are_these():
    import cnnfeat

    assert cnnfeat.__all__ == [
        "ArchitectureOptions",
        "AugmentOptions",
        "CnnfeatError",
        "DataOptions",
        "ExtractOptions",
        "FeatureFile",
        "LayerFeatures",
        "LinearSVM",
        "ReadOptions",
        "SvmOptions",
        "TrainOptions",
        "extract",
        "fit_svm",
        "load_machine",
        "load_network",
        "open_arrays",
        "open_source",
        "train",
    ]
    assert all(getattr(cnnfeat, name).__name__ == name for name in cnnfeat.__all__)


def test_a_word_means_one_thing():
    """No two modules, and no two public functions or classes, have one name."""
    names: dict[str, list[str]] = {}
    for path in modules():
        if path.parent.name == "cli" or path.stem in ("__init__", "__main__"):
            continue  # commands are called as they are typed
        own = [f"module {path.stem}"]
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                own.append(node.name)
        typed = ("train", "extract") if path.stem == "commands" else ()
        for name in own:
            if name in typed:
                continue
            names.setdefault(name, []).append(module_name(path))
    assert {name: places for name, places in names.items() if len(places) > 1} == {}


def test_chains_of_imports_stay_short():
    """What is imported when a module is: neither types' sake nor inside functions."""
    known = {module_name(path): path for path in modules()}
    needed = {name: _imported_at_once(path, known) - {name} for name, path in known.items()}

    @functools.cache
    def longest(name: str) -> int:
        return 1 + max(map(longest, needed[name]), default=0)  # a circle would not end

    assert max(map(longest, known)) <= LONGEST_CHAIN


def _imported_at_once(path: Path, known: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found & set(known)
