"""`cnnfeat info` and `cnnfeat verify`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.features import write_arrays
from cnnfeat.network.standing import Standing, write_standings
from cnnfeat.stages import StageBook

CARD = {
    "format": "cnnfeat-model",
    "format_version": 1,
    "cnnfeat": "0.1.0",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "created": "2026-01-02T03:04:05+00:00",
    "source": {"name": "mnist", "kind": "mnist", "fingerprint": "ab12", "fingerprint_method": "x"},
    "config": {},
    "classes": ["a", "b"],
    "image_shape": [28, 28, 1],
    "history": [{"epoch": 1}, {"epoch": 2}],
    "best_epoch": 2,
    "validation_accuracy": 0.9912,
    "test_accuracy": 0.9931,
    "n_train": 54000,
    "n_validation": 6000,
    "n_test": 10000,
    "elapsed_s": 60.0,
    "model_sha256": "cd34",
}
SVM = {
    "format": "cnnfeat-svm",
    "format_version": 1,
    "layer": "conv2",
    "n_features": 1764,
    "kernel": "linear",
    "C": 0.01,
    "n_train": 60000,
    "n_test": 10000,
    "accuracy": 0.9925,
    "accuracy_interval": [0.9906, 0.994],
    "classes": ["a", "b"],
    "confusion": [[5000, 40], [35, 4925]],
    "features": {"path": "features.h5", "source": "mnist", "network": "model.keras"},
}


@pytest.fixture
def run(cnnfeat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return cnnfeat


@pytest.fixture
def features(tmp_path, rng) -> Path:
    path = tmp_path / "f.h5"
    write_arrays(
        path,
        {"train": {"conv2": rng.normal(size=(600, 2, 3)).astype("float32")}},
        labels={"train": np.arange(600) % 3},
        classes=["a", "b", "c"],
        attributes={
            "network": "model.keras",
            "network_format": "keras",
            "network_test_accuracy": 0.9931,
            "source": "mnist",
            "source_kind": "mnist",
        },
    )
    return path


def test_info_of_a_feature_file(run, features):
    features.rename("named-otherwise.txt")
    code, out, _ = run("info", "named-otherwise.txt")
    assert code == 0
    for words in (
        "feature file",
        "model.keras (keras), test accuracy 99.31%",
        "mnist (mnist)",
        "a, b, c",
        "600 × 2 × 3",
        "float32",
        "14.1 KiB",
    ):
        assert words in out, words
    code, out, _ = run("info", "--json", "named-otherwise.txt")
    said = json.loads(out)
    assert said["kind"] == "feature file"
    assert said["facts"]["rows"] == {"train": 600}
    assert said["layers"]["train"][0]["shape"] == [600, 2, 3]


def test_info_and_verify_take_the_artifact_by_default(run, features):
    Path("artifacts").mkdir()
    features.rename("artifacts/features.h5")
    code, out, _ = run("info")
    assert code == 0 and "artifacts/features.h5: feature file" in out
    code, out, _ = run("verify")
    assert code == 0 and "artifacts/features.h5: all 6 blocks hold" in out


def _zip(path: str, members: dict[str, object]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content))


def test_info_of_a_network_and_its_card(run):
    metadata = {"keras_version": "3.15.1", "date_saved": "2026-01-02"}
    _zip("model.keras", {"config.json": {}, "metadata.json": metadata})
    code, out, _ = run("info", "model.keras")
    assert code == 0 and "model.keras: network" in out and "3.15.1" in out
    assert "accuracy" not in out
    Path("model.json").write_text(json.dumps(CARD))
    for name in ("model.keras", "model.json"):
        code, out, _ = run("info", name)
        assert code == 0
        assert "mnist (mnist), 54000 images" in out
        assert "54,000 images fitted to, 6,000 picked the epoch, 10,000 never seen" in out
        assert "validation 99.12%, test 99.31%" in out and "2, best 2" in out


def test_info_of_an_svm_and_its_result(run):
    _zip("svm.skops", {"schema.json": {"__module__": "sklearn.pipeline", "__class__": "Pipeline"}})
    Path("svm.json").write_text(json.dumps(SVM))
    for name, kind in (("svm.skops", "SVM"), ("svm.json", "SVM result")):
        code, out, _ = run("info", name)
        assert code == 0
        assert f"{name}: {kind}" in out
        assert "conv2 (1764 features)" in out and "99.25% of 10,000 test rows" in out


def test_info_of_damaged_records(run):
    short = {name: value for name, value in SVM.items() if name != "classes"}
    Path("svm.json").write_text(json.dumps(short))
    code, _, err = run("info", "svm.json")
    assert code == 3 and "svm.json: damaged: it lacks classes" in err
    _zip("svm.skops", {"schema.json": {"__module__": "sklearn.pipeline", "__class__": "Pipeline"}})
    code, out, _ = run("info", "svm.skops")
    assert code == 0 and "sklearn.pipeline.Pipeline" in out
    assert "svm.json: damaged: it lacks classes" in out
    Path("model.json").write_text(json.dumps({**CARD, "history": 2}))
    code, _, err = run("info", "model.json")
    assert code == 4 and "model.json: damaged: history must be a list, not 2" in err
    for words in (("info",), ("info", "--json")):
        assert run(*words, "model.json") == (4, "", err)
    _zip("model.keras", {"config.json": {}, "metadata.json": {"keras_version": ["3"]}})
    code, _, err = run("info", "model.keras")
    assert code == 3 and "its metadata.json can't be read: metadata.json.keras_version must" in err
    _zip("svm.skops", {"schema.json": {"__class__": {"a": "b"}}})
    code, _, err = run("info", "svm.skops")
    assert code == 3 and "its schema.json can't be read: schema.json.__class__ must be text" in err
    Path("deep.json").write_text('{"a":' * 100_000)
    code, _, err = run("info", "deep.json")
    assert code == 3 and "no JSON that can be read: it nests more than 64 levels deep" in err


def test_info_of_what_it_does_not_know(run, tmp_path):
    def refused(content: bytes) -> str:
        Path("x").write_bytes(content)
        code, out, err = run("info", "x")
        assert (code, out) == (3, "")
        return err

    assert "it is empty" in refused(b"")
    assert "begins with b'hello" in refused(b"hello there")
    assert "no whole zip archive" in refused(b"PK\x03\x04 torn")
    assert "no JSON" in refused(b'{"format": ')
    assert "format 'other'" in refused(b'{"format": "other"}')
    assert "format version 2" in refused(b'{"format": "cnnfeat-svm", "format_version": 2}')
    with zipfile.ZipFile("x", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "zip archive of 1 other files" in refused(Path("x").read_bytes())
    with h5py.File("x", "w") as file:
        file["a"] = [1]
    assert "no feature file" in refused(Path("x").read_bytes())
    code, _, err = run("info", "none")
    assert code == 2 and "no file none" in err
    code, _, err = run("info", tmp_path)
    assert code == 3 and "is a folder, not a regular file, and there are no shards in it" in err


def test_verify_names_damage_and_exits_3(run, features):
    with h5py.File(features) as file:
        place = file["train/conv2"].id.get_offset()
    with features.open("r+b") as file:
        file.seek(place + 550 * 24)
        file.write(b"\x7f")
    code, out, err = run("verify", features)
    assert code == 3
    assert "split 'train', layer 'conv2', block 1 (rows 512 to 599)" in out
    assert "1 of 6 blocks are damaged" in err
    code, out, _ = run("verify", "--json", features)
    said = json.loads(out)
    assert code == 3
    assert [(d["split"], d["layer"], d["block"]) for d in said["damages"]] == [
        ("train", "conv2", 1)
    ]


def test_verify_of_no_file_says_what_makes_one(run):
    code, _, err = run("verify")
    assert code == 2
    assert "no feature file artifacts/features.h5" in err and "cnnfeat extract" in err


def test_info_says_what_the_network_has_seen(run, tmp_path):
    rows = {"fc": np.zeros((4, 1), "float32")}
    write_arrays(
        tmp_path / "f.h5",
        {"train": rows, "test": rows},
        parts={"train": np.array([1, 1, 2, 1], np.uint8)},
        groups={"train": np.array([1, 1, 2, 2])},
    )
    code, out, _ = run("info", "f.h5")
    assert code == 0
    assert "seen by the network  train: 3 fitted, 1 validation; test: unknown" in out
    code, out, _ = run("info", "--json", "f.h5")
    facts = json.loads(out)["facts"]
    assert facts["parts"] == {"train": {"unseen": 0, "fitted": 3, "validation": 1}, "test": None}
    assert facts["groups"] == {"train": 2, "test": None}


EPOCH = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.75}


def training(path: Path) -> Path:
    """What a committee leaves that is stopped in its second network's third epoch."""
    settings = {"data": "digits", "epochs": "40", "augment": "not given"}
    standings = [
        Standing((EPOCH,) * n, 20.0, ended, (np.zeros((2, 3), np.float32),))
        for n, ended in ((4, True), (2, False))
    ]
    write_standings(path, settings, standings)
    return path


