"""Commands whose pictures, and whose features, lie in a store that speaks S3."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.errors import UsageError
from cnnfeat.features import FeatureFile


@pytest.fixture
def photos(bucket, tmp_path, rng, monkeypatch) -> Path:
    """Sixty labelled pictures in the bucket, and the same in a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for n in range(60):
        stream = io.BytesIO()
        pixels = rng.integers(0, 256, (8, 8), np.uint8) // (1 + n % 2)
        Image.fromarray(pixels).save(stream, "PNG")
        name = f"{'ab'[n % 2]}/{n}.png"
        bucket.put(f"photos/{name}", stream.getvalue())
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    return tmp_path / "photos"


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    with FeatureFile(path) as file:
        return file.read("all", "fc1"), file.labels("all"), file.ids("all")


def test_features_of_a_bucket_go_back_into_it_and_are_used_there(
    cnnfeat, model, photos, bucket, objectstore
):
    tmp_path = photos.parent
    root = f"s3://{bucket.name}"
    far = f"{root}/made/features.h5"
    words = ("extract", "--model", model, "--layer", "fc1", "--batch-size", 16)
    code, out, err = cnnfeat(*words, "--data", photos, "-o", "near.h5")
    assert code == 0, err
    code, out, err = cnnfeat(*words, "--data", f"{root}/photos", "-o", far)
    assert code == 0, err
    assert far in out and f"{far} is put there whole" in err
    (tmp_path / "far.h5").write_bytes(bucket.get("made/features.h5"))
    for near, there in zip(
        rows_of(tmp_path / "near.h5"), rows_of(tmp_path / "far.h5"), strict=True
    ):
        np.testing.assert_array_equal(near, there)
    with FeatureFile(tmp_path / "far.h5") as file:
        assert file.attributes["source"] == f"{root}/photos"
    for secret in objectstore.KEYS["AWS_SECRET_ACCESS_KEY"], objectstore.KEYS["AWS_ACCESS_KEY_ID"]:
        assert secret not in out + err
        assert secret.encode() not in (tmp_path / "far.h5").read_bytes()

    code, out, err = cnnfeat("verify", far)
    assert code == 0 and out.startswith(f"{far}: all "), err
    code, out, err = cnnfeat("info", far, "--json")
    assert json.loads(out)["path"] == far, err
    code, out, err = cnnfeat("svm", far, "--layer", "fc1", "-o", "svm")
    assert code == 0, err
    assert json.loads((tmp_path / "svm/svm.json").read_text())["features"]["path"] == far
    code, out, err = cnnfeat("predict", far, "--svm", "svm/svm.skops", "--csv")
    assert code == 0 and len(out.splitlines()) == 61, err
    assert not list(tmp_path.glob("cnnfeat-scratch-*")), "copies are removed"
    assert not list(tmp_path.glob("cnnfeat-outgoing-*/*")), "what was put is removed"

    code, out, err = cnnfeat(*words, "--data", f"{root}/photos", "-o", far)
    assert code == 2 and f"{far} exists" in err and "--overwrite replaces it" in err
    code, out, err = cnnfeat(*words, "--data", f"{root}/photos", "-o", far, "--resume")
    assert code == 0 and "is complete already" in err


def test_shards_go_into_a_bucket(cnnfeat, model, photos, bucket, tmp_path):
    for shard in ("1/2", "2/2"):
        code, _, err = cnnfeat(
            *("extract", "--model", model, "--layer", "fc1", "--batch-size", 16),
            *("--data", f"s3://{bucket.name}/photos", "--shard", shard),
            *("-o", f"s3://{bucket.name}/made"),
        )
        assert code == 0, err
    made = [key for key in bucket.names() if key.startswith("made/")]
    assert made == ["made/features.0001-of-0002.h5", "made/features.0002-of-0002.h5"]
    far = f"s3://{bucket.name}/made"
    code, _, err = cnnfeat("svm", far, "--layer", "fc1", "-o", "svm")
    assert code == 3 and "manifest" in err, err
    code, out, err = cnnfeat("merge", far, "--manifest")
    assert code == 0 and far in out, err
    assert "made/manifest.json" in bucket.names()
    code, _, err = cnnfeat("svm", far, "--layer", "fc1", "-o", "svm")
    assert code == 0, err
    code, out, err = cnnfeat("predict", far, "--svm", "svm/svm.skops", "--csv")
    assert code == 0 and len(out.splitlines()) == 61, err
    code, out, err = cnnfeat("merge", far, "-o", f"s3://{bucket.name}/whole.h5")
    assert code == 0 and f"s3://{bucket.name}/whole.h5" in out, err
    (tmp_path / "whole.h5").write_bytes(bucket.get("whole.h5"))
    assert rows_of(tmp_path / "whole.h5")[2] == [
        f"{of}/{n}.png" for start, of in enumerate("ab") for n in range(start, 60, 2)
    ]
    with pytest.raises(UsageError, match="a feature file is read from this machine alone"):
        FeatureFile(f"{far}/features.0001-of-0002.h5")


def test_a_cluster_does_not_write_into_one_process_s_memory(cnnfeat, model, tmp_path):
    code, _, err = cnnfeat(
        *("extract", "--model", model, "--layer", "fc1", "--data", "digits"),
        *("--dask", "local:1", "-o", "memory://bucket/made"),
        folder=tmp_path,
    )
    assert code == 2 and "memory://bucket/made: what is kept in memory is seen by one p" in err
    assert "s3://bucket/name" in err and list(tmp_path.iterdir()) == []


