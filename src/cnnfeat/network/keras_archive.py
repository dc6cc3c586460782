"""`.keras` archives as Keras can read them: with groups as it spells them, without compilation.

Keras 2 spelled the groups of weights with the path separator of its system, and those of 2.13 by
another name. What models inside a model were compiled with would be loaded, needed or not.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py

from cnnfeat.archives import Archive
from cnnfeat.documents import parse_document
from cnnfeat.errors import NetworkError
from cnnfeat.network.formats import opened_archive
from cnnfeat.network.keras_trust import KERAS_ERRORS
from cnnfeat.temporary import temporary_folder

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_OLD = "_layer_checkpoint_dependencies"  # Keras 2.13's name of `layers`


@contextmanager
def as_keras_reads_it(path: Path, config: Mapping[str, object]) -> Iterator[Path]:
    """Give the archive, or a copy that Keras can read in its place.

    Parameters
    ----------
    path : Path
        The archive, checked.
    config : mapping
        Its configuration without what models were compiled with.
    """
    with opened_archive(path) as archive:
        own = parse_document(archive.read(_CONFIG), finite=False)
        own.pop("compile_config", None)  # that of the whole Keras leaves out itself
        names = _names(archive)
        if own == config and not any(_is_odd(name) for name in names):
            yield path
            return
        with temporary_folder() as folder:
            copy = folder / f"{path.stem or 'model'}.keras"
            try:
                _write(archive, copy, config, _spelled(names))
            except NetworkError:
                raise
            except KERAS_ERRORS as error:
                raise NetworkError(f"{path}: its weights can't be copied: {error}") from error
            yield copy


def _is_odd(name: str) -> bool:
    return "\\" in name or _OLD in name


def _names(archive: Archive) -> list[str]:
    """Names of the weights."""
    found: list[str] = []
    with archive.seekable(_WEIGHTS) as stored, h5py.File(stored, "r") as file:
        file.visititems(lambda name, item: found.append(name) if _is_data(item) else None)
    return found


def _is_data(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _spelled(names: list[str]) -> dict[str, str]:
    """Each weight's name as Keras spells it today.

    Keras 2.13 counted a layer with weights twice: the second `Conv2D` is `conv2d_2`.
    """
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    split = {name: name.replace("\\", "/").split("/") for name in names}
    for parts in split.values():
        for place, part in enumerate(parts[:-1]):
            if part == _OLD:
                word, number = _numbered(parts[place + 1])
                numbers["/".join(parts[: place + 1]), word].add(number)
    result = {}
    for name, parts in split.items():
        spelled = list(parts)
        for place, part in enumerate(parts[:-1]):
            if part == _OLD:
                word, number = _numbered(parts[place + 1])
                rank = sorted(numbers["/".join(parts[: place + 1]), word]).index(number)
                spelled[place : place + 2] = ["layers", f"{word}_{rank}" if rank else word]
        result[name] = "/".join(spelled)
    return result


def _numbered(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.+?)_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _write(
    archive: Archive, copy: Path, config: Mapping[str, object], spelled: Mapping[str, str]
) -> None:
    weights = copy.with_name(_WEIGHTS)
    with (
        archive.seekable(_WEIGHTS) as stored,
        h5py.File(stored, "r") as old,
        h5py.File(weights, "w") as new,
    ):
        for name, spelling in spelled.items():
            new[spelling] = old[name][()]
    with zipfile.ZipFile(copy, "w") as whole:
        whole.writestr(_CONFIG, json.dumps(config))
        if "metadata.json" in archive.names:
            whole.writestr("metadata.json", archive.read("metadata.json"))
        whole.write(weights, _WEIGHTS)
    weights.unlink()
