"""Changed files of the other kinds of data: each is read, or refused by name."""

from __future__ import annotations

import csv
import io
import pickle
import tarfile
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.io import savemat

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]
SIDE = 6


def _pixels(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _table() -> bytes:
    """A CSV of labels and pixels."""
    file = io.StringIO()
    lines = csv.writer(file)
    lines.writerow(["label", *(f"pixel{number}" for number in range(16))])
    for label, row in enumerate(_pixels(5)[:, :4, :4, 0].reshape(5, 16).tolist()):
        lines.writerow([label % 3, *row])
    return file.getvalue().encode()


def _parquet() -> bytes:
    from pyarrow import parquet

    table = pa.table(
        {
            "image": [{"bytes": _png(pixels), "path": "a.png"} for pixels in _pixels(6)],
            "label": [0, 1, 2, 0, 1, 2],
        }
    )
    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=2)
    return file.getvalue()


def _records(folder: Path) -> bytes:
    import tensorflow as tf

    path = folder / "made.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label, pixels in enumerate(_pixels(4)):
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[_png(pixels)])
                ),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return path.read_bytes()


def _batch() -> bytes:
    data = np.arange(4 * 3072).astype(np.uint8).reshape(4, 3072)
    return pickle.dumps({b"labels": [0, 1, 2, 1], b"data": data, b"filenames": [b"a"] * 4}, 2)


def _mat(folder: Path, *, packed: bool) -> bytes:
    path = folder / "made.mat"
    arrays = {"X": np.moveaxis(_pixels(5), 0, -1), "y": np.array([[1], [2], [3], [1], [2]])}
    savemat(path, arrays, do_compression=packed)
    return path.read_bytes()


def _hdf5(folder: Path) -> bytes:
    path = folder / "made.h5"
    with h5py.File(path, "w") as file:
        file["x_train"], file["y_train"] = _pixels(5), [0, 1, 2, 0, 1]
        file.create_dataset("x_test", data=_pixels(3), chunks=(1, SIDE, SIDE, 3), compression=4)
        file["y_test"] = [0, 1, 2]
    return path.read_bytes()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, pixels in enumerate(_pixels(4)):
            for ending, data in (("png", _png(pixels)), ("cls", str(number % 2).encode())):
                info = tarfile.TarInfo(f"ü{number}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of all kinds, as their own writers make them."""
    folder = tmp_path_factory.mktemp("sound")
    return {
        "list.csv": b"path,label,split\nok.png,a,train\nok.png,b,train\nok.png,a,test\n",
        "table.csv": _table(),
        "rows.parquet": _parquet(),
        "shard.tfrecord": _records(folder),
        "data_batch_1": _batch(),
        "plain.mat": _mat(folder, packed=False),
        "packed.mat": _mat(folder, packed=True),
        "arrays.h5": _hdf5(folder),
        "photos.tar": _tar(),
    }


@pytest.mark.parametrize("n_inputs", [150, pytest.param(5_000, marks=SLOW)])
def test_changed_files_are_read_or_refused_by_name(fuzz, mutators, sources, n_inputs):
    picture = _png(_pixels(1)[0])

    def make(random: Random, folder: Path) -> list[list[str]]:
        name = random.choice(sorted(sources))
        (folder / name).write_bytes(mutators.change_bytes(random, sources[name]))
        (folder / "ok.png").write_bytes(picture)
        return [["read", name]]

    outcomes = fuzz(make, n_inputs)
    assert min(outcomes[0], outcomes[3]) > n_inputs / 20
