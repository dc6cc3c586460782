"""Texts out of the global heap of a file whose references a stranger wrote."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError
from cnnfeat.features.heap import Heap
from cnnfeat.features.safety import texts

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


def _point(path: Path, rows: list[int]) -> None:
    """Let each reference of `/id` be that of the row named."""
    with h5py.File(path) as file:
        place, n_rows = file["id"].id.get_offset(), len(file["id"])
    with path.open("r+b") as file:
        file.seek(place)
        references = np.frombuffer(file.read(n_rows * _REFERENCE.itemsize), _REFERENCE)
        file.seek(place)
        file.write(references[rows].tobytes())


def _write(path: Path, ids: list[str]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("id", data=ids, dtype=h5py.string_dtype("utf-8"))


def test_each_collection_is_read_once_however_references_alternate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alternating.h5"
    ids = [f"{row:04}" for row in range(2000)]
    rows = [0, 1999] * 1000  # in the first and the last collection
    with h5py.File(path, "w") as file:
        file.create_dataset("id", (2000,), h5py.string_dtype("utf-8"))[:1000] = ids[:1000]
    with h5py.File(path, "r+") as file:  # opened anew, so a collection of its own
        file["id"][1000:] = ids[1000:]
    _point(path, rows)
    read, places = os.pread, []

    def counted(handle: int, size: int, place: int) -> bytes:
        places.append(place)
        return read(handle, size, place)

    monkeypatch.setattr(os, "pread", counted)
    with h5py.File(path) as file:
        assert texts(file["id"], path, heap=Heap(file.id.get_vfd_handle())) == [
            ids[row] for row in rows
        ]
    assert len(set(places)) == 2
    assert len(places) == 4  # the head and the whole of both


def test_texts_longer_than_their_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one-large-text.h5"
    _write(path, ["x" * 10_000] + ["y"] * 299)
    _point(path, [0] * 300)  # 3 MB of text
    assert path.stat().st_size < 1_000_000
    with (
        h5py.File(path) as file,
        pytest.raises(FeatureFileError, match=r"/id is damaged: its texts .* longer than the file"),
    ):
        texts(file["id"], path, heap=Heap(file.id.get_vfd_handle()))
