"""AnnData's files, held against their description, and read by anndata where that is here."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.export import export_features
from cnnfeat.features import write_arrays

rng = np.random.default_rng(3)
ARRAYS = {
    "train": {
        "conv": rng.standard_normal((4, 2, 3, 2)).astype(np.float32),
        "fc": rng.standard_normal((4, 5)).astype(np.float16),
    },
    "test": {
        "conv": rng.standard_normal((2, 2, 3, 2)).astype(np.float32),
        "fc": rng.standard_normal((2, 5)).astype(np.float16),
    },
}
IDS = ["a.png", "é.png", "b/c.png", "d.png"]
WHOLE = {layer: np.concatenate([ARRAYS[s][layer] for s in ARRAYS]) for layer in ("conv", "fc")}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    write_arrays(
        tmp_path / "f.h5",
        ARRAYS,
        labels={"train": np.array([1, 0, 10, 1])},
        ids={"train": IDS},
        classes=("bee", "ape"),
        parts={"train": np.array([1, 2, 1, 1], np.uint8), "test": np.array([0, 0], np.uint8)},
        groups={"train": np.array([5, 6, 5, 7]), "test": np.array([8, 9])},
    )
    export_features(tmp_path / "f.h5", "h5ad", out=tmp_path / "f.h5ad")
    return tmp_path / "f.h5ad"


def test_every_element_says_what_it_is(exported: Path):
    with h5py.File(exported) as file:
        said: dict[str, str] = {}
        file.visititems(lambda name, item: said.update({name: item.attrs["encoding-type"]}))
        assert file.attrs["encoding-type"] == "anndata"
        assert said["obs"] == said["var"] == "dataframe"
        assert said["X"] == said["obsm/fc"] == "array"
        assert said["obs/class"] == said["obs/split"] == said["obs/part"] == "categorical"
        assert said["obs/label"] == "nullable-integer" and said["obs/group"] == "array"
        assert said["obs/_index"] == "string-array"
        order = file["obs"].attrs["column-order"].tolist()
        assert order == ["split", "label", "class", "part", "group"]
        np.testing.assert_array_equal(file["X"], WHOLE["conv"].reshape(6, 12))
        np.testing.assert_array_equal(file["obsm/fc"], WHOLE["fc"])
        assert file["obs/_index"].asstr()[:4].tolist() == IDS
        assert file["obs/class/categories"].asstr()[:].tolist() == ["bee", "ape", "10"]
        assert file["obs/class/codes"][:].tolist() == [1, 0, 2, 1, -1, -1]
        assert file["obs/label/mask"][:].tolist() == [False] * 4 + [True] * 2
        assert file["var/_index"].asstr()[[0, 11]].tolist() == ["conv_0_0_0", "conv_1_2_1"]
        assert file["uns/shapes/conv"][:].tolist() == [2, 3, 2]


def test_rows_without_labels_need_none(tmp_path: Path):
    write_arrays(tmp_path / "f.h5", {"all": {"fc": np.ones((3, 2), np.float32)}})
    export_features(tmp_path / "f.h5", "h5ad", out=tmp_path / "f.h5ad", limit=2)
    with h5py.File(tmp_path / "f.h5ad") as file:
        assert set(file["obs"]) == {"_index", "split"}
        assert file["X"].shape == (2, 2) and list(file["obsm"]) == []


def test_anndata_reads_it(exported: Path):
    anndata = pytest.importorskip("anndata", reason="anndata, which holds pandas back, is not here")
    found = anndata.read_h5ad(exported)
    np.testing.assert_array_equal(found.X, WHOLE["conv"].reshape(6, 12))
    np.testing.assert_array_equal(found.obsm["fc"], WHOLE["fc"])
    assert found.obs_names[:4].tolist() == IDS
    assert found.obs["split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert found.obs["class"].tolist()[:4] == ["ape", "bee", "10", "ape"]
    assert found.obs["class"].isna().tolist() == found.obs["label"].isna().tolist()
    assert found.obs["label"].tolist()[:4] == [1, 0, 10, 1]
    assert found.obs["part"].tolist()[:2] == ["fitted", "validation"]
    assert found.obs["group"].tolist() == [5, 6, 5, 7, 8, 9]
    assert found.var_names[-1] == "conv_1_2_1"
    assert found.uns["X_layer"] == "conv" and found.uns["shapes"]["fc"].tolist() == [5]
    again = found[found.obs["split"] == "test"].copy()
    assert again.shape == (2, 12)
