"""MATLAB's files, read back by SciPy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, whosmat

from cnnfeat.errors import UsageError
from cnnfeat.export import export_features, matlab
from cnnfeat.features import write_arrays


@pytest.fixture
def features(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    layers = {
        "block.1": rng.standard_normal((3, 2, 4, 5)).astype(np.float32),
        "block_1": rng.standard_normal((3, 2)).astype(np.float16),
        "n" * 80: np.array([[1], [2], [255]], np.uint8),
    }
    path = tmp_path / "f.h5"
    write_arrays(
        path,
        {"train": layers},
        labels={"train": np.array([0, 2, 1])},
        ids={"train": ["a.png", "é.png", "c d.png"]},
        classes=("ape", "bee", "猫"),
    )
    return path, layers


def test_a_variable_an_array(features, tmp_path: Path):
    path, layers = features
    out = tmp_path / "f.mat"
    result = export_features(path, "mat", out=out)
    assert result.paths == (out,) and result.size_bytes == out.stat().st_size
    found = loadmat(out, chars_as_strings=True)
    names = {of: name for name, of in zip(*map(cells, found["contents"].T), strict=True)}
    assert names["train/block.1"] == "train_block_1"
    assert names["train/block_1"] == "train_block_1_2"
    assert all(re.fullmatch(r"[A-Za-z]\w{,62}", name) for name in names.values())
    for layer, expected in layers.items():
        stored = found[names[f"train/{layer}"]]
        np.testing.assert_array_equal(stored, expected)
        assert stored.dtype == (np.float32 if expected.dtype == np.float16 else expected.dtype)
    assert found["train_label"].tolist() == [[0], [2], [1]]
    assert cells(found["train_id"]) == ["a.png", "é.png", "c d.png"]
    assert cells(found["classes"]) == ["ape", "bee", "猫"]
    assert {name for name, *_ in whosmat(out)} == {*names.values(), "contents"}


def cells(column: np.ndarray) -> list[str]:
    return [cell.item() for cell in column.ravel()]


def test_rows_and_layers_are_chosen(features, tmp_path: Path):
    path, layers = features
    export_features(path, "mat", out=tmp_path / "f.mat", layers=["block.1"], limit=2)
    found = loadmat(tmp_path / "f.mat")
    np.testing.assert_array_equal(found["train_block_1"], layers["block.1"][:2])
    assert found["train_label"].shape == (2, 1) and "train_block_1_2" not in found


def test_what_the_format_can_not_hold_is_refused_before_it_is_written(
    features, tmp_path: Path, monkeypatch
):
    path, _ = features
    monkeypatch.setattr(matlab, "LARGEST_BYTES", 3 * 2 * 4 * 5 * 4 - 1)
    with pytest.raises(UsageError, match=r"train/block\.1 has 480 bytes; .* less than 2 GiB") as e:
        export_features(path, "mat", out=tmp_path / "f.mat")
    assert "--limit" in e.value.hint and "npz" in e.value.hint
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(matlab, "LARGEST_BYTES", 480)
    export_features(path, "mat", out=tmp_path / "f.mat")


def test_names_are_those_that_matlab_takes():
    names = ["train/conv2", "1/é", "train_conv2", "a" * 70, "a" * 71, "_x"]
    assert list(matlab.variable_names(names)) == [
        *("train_conv2", "x1__", "train_conv2_2", "a" * 63, "a" * 61 + "_2", "x_x")
    ]
