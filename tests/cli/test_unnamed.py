"""A network of TensorFlow 1 whose layers nobody named, through every command that takes a layer."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from cnnfeat import LayerFeatures

v1 = tf.compat.v1
ASKED = ["--feed", "keep_prob=1.0"]


def _weights(*shape: int) -> tf.Variable:
    return v1.Variable(tf.random.truncated_normal(shape, stddev=0.1, seed=sum(shape)))


def _network() -> tf.Operation:
    x = v1.placeholder(tf.float32, [None, 8, 8, 1], name="x")
    labels = v1.placeholder(tf.int64, [None], name="labels")
    keep_prob = v1.placeholder(tf.float32, name="keep_prob")
    h = x
    for before, filters in ((1, 6), (6, 12)):
        h = tf.nn.conv2d(h, _weights(3, 3, before, filters), 1, "SAME") + _weights(filters)
        h = tf.nn.relu(v1.nn.max_pool(h, 2, 2, "SAME"))
    h = tf.nn.relu(tf.matmul(tf.reshape(h, [-1, 48]), _weights(48, 24)) + _weights(24))
    h = v1.nn.dropout(h, rate=1 - keep_prob)
    logits = tf.matmul(h, _weights(24, 10)) + _weights(10)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return v1.train.AdamOptimizer(3e-3).minimize(tf.reduce_mean(loss))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A trained network's folder, and what its second block answers to the first digits."""
    folder = tmp_path_factory.mktemp("checkpoint")
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8, 1) / 16
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(0)
        step = _network()
        session.run(v1.global_variables_initializer())
        for _ in range(300):
            rows = random.integers(0, len(X), 64)
            feeds = {"x:0": X[rows], "labels:0": y[rows], "keep_prob:0": 0.8}
            session.run(step, feeds)
        v1.train.Saver().save(session, str(folder / "model.ckpt"))
        return folder, session.run("Relu_1:0", {"x:0": X[:20]})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    X, y = load_digits(return_X_y=True)
    pixels = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8, 1)
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        x_train=pixels[:1000], y_train=y[:1000], x_test=pixels[1000:1100], y_test=y[1000:1100],
    )  # fmt: skip
    return path


@pytest.fixture
def run(cnnfeat, monkeypatch, tmp_path, checkpoint):
    """Type a command beside the folder `checkpoints`."""
    shutil.copytree(checkpoint[0], tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return functools.partial(cnnfeat, folder=tmp_path)


def test_layers_shows_the_blocks(run) -> None:
    code, out, err = run("layers", "checkpoints")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[2:6] == [
        "conv1  1st convolution block: Conv2D → add → MaxPool → Relu, filters 3×3×1×6, "
        "output (n, 4, 4, 6)",
        "conv2  2nd convolution block: Conv2D_1 → add_1 → MaxPool_1 → Relu_1, filters 3×3×6×12, "
        "output (n, 2, 2, 12)",
        "fc1    1st dense block: MatMul → add_2 → Relu_2, weights 48×24, output (n, 24)",
        "fc2    2nd dense block: MatMul_1 → add_3, weights 24×10, output (n, 10)",
    ]
    assert "MaxPool_1:0" in out  # the operations, as ever
    _, narrowed, _ = run("layers", "checkpoints", "--kind", "conv")
    assert "block" not in narrowed


def test_layers_as_json(run) -> None:
    code, out, err = run("layers", "checkpoints", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["blocks"][1] == {
        "name": "conv2",
        "kind": "convolution",
        "number": 2,
        "operations": ["Conv2D_1", "add_1", "MaxPool_1", "Relu_1"],
        "weights": [[3, 3, 6, 12]],
        "tensor": "Relu_1:0",
        "shape": [None, 2, 2, 12],
        "features": 48,
    }


def test_a_miss_lists_the_blocks(run, images) -> None:
    code, out, err = run("extract", "--model", "checkpoints", "--data", images, "--layer", "conv3")
    assert (code, out) == (4, "")
    assert "conv2 (Conv2D_1 → add_1 → MaxPool_1 → Relu_1)" in err
    assert "did you mean" not in err


@pytest.mark.slow
def test_from_the_checkpoint_to_the_accuracy(run, checkpoint, images, tmp_path: Path) -> None:
    expected = checkpoint[1]
    words = ["--model", "checkpoints", "--data", images, *ASKED]
    code, _, err = run("extract", *words, "--layer", "conv2")
    assert code == 0, err
    said = [line for line in err.splitlines() if line.startswith("conv2: ")]
    assert len(said) == 1 and said[0].endswith("its end is Relu_1:0")
    with h5py.File("artifacts/features.h5") as file:
        stored = file["train/conv2"]
        assert (stored.attrs["layer"], stored.attrs["tensor"]) == ("conv2", "Relu_1:0")
        assert np.abs(stored[:20] - expected).max() <= 0.01 * expected.max()  # pixels were rounded
    code, out, err = run("svm", "--C", "0.1", "--json")
    assert code == 0, err
    assert json.loads(out)["layer"] == "conv2" and json.loads(out)["accuracy"] > 0.8
    with np.load(images) as arrays:
        pixels, label = arrays["x_test"][:30], arrays["y_test"][:30]
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "one.png")
    code, out, err = run("predict", "one.png", "--csv")
    assert code == 0, err
    assert str(label[0]) in out.splitlines()[1].split(",")
    code, out, err = run("plot", "filters", "--layer", "conv2", "-o", "f.png")
    assert code == 0, err
    code, out, err = run("plot", "training")
    assert code == 2 and "no model card checkpoints.json" in err and "--model" in err
    code, out, err = run("plot", "activations", "--layer", "conv1", "--image", "0", "-o", "a.png")
    assert code == 0, err
    code, out, err = run("report", "--json")
    assert code == 0, err
    assert json.loads(out)["missing"] == []
    features = LayerFeatures.from_features("artifacts/features.h5").fit_transform(pixels)
    with h5py.File("artifacts/features.h5") as file:
        np.testing.assert_allclose(
            features, file["test/conv2"][:30].reshape(30, -1), rtol=1e-4, atol=1e-5
        )


def test_layer_features_and_a_run_take_the_name(run, images, tmp_path: Path) -> None:
    with np.load(images) as arrays:
        pixels = arrays["x_test"][:30]
    by_name, by_tensor = (
        LayerFeatures("checkpoints", layer=layer).fit_transform(pixels)
        for layer in ("conv2", "Relu_1:0")
    )
    np.testing.assert_array_equal(by_name, by_tensor)
    (tmp_path / "run.toml").write_text(
        f'[data]\nsource = "{images}"\n'
        '[model]\npath = "checkpoints"\nfeed = { keep_prob = 1.0 }\n'
        '[extract]\nlayer = ["conv2", "fc1"]\n[svm]\nC = 0.1\n',
        "utf-8",
    )
    code, out, err = run("run", "run.toml")
    assert code == 0, err
    assert "on fc1" in out
