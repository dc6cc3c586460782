"""`cnnfeat merge`, and every command that takes a feature file on a set of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.features import FeatureFile
from cnnfeat.features.merging import seal_set
from cnnfeat.svm import load_svm


@pytest.fixture
def sealed(made):
    folder, single = made()
    seal_set(folder)
    return folder, single


def test_merge_writes_one_file_and_says_so(cnnfeat, made, tmp_path):
    folder, single = made()
    code, out, err = cnnfeat("merge", folder, folder=tmp_path)
    assert code == 0, err
    assert "train" in out and "130 rows" in out and "artifacts/features.h5" in out
    with FeatureFile(tmp_path / "artifacts/features.h5") as file, FeatureFile(single) as other:
        np.testing.assert_array_equal(file.read("test", "fc1"), other.read("test", "fc1"))
    assert not (folder / "manifest.json").exists()
    code, _, err = cnnfeat("merge", folder, folder=tmp_path)
    assert code == 2 and "artifacts/features.h5 exists" in err
    code, _, err = cnnfeat("merge", folder, "--resume", folder=tmp_path)
    assert code == 0 and "is complete already" in err


def test_merge_seals_a_folder_and_writes_no_file(cnnfeat, made, tmp_path):
    folder, _ = made()
    code, out, err = cnnfeat("merge", folder, "--manifest", "--json", folder=tmp_path)
    assert code == 0, err
    said = json.loads(out)
    assert said["path"] == str(folder) and said["rows"] == {"train": 130, "test": 40}
    assert (folder / "manifest.json").exists() and not (tmp_path / "artifacts").exists()


def test_merge_does_not_write_over_what_it_reads(cnnfeat, sealed, tmp_path):
    folder, _ = sealed
    (tmp_path / "alias.h5").symlink_to(folder / "features.0003-of-0003.h5")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for out in ("alias.h5", "set/features.0001-of-0003.h5", "set/manifest.json"):
        code, _, err = cnnfeat("merge", "set", "-o", out, "--overwrite", folder=tmp_path)
        assert code == 2 and f"{out} is a part of the set that is to be merged" in err
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("more", [("-o", "a.h5"), ("--overwrite",), ("--resume",)])
def test_what_is_only_sealed_has_no_output(cnnfeat, made, more):
    folder, _ = made()
    code, _, err = cnnfeat("merge", folder, "--manifest", *more)
    assert code == 2 and "it goes with none of -o, --overwrite and --resume" in err
    assert not (folder / "manifest.json").exists()


def test_a_missing_shard_ends_with_its_name_and_the_command_for_it(cnnfeat, made, tmp_path):
    folder, _ = made()
    (folder / "features.0003-of-0003.h5").unlink()
    code, _, err = cnnfeat("merge", folder, folder=tmp_path)
    assert code == 3
    assert "features.0003-of-0003.h5" in err and "--shard 3/3" in err


@pytest.mark.parametrize(
    "words",
    [
        ("svm", "SET"),
        ("info", "SET"),
        ("verify", "SET"),
        ("export", "SET", "--to", "npz"),
        ("plot", "embedding", "--features", "SET"),
        ("report", "--features", "SET"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("fault", ["unsealed", "missing"])
def test_every_command_refuses_a_set_that_is_not_whole(cnnfeat, sealed, tmp_path, words, fault):
    folder, _ = sealed
    name = "manifest.json" if fault == "unsealed" else "features.0002-of-0003.h5"
    (folder / name).unlink()
    given = [str(folder) if word == "SET" else word for word in words]
    code, _, err = cnnfeat(*given, folder=tmp_path)
    assert code == 3, err
    assert f"no {name}" in err or f"shard {name} is missing" in err
    assert "cnnfeat merge FOLDER --manifest" in err


def _svm(cnnfeat, features: Path, out: Path) -> None:
    code, _, err = cnnfeat("svm", features, "--layer", "fc1", "-o", out)
    assert code == 0, err


def test_a_machine_on_a_set_is_that_on_the_file(cnnfeat, sealed, tmp_path):
    folder, single = sealed
    for features, name in ((folder, "a"), (single, "b")):
        _svm(cnnfeat, features, tmp_path / name)
    one, other = (load_svm(tmp_path / name / "svm.skops") for name in "ab")
    np.testing.assert_array_equal(one.pipeline[-1].coef_, other.pipeline[-1].coef_)
    np.testing.assert_array_equal(one.pipeline[-1].intercept_, other.pipeline[-1].intercept_)
    written = [(tmp_path / name / "predictions.csv").read_bytes() for name in "ab"]
    assert written[0] == written[1]
    said = [json.loads((tmp_path / name / "svm.json").read_text())["layers"] for name in "ab"]
    assert [{**layer, "elapsed_s": 0} for layer in said[0]] == [
        {**layer, "elapsed_s": 0} for layer in said[1]
    ]
    predicted = [
        cnnfeat("predict", features, "--svm", tmp_path / "a" / "svm.skops").stdout
        for features in (folder, single)
    ]
    assert predicted[0] == predicted[1] and predicted[0].count("\n") > 170


def test_info_of_a_set_is_that_of_the_file(cnnfeat, sealed):
    folder, single = sealed
    found, wanted = (
        json.loads(cnnfeat("info", path, "--json").stdout) for path in (folder, single)
    )
    assert found.pop("kind") == "feature set" and wanted.pop("kind") == "feature file"
    assert found["facts"].pop("shards") == 3
    for said in (found, wanted):
        del said["path"], said["facts"]["created"]
    assert found == wanted
    assert "shards" in cnnfeat("info", folder).stdout


def test_info_of_a_manifest_names_the_set(cnnfeat, sealed):
    folder, _ = sealed
    code, _, err = cnnfeat("info", folder / "manifest.json")
    assert code == 3
    assert "is the manifest of a feature set, which is its folder" in err
    assert f"hint: name {folder}\n" in err


def test_a_set_is_verified_and_a_lost_shard_is_told(cnnfeat, sealed):
    folder, _ = sealed
    code, out, _ = cnnfeat("verify", folder)
    assert code == 0 and "all 60 blocks hold" in out
    shard = folder / "features.0002-of-0003.h5"
    shard.write_bytes(bytes(shard.stat().st_size))
    code, out, err = cnnfeat("verify", folder)
    assert code == 3
    assert "features.0002-of-0003.h5 is no HDF5 file" in out and "1 of 60 blocks" in err
    assert "hint: make those shards again with cnnfeat extract --shard, then" in err


def test_a_set_is_exported_as_the_file_is(cnnfeat, sealed, tmp_path):
    written = []
    for path, name in zip(sealed, "ab", strict=True):
        code, _, err = cnnfeat("export", path, "--to", "npz", "-o", tmp_path / f"{name}.npz")
        assert code == 0, err
        with np.load(tmp_path / f"{name}.npz") as arrays:
            written.append({key: arrays[key] for key in arrays})
    assert written[0].keys() == written[1].keys()
    for key, array in written[0].items():
        np.testing.assert_array_equal(array, written[1][key])


def test_a_set_is_drawn_and_reported(cnnfeat, sealed, tmp_path):
    folder, _ = sealed
    code, _, err = cnnfeat(
        "plot", "embedding", "--features", folder, "--layer", "fc1", "-o", tmp_path / "e.png"
    )
    assert code == 0, err
    code, _, err = cnnfeat("report", "--features", folder, "-o", tmp_path / "r.html")
    assert code == 0, err
    assert "130" in (tmp_path / "r.html").read_text("utf-8")


def test_a_shard_alone_is_a_feature_file(cnnfeat, made):
    folder, _ = made()
    code, out, err = cnnfeat("info", folder / "features.0002-of-0003.h5")
    assert code == 0, err
    assert "feature file" in out
