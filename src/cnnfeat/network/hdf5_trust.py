"""What is looked at in an HDF5 model file before Keras opens it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import h5py

from cnnfeat.errors import NetworkError, UntrustedModelError

_SLACK_BYTES = 1 << 20
_RATIO = 1_000  # declared bytes for one stored byte; more than any compression of weights gives


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
        with h5py.File(file, "r") as opened:
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
    if declared > _SLACK_BYTES + _RATIO * stored:
        raise UntrustedModelError(
            f"{name}: {dataset.name} declares {dataset.shape}, {declared:,} bytes, and holds "
            f"{stored:,}",
            hint="the file is damaged, or made to fill the memory",
        )
    return int(dataset.size or 0)
