"""Joined layers by commands: svm, info, report, plot, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.features import write_arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Digits by halves, in one file and in two."""
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32).reshape(-1, 8, 8), y.astype(np.int64)
    splits = {"train": slice(0, 300), "test": slice(300, 400)}
    (tmp_path / "artifacts").mkdir()
    layers = {"upper": X[:, :4], "lower": X[:, 4:]}
    for name, own in (("artifacts/features", layers), ("a", ["upper"]), ("b", ["lower"])):
        write_arrays(
            tmp_path / f"{name}.h5",
            {s: {layer: layers[layer][rows] for layer in own} for s, rows in splits.items()},
            labels={split: y[rows] for split, rows in splits.items()},
            classes=[str(k) for k in range(10)],
            attributes={"network": f"{name}.keras", "network_sha256": name, "source": "digits"},
        )
    return tmp_path


@pytest.fixture
def typed(cnnfeat):
    def run(folder: Path, *args: object, code: int = 0):
        done = cnnfeat(*args, folder=folder)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


SVM = ("svm", "--C", "0.01")


def test_one_file_and_two_make_the_same_machine(typed, folder: Path):
    one = typed(folder, *SVM, "--layer", "upper+lower", "--json")
    two = typed(folder, *SVM, "a.h5", "b.h5", "--layer", "upper+lower", "-o", "two", "--json")
    first, second = json.loads(one.stdout), json.loads(two.stdout)
    assert first["confusion"] == second["confusion"]
    assert first["n_features"] == second["n_features"] == 64
    for machine in ("artifacts", "two"):
        shown = typed(folder, "info", f"{machine}/svm.json").stdout
        assert "layer" in shown and "upper+lower (64 features)" in shown
    assert "upper (32 features) of a.h5, through a.keras; lower (32 features) of b.h5" in shown
    assert "features" in shown and "a.h5, from digits through a.keras" in shown
    assert "b.h5, from digits through b.keras" in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--layer", "upper+low"), 4, "holds no layer 'low'"),
        (("--layer", "upper+upper"), 2, "has 'upper' twice"),
        (("--layer", "upper+"), 2, "a layer's name is missing beside a +"),
        (("--layer", "upper+lower+upper", "a.h5", "b.h5"), 2, "names 3 layers, and there are 2"),
        (("--layer", "upper", "a.h5", "b.h5"), 4, "b.h5 holds no layer 'upper'"),
        (("--layer", "upper[9-1]"), 4, "holds no layer 'upper[9-1]'"),
        (("a.h5", "b.h5", "none.h5"), 2, "none.h5"),
    ],
    ids=["unknown", "twice", "missing", "count", "every", "pattern", "file"],
)
def test_what_cant_be_joined_is_refused_in_words(typed, folder: Path, words, code, said):
    done = typed(folder, *SVM, *words, code=code)
    assert said in done.stderr
    assert not (folder / "artifacts" / "svm.json").exists()


def test_near_names_are_offered_for_a_part(typed, folder: Path):
    done = typed(folder, *SVM, "--layer", "upper+lowr", code=4)
    assert "did you mean 'lower'?" in done.stderr


def test_files_without_a_named_layer_are_joined_by_their_only_ones(typed, folder: Path):
    done = typed(folder, *SVM, "a.h5", "b.h5", "-o", "two", "--json")
    assert json.loads(done.stdout)["layer"] == "upper+lower"


def test_help_says_which_part_is_whose(typed, folder: Path):
    words = " ".join(typed(folder, "svm", "--help").stdout.split())
    assert "one layer alone is meant in each of them" in words
    assert "conv2+fc1, or a pattern" in words


@pytest.mark.parametrize("machine", ["artifacts", "two"])
def test_pictures_and_pages_of_joined_layers_are_drawn(typed, folder: Path, machine):
    """The features at hand are those of one file: of a machine on two, one has a part of it."""
    layers = ("--layer", "upper+lower", "--layer", "lower" if machine == "artifacts" else "u*+l*")
    files = () if machine == "artifacts" else ("a.h5", "b.h5")
    typed(folder, "svm", *files, *layers, "--grid", "0.001,0.01", "--folds", "2", "-o", machine)
    result = ("--svm", f"{machine}/svm.json")
    for name in ("confusion", "layers"):
        typed(folder, "plot", name, *result, "-o", f"{machine}-{name}.png")
    features = "artifacts/features.h5" if machine == "artifacts" else "b.h5"
    layer = "upper+lower" if machine == "artifacts" else "lower"
    words = ("--layer", layer, "--features", features, "--method", "pca", "-o", f"{machine}.png")
    typed(folder, "plot", "embedding", *words)
    done = typed(
        folder, "report", *result, "--features", features, "--embedding", "pca", "-o",
        f"{machine}.html",
    )  # fmt: skip
    page = (folder / f"{machine}.html").read_text("utf-8")
    assert "SVM on upper+lower" in page
    assert f"Features of {layer} as points" in page
    joined = "upper (32 features)" + (", lower" if machine == "artifacts" else " of a.h5, through")
    assert joined in page
    assert "No embedding" not in done.stderr


def test_a_run_takes_a_joined_layer_and_foresees_its_parts(typed, tmp_path: Path, model: Path):
    X, y = load_digits(return_X_y=True)
    images = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)[:80]
    np.savez(tmp_path / "images.npz", images=images, labels=y[:80] % 2)
    config = (
        '[data]\nsource = "images.npz"\n[model]\npath = "{model}"\n'
        '[extract]\nlayer = ["conv1", "fc1"]\n[svm]\nC = 0.1\nlayer = ["{layer}"]\n'
    )
    for name, layer in (("good", "conv1+fc1"), ("bad", "conv1+fc2")):
        text = config.format(model=model, layer=layer)
        (tmp_path / f"{name}.toml").write_text(text, "utf-8")
    done = typed(tmp_path, "run", "bad.toml", "-o", "bad", code=4)
    assert "'fc2' isn't among the layers that are extracted: conv1, fc1" in done.stderr
    assert not (tmp_path / "bad" / "features.h5").exists()
    typed(tmp_path, "run", "good.toml", "-o", "good")
    document = json.loads((tmp_path / "good" / "svm.json").read_text("utf-8"))
    assert document["layer"] == "conv1+fc1"
    assert "SVM on conv1+fc1" in (tmp_path / "good" / "report.html").read_text("utf-8")
    done = typed(tmp_path, "predict", "images.npz", "--svm", "good/svm.skops", "--csv",
                 "--model", model)  # fmt: skip
    assert len(done.stdout.splitlines()) == 81
