"""Cards, results and records of runs whose bytes or values were changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.data import open_source
from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.svm import svm_stage

SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
NETWORK = b"no network: what comes before it is opened is looked at here"
EPOCH = {"epoch": 1, "loss": 2.5, "accuracy": 0.25, "val_loss": 2.25, "val_accuracy": 0.5}
BOOK = {
    "format": "cnnfeat-run",
    "format_version": 1,
    "stages": {
        "train": {"inputs": "ab" * 32, "outputs": {"model.keras": [len(NETWORK), 1]}},
        "extract": {"inputs": "", "outputs": {}, "begun": ["features.h5"]},
    },
}
CONFIG = """
[data]
source = "digits"
[model]
path = "model.keras"
[extract]
layer = ["fc1"]
"""


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    """The card of a network that was trained on the digits."""
    with open_source("digits") as source:
        fingerprint = source.fingerprint().digest
    return {
        "format": "cnnfeat-model", "format_version": 1,
        "cnnfeat": "0.1.0", "tensorflow": "2.21.0", "keras": "3.15.1",
        "created": "2026-01-01T00:00:00+00:00",
        "config": {
            "data": {"source": "digits", "resize": [8, 8], "fit": "crop", "min_per_class": 1},
            "network": {"conv": [{"filters": 16, "kernel_size": 5}], "bias": 0.05},
            "train": {"epochs": 2, "seed": 0, "test_fraction": 0.2},
        },
        "source": {"name": "digits", "kind": "digits", "fingerprint": fingerprint},
        "classes": list("0123456789"),
        "image_shape": [8, 8, 1],
        "history": [EPOCH, {**EPOCH, "epoch": 2, "learning_rate": 0.001}],
        "best_epoch": 2, "validation_accuracy": 0.5, "test_accuracy": 0.75,
        "n_train": 1294, "n_validation": 144, "n_test": 359, "elapsed_s": 1.5,
        "model_sha256": hashlib.sha256(NETWORK).hexdigest(),
        "division": {
            "test_fraction": 0.2, "validation": 0.1, "seed": 0, "group_by": None,
            "min_per_class": 1, "parts_sha256": "ab" * 32,
        },
        "pixels": {"mean": 0.3, "spread": 0.25, "colour": 0.0, "histogram": [0.0625] * 16},
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features, and what an SVM stage has left beside them."""
    X, y = load_digits(return_X_y=True)
    folder, rows = tmp_path_factory.mktemp("results"), np.flatnonzero(y < 3)[:120]
    layers = {"whole": X[rows].astype(np.float32), "half": X[rows, :32].astype(np.float32)}
    write_arrays(
        folder / "features.h5",
        {"train": {name: X[:80] for name, X in layers.items()},
         "test": {name: X[80:] for name, X in layers.items()}},
        labels={"train": y[rows[:80]].astype(np.int64), "test": y[rows[80:]].astype(np.int64)},
        classes=("0", "1", "2"),
        attributes={"network": "model.keras", "network_sha256": "5f" * 32, "source": "digits"},
    )  # fmt: skip
    options = SvmOptions(layer=("all",), grid=(0.1, 1.0), class_weight=(("1", 2.0),))
    svm_stage(folder / "features.h5", folder, options=options)
    return folder


@pytest.mark.parametrize("n_inputs", [50, pytest.param(10_000, marks=SLOW)])
def test_changed_documents_end_in_a_named_error(fuzz, mutators, card, results, n_inputs):
    def changed(random: Random, document: dict[str, object]) -> bytes:
        text = json.dumps(document).encode()
        if random.random() < 0.15:
            return mutators.change_bytes(random, text)
        return mutators.change_document(random, text)

    def make_card(random: Random, folder: Path) -> list[list[str]]:
        (folder / "model.keras").write_bytes(NETWORK)
        (folder / "model.json").write_bytes(changed(random, card))
        (folder / "c.toml").write_text(CONFIG, "utf-8")
        draw = ["plot", "training", "--model", "model.keras", "-o", "t.svg"]
        more = [draw] if random.random() < 0.2 else [["run", "c.toml", "-o", "out"]]
        return [["info", "model.json"], *more]

    def make_result(random: Random, folder: Path) -> list[list[str]]:
        (folder / "svm.json").write_bytes(changed(random, sound))
        (folder / "predictions.csv").write_bytes((results / "predictions.csv").read_bytes())
        commands = [["info", "svm.json"]]
        if random.random() < 0.3:
            drawing = random.choice(("confusion", "layers"))
            commands.append(["plot", drawing, "--svm", "svm.json", "-o", "p.svg"])
        if random.random() < 0.1:
            words = ["--features", results / "features.h5", "--svm", "svm.json"]
            commands.append(["report", *words, "--embedding", "pca", "-o", "r.html"])
        return commands

    def make_book(random: Random, folder: Path) -> list[list[str]]:
        (folder / "model.keras").write_bytes(NETWORK)
        (folder / "c.toml").write_text(CONFIG, "utf-8")
        (folder / "out").mkdir()
        (folder / "out" / "run.json").write_bytes(changed(random, BOOK))
        return [["run", "c.toml", "-o", "out"]]

    sound = json.loads((results / "svm.json").read_text("utf-8"))
    makers = (make_card, make_card, make_result, make_result, make_book)
    outcomes = fuzz(lambda random, folder: random.choice(makers)(random, folder), n_inputs)
    assert outcomes[0] and outcomes[2] and outcomes[3] and outcomes[4]
