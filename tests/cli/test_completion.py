"""What a shell is told behind Tab."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.cli import cli
from cnnfeat.features import write_arrays

CONFIG = {
    "class_name": "Functional",
    "config": {
        "layers": [
            {"class_name": "InputLayer", "config": {"name": "image"}},
            {"class_name": "Conv2D", "config": {"name": "conv1"}},
            {
                "class_name": "Functional",
                "config": {
                    "name": "body",
                    "layers": [{"class_name": "Conv2D", "config": {"name": "conv1"}}],
                },
            },
        ]
    },
}


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Type some words and Tab, as bash asks for it; what is offered, by kind."""
    from cnnfeat.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_CNNFEAT_COMPLETE", "bash_complete")

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(["cnnfeat", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as stopped:
            main([])
        out, err = capfd.readouterr()
        assert (stopped.value.code, err) == (0, "")
        return out.split()

    return ask


def keras_file(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
    return path.name


def feature_file(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    arrays = {"all": {name: np.zeros((2, 3), np.float32) for name in ("conv2", "fc1")}}
    write_arrays(path, arrays, labels={"all": np.arange(2)}, classes=("a", "b"))
    return path.name


def test_commands_and_options(offered):
    assert offered("ex") == ["plain,extract", "plain,export"]
    assert offered("plot", "emb") == ["plain,embedding"]
    assert "plain,--layer" in offered("extract", "--la")


@pytest.mark.parametrize("command", ["train", "extract", "run"])
def test_sources_and_files(offered, command):
    names = offered(command, "--data", "")
    assert names[:4] == ["plain,auto", "plain,mnist", "plain,fashion-mnist", "plain,digits"]
    assert names[-1].startswith("file,")
    assert offered(command, "--data", "fa") == ["plain,fashion-mnist", "file,fa"]


def test_words_of_an_option(offered):
    words = [f"plain,{word}" for word in ("linear", "rbf", "poly", "nystroem")]
    assert offered("svm", "--kernel", "") == words
    assert offered("extract", "--dtype", "float1") == ["plain,float16"]
    assert offered("extract", "--epochs", "") == []


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "--data-dir"),
        ("train", "--labels"),
        ("extract", "--model"),
        ("extract", "-o"),
        ("layers",),
        ("report", "--model"),
        ("run",),
    ],
    ids="_".join,
)
def test_files(offered, words):
    assert offered(*words, "ph") == ["file,ph"]


def test_layers_of_the_model_that_is_named(offered, tmp_path):
    name = keras_file(tmp_path / "net.keras")
    everything = [f"plain,{layer}" for layer in ("image", "conv1", "body", "body/conv1")]
    assert offered("extract", "--model", name, "--layer", "") == everything
    assert offered("plot", "filters", "--model", name, "--layer", "body/") == ["plain,body/conv1"]
    assert offered("extract", "--layer", "") == []
    keras_file(tmp_path / "artifacts" / "model.keras")
    assert offered("extract", "--layer", "") == everything


def test_layers_of_the_features_that_are_named(offered, tmp_path):
    name = feature_file(tmp_path / "f.h5")
    assert offered("svm", name, "--layer", "") == ["plain,conv2", "plain,fc1"]
    assert offered("svm", name, "--layer", "conv2+f") == ["plain,conv2+fc1"]
    assert offered("export", name, "--layer", "f") == ["plain,fc1"]
    assert offered("plot", "embedding", "--features", name, "--layer", "c") == ["plain,conv2"]
    feature_file(tmp_path / "artifacts" / "features.h5")
    assert offered("svm", "--layer", "c") == ["plain,conv2"]


def test_what_can_not_be_read_offers_nothing(offered, tmp_path):
    (tmp_path / "bad.keras").write_bytes(b"PK\x03\x04 no archive")
    with zipfile.ZipFile(tmp_path / "odd.keras", "w") as archive:
        odd = [1, {"config": 2}, {"config": {}}]
        archive.writestr("config.json", json.dumps({"config": {"layers": odd}}))
    for name in ("bad.keras", "odd.keras", "gone.keras"):
        assert offered("extract", "--model", name, "--layer", "") == []


def test_nothing_is_fetched(offered, monkeypatch):
    def fetched(_place: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("cnnfeat.transfer.incoming", fetched)
    assert offered("svm", "s3://bucket/f.h5", "--layer", "c") == []


def test_help_says_where_completion_is_described():
    assert "completion" in cli.get_help(cli.make_context("cnnfeat", [], resilient_parsing=True))
