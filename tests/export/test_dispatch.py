"""Exports hold what the feature file holds, in formats other programs read."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cnnfeat.errors import DataError, LayerLookupError, OutputExistsError, UsageError
from cnnfeat.export import FORMATS, export_features
from cnnfeat.features import write_arrays
from cnnfeat.records import Batch, Fingerprint

CLASSES = ("ape", 'bee, "wild"', "cat\tcow")
IDS = ["a/1.png", "b,2.png", 'c"3".png', "d\n\r4.png", "<script>.png", "é.png", "7.png"]


@pytest.fixture
def arrays(rng) -> dict[str, dict[str, np.ndarray]]:
    return {
        "train": {
            "conv": rng.standard_normal((7, 2, 3, 2)).astype(np.float32),
            "fc": rng.standard_normal((7, 5)).astype(np.float32) * 1e-30,
        },
        "test": {
            "conv": rng.standard_normal((3, 2, 3, 2)).astype(np.float32),
            "fc": rng.standard_normal((3, 5)).astype(np.float32),
        },
    }


LABELS = {"train": np.array([0, 1, 2, 0, 1, 2, 7]), "test": np.array([2, 1, 0])}


@pytest.fixture
def features(tmp_path, arrays) -> Path:
    path = tmp_path / "features.h5"
    write_arrays(
        path,
        arrays,
        labels=LABELS,
        ids={"train": IDS},
        classes=CLASSES,
        attributes={"source_fingerprint": "f" * 64},
    )
    return path


class FakeSource:
    """Ten grey images; image k is filled with k."""

    name, kind, classes = "fake", "fake", CLASSES

    def __init__(self, digest: str = "f" * 64) -> None:
        self._digest = digest

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._digest, "made up")

    def batches(
        self, split, *, batch_size, start=0, stop=None, target=None, on_error="raise"
    ) -> Iterator[Batch]:
        for first in range(start, stop, batch_size):
            places = range(first, min(first + batch_size, stop))
            offset = 100 if split == "test" else 0
            images = np.stack([np.full((6, 4, 1), 10 * p + offset, np.uint8) for p in places])
            yield Batch(images, None, tuple(map(str, places)), first, places.stop)


def test_npz_holds_every_array_under_the_file_s_own_names(features, arrays, tmp_path):
    out = tmp_path / "features.npz"
    result = export_features(features, "npz", out=out)
    with np.load(out, allow_pickle=False) as archive:
        assert set(archive) == {
            *("train/conv", "train/fc", "train/label", "train/id"),
            *("test/conv", "test/fc", "test/label", "test/id"),
            "classes",
        }
        for split, layers in arrays.items():
            for layer, expected in layers.items():
                found = archive[f"{split}/{layer}"]
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == np.float32
            np.testing.assert_array_equal(archive[f"{split}/label"], LABELS[split])
        assert archive["train/id"].tolist() == IDS
        assert archive["classes"].tolist() == list(CLASSES)
    assert (result.paths, result.rows) == ((out,), {"train": 7, "test": 3})
    assert result.size_bytes == out.stat().st_size


def test_npy_can_be_memory_mapped(features, arrays, tmp_path):
    out = tmp_path / "npy"
    export_features(features, "npy", out=out, layers=["conv"], splits=["train"], limit=4)
    assert sorted(path.name for path in out.iterdir()) == [
        *("classes.npy", "train.conv.npy", "train.id.npy", "train.label.npy")
    ]
    mapped = np.load(out / "train.conv.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, arrays["train"]["conv"][:4])
    assert np.load(out / "train.id.npy").tolist() == IDS[:4]


def test_csv_brings_names_and_numbers_back_exactly(features, arrays, tmp_path):
    out = tmp_path / "features.csv"
    export_features(features, "csv", out=out)
    with out.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[:6] == ["split", "id", "label", "class", "conv_0_0_0", "conv_0_0_1"]
    assert header[-6:] == ["conv_1_2_1", "fc_0", "fc_1", "fc_2", "fc_3", "fc_4"]
    assert [line[1] for line in lines[:7]] == IDS
    assert [line[2:4] for line in lines[5:7]] == [["2", "cat\tcow"], ["7", "7"]]
    assert [line[0] for line in lines] == ["train"] * 7 + ["test"] * 3
    numbers = np.array([line[4:] for line in lines], np.float32)
    for start, stop, split in ((0, 7, "train"), (7, 10, "test")):
        np.testing.assert_array_equal(
            numbers[start:stop, :12].ravel(), arrays[split]["conv"].ravel()
        )
        np.testing.assert_array_equal(numbers[start:stop, 12:], arrays[split]["fc"])


def test_csv_of_half_precision_and_whole_numbers_is_exact(tmp_path, rng):
    half = rng.standard_normal((3, 4)).astype(np.float16)
    whole = np.array([[1, 2], [3, 255], [0, 9]], np.uint8)
    write_arrays(tmp_path / "f.h5", {"all": {"half": half, "whole": whole}})
    export_features(tmp_path / "f.h5", "csv", out=tmp_path / "f.csv")
    lines = [line.split(",") for line in (tmp_path / "f.csv").read_text("utf-8").splitlines()[1:]]
    assert [line[:4] for line in lines] == [["all", f"all/0000{k}", "", ""] for k in range(3)]
    np.testing.assert_array_equal(np.array([line[4:8] for line in lines], np.float16), half)
    assert [line[8:] for line in lines] == [["1", "2"], ["3", "255"], ["0", "9"]]


def test_parquet_has_a_column_a_layer(features, arrays, tmp_path):
    out = tmp_path / "features.parquet"
    export_features(features, "parquet", out=out)
    table = pq.read_table(out)
    assert table.column_names == ["split", "id", "label", "class", "conv", "fc"]
    assert table["id"].to_pylist()[:7] == IDS
    assert table["class"].to_pylist()[-2:] == ['bee, "wild"', "ape"]
    conv = np.array(table["conv"].to_pylist(), np.float32).reshape(10, 2, 3, 2)
    np.testing.assert_array_equal(
        conv, np.concatenate([arrays["train"]["conv"], arrays["test"]["conv"]])
    )
    assert json.loads(table.schema.field("conv").metadata[b"shape"]) == [2, 3, 2]


def test_parquet_without_pyarrow_names_the_extra(features, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="needs pyarrow, which is not installed") as caught:
        export_features(features, "parquet", out=tmp_path / "f.parquet")
    assert "cnnfeat[parquet]" in caught.value.hint
    assert list(tmp_path.iterdir()) == [features]


def test_projector_files_stand_in_one_order(features, arrays, tmp_path):
    out = tmp_path / "projector"
    export_features(features, "projector", out=out, layers=["fc"], source=FakeSource())
    vectors = np.loadtxt(out / "vectors.tsv", dtype=np.float32, delimiter="\t")
    np.testing.assert_array_equal(
        vectors, np.concatenate([arrays["train"]["fc"], arrays["test"]["fc"]])
    )
    header, *lines = (out / "metadata.tsv").read_text("utf-8").split("\n")[:-1]
    assert header == "id\tlabel\tsplit"
    assert [line.count("\t") for line in lines] == [2] * 10
    assert lines[3].split("\t") == ["d  4.png", "ape", "train"]
    assert lines[5].split("\t")[1] == "cat cow"
    with Image.open(out / "sprite.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 6, 4 * 6)  # four columns of 6-pixel cells
    centres = pixels[3::6, 3::6].ravel()[:10]
    assert centres.tolist() == [0, 10, 20, 30, 40, 50, 60, 100, 110, 120]
    config = (out / "projector_config.pbtxt").read_text("utf-8")
    assert 'tensor_name: "fc"' in config
    assert config.count("single_image_dim: 6") == 2


def test_projector_goes_without_pictures(features, tmp_path):
    out = tmp_path / "projector"
    result = export_features(features, "projector", out=out, layers=["fc"])
    assert sorted(path.name for path in result.paths) == [
        *("metadata.tsv", "projector_config.pbtxt", "vectors.tsv")
    ]
    assert "sprite" not in (out / "projector_config.pbtxt").read_text("utf-8")


def test_projector_refuses_pictures_of_another_source(features, tmp_path):
    with pytest.raises(DataError, match=r"fake is not what features\.h5 was made from"):
        export_features(
            features,
            "projector",
            out=tmp_path / "projector",
            layers=["fc"],
            source=FakeSource("0" * 64),
        )


def test_projector_takes_one_layer(features, tmp_path):
    with pytest.raises(UsageError, match=r"shows one layer; .* has: conv, fc") as caught:
        export_features(features, "projector", out=tmp_path / "p")
    assert "--layer" in caught.value.hint


@pytest.mark.parametrize("to", FORMATS)
def test_outputs_that_exist_are_refused(features, tmp_path, to):
    out = tmp_path / "out"
    options = {"layers": ["fc"], "limit": 2}
    export_features(features, to, out=out, **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="exists"):
        export_features(features, to, out=out, layers=["fc"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    export_features(features, to, out=out, layers=["fc"], overwrite=True)


def test_unknown_names_are_refused_with_near_ones(features, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no export format 'parket'") as caught:
        export_features(features, "parket", out=out)
    assert "'parquet'" in caught.value.hint
    with pytest.raises(UsageError, match="no split 'tset'"):
        export_features(features, "npz", out=out, splits=["tset"])
    with pytest.raises(LayerLookupError, match="no layer 'cnov'"):
        export_features(features, "npz", out=out, layers=["cnov"])
    with pytest.raises(UsageError, match="--limit must be at least 1, not 0"):
        export_features(features, "npz", out=out, limit=0)
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(UsageError, match="is a file; --to npy writes a folder"):
        export_features(features, "npy", out=tmp_path / "file")
    assert not out.exists()


def test_a_damaged_block_leaves_no_output(features, arrays, tmp_path):
    data = bytearray(features.read_bytes())
    place = data.find(arrays["train"]["conv"].tobytes())
    data[place] ^= 1
    features.write_bytes(data)
    with pytest.raises(DataError, match="layer 'conv', block 0"):
        export_features(features, "npz", out=tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == [features]


def test_parts_and_groups_are_exported_where_a_file_has_them(tmp_path):
    path = tmp_path / "f.h5"
    write_arrays(
        path,
        {"train": {"fc": np.zeros((3, 1), "float32")}, "test": {"fc": np.ones((1, 1), "float32")}},
        parts={"train": np.array([1, 2, 1], np.uint8), "test": np.array([0], np.uint8)},
        groups={"train": np.array([5, 6, 5])},
    )
    for to in ("npz", "csv", "parquet"):
        export_features(path, to, out=tmp_path / f"f.{to}")
    words, groups = ["fitted", "validation", "fitted", "unseen"], ["5", "6", "5", ""]
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["split", "id", "label", "class", "part", "group", "fc_0"]
    assert [line[4] for line in lines] == words and [line[5] for line in lines] == groups
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["part"].to_pylist() == words
    assert table["group"].to_pylist() == [5, 6, 5, None]
    assert table["fc"].to_pylist() == [[0], [0], [0], [1]]
    with np.load(tmp_path / "f.npz") as archive:
        assert archive["train/part"].tolist() == [1, 2, 1] and archive["test/part"].tolist() == [0]
        assert archive["train/group"].tolist() == [5, 6, 5] and "test/group" not in archive
