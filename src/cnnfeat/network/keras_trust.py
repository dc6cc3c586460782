"""What is looked at in a Keras file before Keras may read it, and what Keras says if it can't."""

from __future__ import annotations

import math
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
from cnnfeat.network.keras_config import check_config, without_compilation
from cnnfeat.temporary import temporary_folder

T = TypeVar("T")
_WEIGHTS = "model.weights.h5"
_SIZES = ("units", "filters", "input_dim", "output_dim", "depth_multiplier", "num_heads", "key_dim")
_HDF5_SLACK_BYTES = 1 << 20
_HDF5_RATIO = (
    1_000  # declared bytes for one stored byte; more than any compression of weights gives
)
# What Keras raises of a file that is not as Keras wrote it: whatever its lines come upon.
KERAS_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, NameError, OSError, RuntimeError, StopIteration, SystemError, TypeError,
    ValueError, tf.errors.OpError,
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
    except KERAS_ERRORS:
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


def is_keras_2(path: Path) -> bool:
    """Whether a `.keras` archive says that Keras 2 wrote it."""
    with opened_archive(path) as archive:
        if "metadata.json" not in archive.names:
            return False
        text = archive.read("metadata.json").decode("utf-8", "replace")
    return '"keras_version": "2' in text


@contextmanager
def regular_name(path: Path, suffix: str) -> Iterator[Path]:
    """Give a file the ending Keras wants to see, where it has another."""
    if path.name.endswith(suffix) and (suffix != ".h5" or not path.name.endswith(".weights.h5")):
        yield path
        return
    with temporary_folder() as folder:
        named = folder / f"{path.stem or 'model'}{suffix}"
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
            return sum(_check_dataset(one, name) for one in _datasets(opened, name))
    except UntrustedModelError:
        raise
    except KERAS_ERRORS as error:
        raise NetworkError(f"{name}: damaged HDF5: {error}") from error


def _datasets(file: h5py.File, name: str) -> Iterator[h5py.Dataset]:
    """All data sets, once each; of links only those that stay in their group."""
    waiting, seen = [file["/"]], set[int]()
    while waiting:
        group = waiting.pop()
        for key in group:
            _check_link(group.get(key, getlink=True), f"{group.name.rstrip('/')}/{key}", name)
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item


def _check_link(link: object, where: str, name: str) -> None:
    if isinstance(link, h5py.ExternalLink):
        raise UntrustedModelError(
            f"{name}: {where} is an external link to {link.filename!r}: a model reads no other "
            "files",
            hint="get the model from someone you trust",
        )
    if isinstance(link, h5py.SoftLink):
        raise UntrustedModelError(
            f"{name}: {where} is a link to {link.path!r}; Keras writes none",
            hint="get the model from someone you trust",
        )


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