def test_no_cluster_is_started_for_a_bucket_that_isnt_there(cnnfeat, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cnnfeat.cluster.driver.connected", None)
    far = f"s3://{bucket.name}-of-others/made"
    code, _, err = cnnfeat(
        *("extract", "--model", "nowhere.keras", "--layer", "fc1", "--data", "digits"),
        *("--dask", "local:1", "-o", far),
        folder=tmp_path,
    )
    assert code == 5 and f"s3://{bucket.name}-of-others: not found: " in err


@pytest.mark.slow
def test_a_cluster_writes_into_a_bucket(cnnfeat, model, photos, bucket, tmp_path):
    far = f"s3://{bucket.name}/made"
    words = ["extract", "--model", model, "--layer", "fc1", "--batch-size", 16]
    words += ["--data", f"s3://{bucket.name}/photos"]
    code, _, err = cnnfeat(*words, "-o", "single.h5")
    assert code == 0, err
    on = [*words, "--dask", "local:2", "--shards", 4, "-o", far]
    code, out, err = cnnfeat(*on)
    assert code == 0 and "60 rows" in out and far in out, err
    names = [f"features.{k:04d}-of-0004.h5" for k in range(1, 5)]
    keys = [key for key in bucket.names() if key.startswith("made/")]
    assert keys == [*(f"made/{name}" for name in names), "made/manifest.json"]
    listed = json.loads(bucket.get("made/manifest.json"))["shards"]
    assert [shard["name"] for shard in listed] == names
    shards = {key: bucket.get(key) for key in keys}
    assert [shard["size_bytes"] for shard in listed] == [len(shards[key]) for key in keys[:-1]]
    code, out, err = cnnfeat(*on)  # all are kept
    assert code == 0 and shards == {key: bucket.get(key) for key in keys}, err
    code, _, err = cnnfeat("merge", far, "-o", "merged.h5")
    assert code == 0, err
    for one, other in zip(rows_of(Path("merged.h5")), rows_of(Path("single.h5")), strict=True):
        np.testing.assert_array_equal(one, other)
    code, _, err = cnnfeat(*words, "--dask", "local:1", "--shards", 3, "-o", far)
    assert code == 2 and "is one of 4 shards, and 3 are asked for" in err


def test_pictures_that_change_are_told_on_resume(cnnfeat, model, photos, bucket, monkeypatch):
    far = f"s3://{bucket.name}/photos"
    words = ("extract", "--model", model, "--layer", "fc1", "--batch-size", 16, "--data", far)
    with monkeypatch.context() as patch:
        stop = iter([False, False, True, True])
        patch.setattr("cnnfeat.cli.session.StopRequest.__call__", lambda self: next(stop, True))
        code, _, err = cnnfeat(*words, "-o", f"s3://{bucket.name}/made.h5")
    assert code == 130 and "--resume" in err and "made.h5" not in bucket.names(), err
    bucket.put("photos/a/0.png", bucket.get("photos/a/2.png"))
    code, _, err = cnnfeat(*words, "-o", f"s3://{bucket.name}/made.h5", "--resume")
    assert code == 3 and "a/0.png has changed since" in err


@pytest.mark.parametrize(
    "words",
    [
        ("svm", "features.h5", "-o", "s3://bucket/svm"),
        ("train", "-o", "s3://bucket/model.keras"),
        ("run", "-o", "s3://bucket/run"),
        ("export", "features.h5", "--to", "npz", "-o", "s3://bucket/x.npz"),
        ("report", "-o", "s3://bucket/report.html"),
        ("predict", "x.png", "--svm", "s3://bucket/svm.skops"),
    ],
    ids=lambda words: words[0],
)
def test_other_outputs_are_of_this_machine(cnnfeat, tmp_path, words):
    code, _, err = cnnfeat(*words, folder=tmp_path)
    assert code == 2 and "lies in a store; a path of this machine is needed here" in err
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_of_this_machine(cnnfeat, tmp_path):
    code, _, err = cnnfeat("layers", "s3://bucket/model.keras", folder=tmp_path)
    assert code == 2
    assert "error: s3://bucket/model.keras: a network is read from this machine alone" in err
    assert "hint: download it first: aws s3 cp s3://bucket/model.keras ." in err


def test_a_file_by_its_address_is_one_of_this_machine(cnnfeat, model, photos, tmp_path):
    code, _, err = cnnfeat(
        *("extract", "--model", f"file://{model}", "--layer", "fc1"),
        *("--data", f"file://{photos}"),
        *("-o", f"file://{tmp_path}/x.h5"),
    )
    assert code == 0, err
    code, out, err = cnnfeat("verify", f"file://{tmp_path}/x.h5")
    assert code == 0 and out.startswith(f"{tmp_path}/x.h5: all "), err


def test_a_refusal_in_the_middle_of_an_extraction_is_an_error_of_the_store(
    cnnfeat, model, photos, bucket, proxy
):
    proxy.times(99, "403", "GET", "/photos/b/41.png")
    code, _, err = cnnfeat(
        *("extract", "--model", model, "--layer", "fc1", "--on-error", "skip"),
        *("--data", f"s3://{bucket.name}/photos", "-o", "x.h5"),
    )
    assert code == 5
    assert f"error: s3://{bucket.name}/photos/b/41.png: forbidden: " in err
    assert "Traceback" not in err


def test_nothing_of_a_client_is_left_on_the_terminal(photos, bucket, proxy, objectstore, tmp_path):
    """In a process of its own, which ends as any does."""
    bucket.put("made/features.h5", b"no feature file")
    done = subprocess.run(
        [sys.executable, "-m", "cnnfeat", "verify", f"s3://{bucket.name}/made/features.h5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    first, *others = done.stderr.splitlines()
    assert first.startswith("error: ") and all(line.startswith("hint: ") for line in others)
