"""The three commands, typed one after the other in an empty folder."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

from cnnfeat.network.architecture import build_network
from cnnfeat.options import ArchitectureOptions

CONFIGS = Path(__file__).parents[1] / "configs"
PAGE = Path(__file__).parents[1] / "docs" / "pages" / "how" / "tf1-checkpoint.md"


def typed(folder: Path, *args: str, data_dir: Path | None = None) -> str:
    """Run a command in `folder`; return its stdout."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    if data_dir is not None:
        environment["CNNFEAT_DATA_DIR"] = str(data_dir)
    done = subprocess.run(
        [sys.executable, "-m", "cnnfeat", *args],
        cwd=folder, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def layer_by_layer(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's output in inference mode, by plain Keras, one layer at a time."""
    outputs, x = {}, images
    for layer in model.layers[1:]:
        if isinstance(layer, keras.Model):
            inner = x
            for part in layer.layers[1:]:
                inner = part(inner, training=False)
                outputs[f"{layer.name}/{part.name}"] = np.asarray(inner)
        x = layer(x, training=False)
        outputs[layer.name] = np.asarray(x)
    return outputs


def assert_equal_activations(stored: np.ndarray, expected: np.ndarray) -> None:
    assert stored.shape == expected.shape
    assert np.abs(stored - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    typed(folder, "train", "--data", "digits", "--epochs", "8")
    typed(folder, "extract", "--layer", "conv*", "--layer", "fc1")
    typed(folder, "svm", "--layer", "fc1")
    return folder / "artifacts"


def test_the_three_commands_leave_their_artifacts(digits_run: Path):
    names = {path.name for path in digits_run.iterdir()}
    assert names >= {
        "model.keras", "model.json", "features.h5", "svm.skops", "svm.json", "confusion.png",
    }  # fmt: skip
    assert not [name for name in names if "partial" in name or name.startswith(".")]


def test_activations_equal_plain_keras_layer_by_layer(digits_run: Path):
    model = keras.models.load_model(digits_run / "model.keras")
    with h5py.File(digits_run / "features.h5") as file:
        rows = sum(file[split]["label"].shape[0] for split in ("train", "test"))
        assert rows == len(load_digits().target)
        assert set(file["test"]) >= {"conv1", "conv2", "fc1", "label", "id"}
        from cnnfeat.data import open_source

        with open_source("digits") as source:
            images = np.concatenate([b.images for b in source.batches("test", batch_size=100)])
        expected = layer_by_layer(model, images)
        for name in ("conv1", "conv2", "fc1"):
            assert_equal_activations(file["test"][name][:], expected[name])
        assert file["test/conv2"].attrs["tensor"].endswith(":0")


def test_the_saved_machine_predicts_what_svm_json_says(digits_run: Path):
    result = json.loads((digits_run / "svm.json").read_text("utf-8"))
    path = digits_run / "svm.skops"
    assert skops.io.get_untrusted_types(file=path) == []
    loaded = skops.io.load(path)
    machine = loaded["pipeline"] if isinstance(loaded, dict) else loaded
    with h5py.File(digits_run / "features.h5") as file:
        X = file["test/fc1"][:].reshape(result["n_test"], -1)
        y = file["test/label"][:]
    predicted = machine.predict(X)
    assert result["accuracy"] == pytest.approx(np.mean(predicted == y))
    assert result["confusion"] == confusion_matrix(y, predicted).tolist()
    assert result["accuracy"] > 0.9


def test_the_stages_print_what_they_made(cnnfeat, digits_run: Path):
    done = cnnfeat("info", "artifacts/features.h5", folder=digits_run.parent)
    assert done.returncode == 0 and "features.h5" in done.stdout
    document = json.loads(cnnfeat("layers", "--json").stdout)
    names = {layer["name"] for layer in document["layers"]}
    assert names >= {"conv1", "conv2", "conv2/conv", "fc1", "fc2"}


@pytest.mark.mnist
def test_mnist_rows_are_mnist(
    cnnfeat, data_dir: Path, mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the seed network as it begins: rows, labels and activations are asked, not accuracy."""
    model = build_network(ArchitectureOptions(), image_shape=(28, 28, 1), n_classes=10, seed=0)
    model.save(tmp_path / "seed.keras")
    words = ["--model", "seed.keras", "--data", "mnist", "--layer", "fc1"]
    monkeypatch.setenv("CNNFEAT_DATA_DIR", str(data_dir))
    assert cnnfeat("extract", *words, folder=tmp_path).returncode == 0
    with h5py.File(tmp_path / "artifacts" / "features.h5") as file:
        for split, stem, n_rows in (("train", "train", 60_000), ("test", "t10k", 10_000)):
            assert file[split]["fc1"].shape == (n_rows, 128)
            assert file[split]["fc1"].dtype == np.float32
            packed = (mnist_dir / f"{stem}-labels-idx1-ubyte.gz").read_bytes()
            labels = np.frombuffer(gzip.decompress(packed), np.uint8, offset=8)
            np.testing.assert_array_equal(file[split]["label"][:], labels)
        packed = (mnist_dir / "t10k-images-idx3-ubyte.gz").read_bytes()
        images = np.frombuffer(gzip.decompress(packed), np.uint8, offset=16)
        expected = layer_by_layer(model, images.reshape(-1, 28, 28, 1)[:2_000])
        assert_equal_activations(file["test/fc1"][:2_000], expected["fc1"])
        assert file["test/fc1"][:].min() == 0  # after ReLU


@pytest.mark.parametrize("recipe", ["fashion-mnist"])
def test_a_recipe_runs_on_a_few_rows(
    cnnfeat, recipe: str, tmp_path: Path, rng: np.random.Generator
):
    """Two of its networks, one epoch of them; the rows are made up, so accuracy is not asked."""
    arrays = {
        f"{key}_{split}": rng.integers(0, high, shape).astype(np.uint8)
        for split, n in (("train", 80), ("test", 20))
        for key, high, shape in (("x", 256, (n, 28, 28)), ("y", 10, (n,)))
    }
    np.savez(tmp_path / "made.npz", **arrays)
    words = ["data.source=made.npz", "train.epochs=1", "train.seeds=[0,1]", "svm.C=0.01"]
    # What a processor has is no part of the recipe.
    words = [part for word in [*words, "train.precision=float32"] for part in ("--set", word)]
    done = cnnfeat("run", CONFIGS / f"{recipe}.toml", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "artifacts" / "features.h5") as file:
        np.testing.assert_array_equal(file["train/label"][:], arrays["y_train"])
        widths = [file[f"test/seed{seed}.flatten"].shape for seed in (0, 1)]
    assert widths == [(20, 3 * 3 * 128)] * 2
    result = json.loads((tmp_path / "artifacts" / "svm.json").read_text("utf-8"))
    assert (result["n_train"], result["n_test"]) == (80, 20)
    assert result["n_features"] == 2 * 3 * 3 * 128


@pytest.mark.mnist
@pytest.mark.slow
@pytest.mark.timeout(7_200)  # a training of minutes, on a busy machine longer
def test_the_defaults_reach_their_accuracy_on_mnist(data_dir: Path, tmp_path: Path):
    typed(tmp_path, "train", data_dir=data_dir)
    model = json.loads((tmp_path / "artifacts" / "model.json").read_text("utf-8"))
    assert model["test_accuracy"] >= 0.992
    typed(tmp_path, "extract", "--layer", "fc1", data_dir=data_dir)
    typed(tmp_path, "svm", data_dir=data_dir)
    result = json.loads((tmp_path / "artifacts" / "svm.json").read_text("utf-8"))
    assert result["accuracy"] >= 0.991


@pytest.mark.mnist
@pytest.mark.slow
def test_the_recipe_for_layers_that_nobody_named(
    mnist_arrays: dict[str, np.ndarray], tmp_path: Path
):
    """Its own words, from the training to the predictions, on a part of MNIST."""
    counts = {"train": 12_000, "test": 2_000}
    arrays = {
        f"{key}_{split}": mnist_arrays[f"{split}_{name}"][:n]
        for split, n in counts.items()
        for key, name in (("x", "images"), ("y", "labels"))
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    section = (
        PAGE.read_text("utf-8")
        .replace('"mnist"', '"mnist.npz"')
        .replace("--data mnist", "--data mnist.npz")
    )
    script, commands = (
        re.search(rf"```{language}\b.*?\n(.*?)```", section, re.DOTALL)[1]
        for language in ("python", "sh")
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    said = [
        typed(tmp_path, *shlex.split(line.removeprefix("cnnfeat ").partition(" > ")[0]))
        for line in commands.splitlines()
        if line.startswith("cnnfeat ")
    ]
    blocks = re.search(r"lists, .*?```\n(.*?)```", section, re.DOTALL)[1]
    assert blocks in said[0]
    assert "(7, 7, 36) for each image, Relu_1:0" in said[1]
    result = json.loads((tmp_path / "artifacts" / "svm.json").read_text("utf-8"))
    assert result["accuracy"] > 0.95
    rows = list(csv.DictReader(said[3].splitlines()))
    right = [row["label"] == row["predicted"] for row in rows]
    assert np.mean(right) == pytest.approx(result["accuracy"])