def test_info_says_how_far_an_interrupted_training_is(run, tmp_path):
    code, out, err = run("info", training(tmp_path / "m.keras.training"))
    assert code == 0, err
    assert "m.keras.training: interrupted training" in out
    assert "1 network and 2 epochs of the next, in 40 s" in out
    assert "digits" in out and "not given" not in out
    assert "cnnfeat train with --resume" in out
    found = json.loads(run("info", tmp_path / "m.keras.training", "--json").stdout)
    assert found["kind"] == "interrupted training"
    assert found["facts"]["epochs"] == [4, 2]


def test_info_of_a_training_that_is_cut_off_says_so(run, tmp_path):
    path = training(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:100])
    code, _, err = run("info", path)
    assert code == 3
    assert "is not what an interrupted training leaves, or damaged" in err


def test_info_says_which_stages_of_a_run_stand(run, tmp_path):
    book = StageBook(tmp_path / "run.json")
    for name in ("model.keras", "features.h5"):
        (tmp_path / name).write_text(name)
    book.record("train", {}, [tmp_path / "model.keras"])
    book.record("extract", {}, [tmp_path / "features.h5"])
    book.begin("svm", [tmp_path / "svm.skops"])
    (tmp_path / "features.h5").write_text("another")
    code, out, err = run("info", tmp_path / "run.json")
    assert code == 0, err
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert lines[0][1].endswith("run.json: record of a run")
    assert lines[1:] == [
        ["train", "made model.keras"],
        ["extract", "made features.h5; changed or gone since: features.h5"],
        ["svm", "not done: svm.skops"],
    ]
