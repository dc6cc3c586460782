"""Code that a user names to read a network with: layers of their own, or of a package.

It is run because the user asks for it by name, each time; a file that names it is not enough.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import keras

from cnnfeat.errors import MissingInputError, NetworkError

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Imported:
    """Classes and functions that configurations may name, and the packages they are from."""

    objects: Mapping[str, object] = field(default_factory=dict)
    packages: frozenset[str] = frozenset()

    def knows(self, name: object, module: object) -> bool:
        """Whether a class of this name is one of them, or of one of their packages."""
        package = str(module).split(".")[0] if isinstance(module, str) else ""
        return (isinstance(name, str) and name in self.objects) or package in self.packages


NOTHING = Imported()


@contextlib.contextmanager
def imported(names: Sequence[str]) -> Iterator[Imported]:
    """Run code, and let Keras find what it defines, within the block.

    Parameters
    ----------
    names : sequence of str
        Files ending in `.py`, or names of modules.

    Raises
    ------
    MissingInputError
        If there is no such file.
    NetworkError
        If it can't be run, with what it says.
    """
    if not names:
        yield NOTHING
        return
    objects: dict[str, object] = {}
    packages = set[str]()
    for name in names:
        _LOG.info("running the code of %s, as --import asks", name)
        module = _run(name)
        objects |= _defined(module)
        if not name.endswith(".py"):
            packages.add(name.split(".")[0])
    found = Imported(
        {**objects, **{f"Custom>{name}": one for name, one in objects.items()}}, frozenset(packages)
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.saving.custom_object_scope(dict(found.objects)))
        keras_2 = sys.modules.get("tf_keras")
        if keras_2 is not None:
            stack.enter_context(keras_2.saving.custom_object_scope(dict(found.objects)))
        yield found


def _run(name: str) -> ModuleType:
    try:
        return _file(Path(name)) if name.endswith(".py") else _module(name)
    except (KeyboardInterrupt, SystemExit, MissingInputError):
        raise
    except BaseException as error:
        raise NetworkError(
            f"--import {name}: it can't be run: {type(error).__name__}: {error}"
        ) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise MissingInputError(f"--import {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("no Python code")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # Keras looks classes up by it
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.absolute().parent))
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(Path.cwd()))


def _defined(module: ModuleType) -> dict[str, object]:
    """Classes and functions of a module, its own and those it took from elsewhere but Keras."""
    return {
        name: item
        for name, item in vars(module).items()
        if (inspect.isclass(item) or inspect.isfunction(item))
        and item.__module__.split(".")[0] not in ("keras", "tf_keras", "tensorflow", "numpy")
    }
