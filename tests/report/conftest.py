"""Small whole runs for the report room: a network, its features, an SVM's outputs."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from cnnfeat.data import open_source
from cnnfeat.features import write_arrays
from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions
from cnnfeat.records import Source

HOSTILE_CLASSES = ("<script>document.title='hacked'<", "\"quoted' & {{ 7 * 7 }}")
HOSTILE_IMAGE = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Run:
    """One run and, from outside the code under test, what is in it."""

    folder: Path
    kernels: dict[str, np.ndarray]  # read by plain Keras
    maps: dict[str, np.ndarray]  # of the test split, computed by plain Keras
    images: dict[str, np.ndarray]  # by id, of the test split
    labels: np.ndarray
    predicted: np.ndarray
    margins: np.ndarray
    ids: list[str]
    classes: tuple[str, ...]

    @property
    def confusion(self) -> np.ndarray:
        return confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes)))


def make_network(path: Path, *, image_shape: tuple[int, int, int], n_classes: int):
    """Build and save a small network; give it back as plain Keras reads it."""
    import keras

    from cnnfeat.network.architecture import build_network

    config = ArchitectureOptions(
        conv=(ConvOptions(filters=4, kernel_size=3), ConvOptions(filters=6, kernel_size=3)),
        dense=(DenseOptions(units=8),),
    )
    build_network(config, image_shape=image_shape, n_classes=n_classes, seed=1).save(path)
    return keras.models.load_model(path)


def read_split(source: Source, split: str) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    batches = list(source.batches(split, batch_size=64))
    labels = None if batches[0].labels is None else np.concatenate([b.labels for b in batches])
    return (
        np.concatenate([batch.images for batch in batches]),
        labels,
        [name for batch in batches for name in batch.ids],
    )


def activations(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Evaluate the network layer by layer, in plain Keras."""
    x = model.get_layer("scale")(images)
    found = {}
    for name in ("conv1", "conv2", "flatten", "fc1"):
        x = model.get_layer(name)(x)
        found[name] = np.asarray(x)
    return found


def model_card(source: Source, sha256: str, image_shape) -> dict[str, object]:
    history = [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "learning_rate": 0.001,
        }
        for epoch in range(1, 4)
    ]
    return {
        **{"format": "cnnfeat-model", "format_version": 1, "cnnfeat": "0", "tensorflow": "0"},
        **{"keras": "0", "created": "2026-01-01T00:00:00+00:00", "config": {}},
        "source": {"name": source.name, "kind": source.kind, "fingerprint": "x"},
        "classes": list(source.classes),
        "image_shape": list(image_shape),
        "history": history,
        **{"best_epoch": 3, "validation_accuracy": 0.8, "test_accuracy": 0.75},
        **{"n_train": 100, "n_validation": 10, "n_test": 360, "elapsed_s": 1.0},
        "model_sha256": sha256,
    }


def svm_document(run_classes, labels, predicted, **more) -> dict[str, object]:
    numbers = range(len(run_classes))
    accuracy = float((labels == predicted).mean())
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    record = {
        **{"layer": "fc1", "tensor": "fc1/relu/Relu:0", "n_features": 8, "C": 0.5},
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.02, min(accuracy + 0.02, 1.0)],
        **{"cv_accuracy": 0.5, "elapsed_s": 0.25},
    }
    return {
        **{"format": "cnnfeat-svm", "format_version": 1, "kernel": "linear", "gamma": None},
        **record,
        **{"normalize": "standard", "pca": None, "n_train": 100, "n_test": len(labels)},
        "classes": list(run_classes),
        "balanced_accuracy": float(np.mean(scores[1])),
        "per_class": [
            {"class": name, "precision": p, "recall": r, "f1": f, "support": int(n)}
            for name, p, r, f, n in zip(run_classes, *map(np.ndarray.tolist, scores), strict=True)
        ],
        "confusion": confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "network_test_accuracy": 0.75,
        "layers": [{**record, "layer": "conv2", "n_features": 24}, record],
        **more,
    }


def write_predictions(path: Path, *, classes, ids, labels, predicted, margins) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "predicted", "margin"])
        for name, true, taken, margin in zip(ids, labels, predicted, margins, strict=True):
            writer.writerow([name, classes[true], classes[taken], float(margin)])


def make_run(folder: Path, source: Source) -> Run:
    """Leave in `folder` what a whole run leaves."""
    from cnnfeat.card import file_sha256

    splits = {name: read_split(source, name) for name in source.splits}
    test = "test" if "test" in splits else "all"
    train = "train" if "train" in splits else "all"
    image_shape = splits[test][0].shape[1:]
    model_path = folder / "model.keras"
    model = make_network(model_path, image_shape=image_shape, n_classes=len(source.classes))
    sha256 = file_sha256(model_path)
    (folder / "model.json").write_text(json.dumps(model_card(source, sha256, image_shape)), "utf-8")

    found = {name: activations(model, images) for name, (images, _, _) in splits.items()}
    fingerprint = source.fingerprint()
    write_arrays(
        folder / "features.h5",
        {name: {k: layers[k] for k in ("conv2", "fc1")} for name, layers in found.items()},
        labels={name: labels for name, (_, labels, _) in splits.items() if labels is not None},
        ids={name: ids for name, (_, _, ids) in splits.items()},
        classes=source.classes,
        attributes={
            **{"network": str(model_path), "network_sha256": sha256, "network_format": "keras"},
            **{"source": source.name, "source_kind": source.kind, "precision": "float32"},
            "source_fingerprint": fingerprint.digest,
            "source_fingerprint_method": fingerprint.method,
            "preprocessing": json.dumps({"scale": "raw", "resize": None}),
            "network_test_accuracy": 0.75,
        },
    )
    (_, labels, _), (test_images, test_labels, test_ids) = splits[train], splits[test]
    machine = LogisticRegression(max_iter=30_000).fit(found[train]["fc1"] * 20, labels)
    scores = machine.predict_proba(found[test]["fc1"] * 20)
    predicted = scores.argmax(axis=1)
    ranked = np.sort(scores, axis=1)
    margins = ranked[:, -1] - ranked[:, -2]
    document = svm_document(source.classes, test_labels, predicted)
    (folder / "svm.json").write_text(json.dumps(document), "utf-8")
    write_predictions(
        folder / "predictions.csv",
        classes=source.classes,
        ids=test_ids,
        labels=test_labels,
        predicted=predicted,
        margins=margins,
    )
    return Run(
        folder,
        {
            name: model.get_layer(name).get_layer("conv").kernel.numpy()
            for name in ("conv1", "conv2")
        },
        found[test],
        dict(zip(test_ids, test_images, strict=True)),
        test_labels,
        predicted,
        margins,
        test_ids,
        source.classes,
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """A run on the bundled digits."""
    with open_source("digits") as source:
        return make_run(tmp_path_factory.mktemp("run"), source)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory) -> Run:
    """A run on a folder of pictures whose names try to become markup."""
    pictures = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for number, name in enumerate(HOSTILE_CLASSES):
        (pictures / name).mkdir()
        for k in range(9):
            pixels = rng.integers(0, 120, (10, 8, 3), np.uint8) + 100 * number
            Image.fromarray(pixels.astype(np.uint8)).save(
                pictures / name / f"{HOSTILE_IMAGE}{k}.png"
            )
    with open_source(str(pictures)) as source:
        return make_run(tmp_path_factory.mktemp("hostile"), source)
