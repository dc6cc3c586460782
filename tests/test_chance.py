"""Random pixels with random labels: whatever is said of them must be what chance says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.options import parse_config
from cnnfeat.pipeline import run_pipeline

N_IMAGES, SIDE = 300, 12
KINDS = ("arrays", "folder", "npz")


def noise(kind: str, folder: Path, seed: int) -> dict[str, str]:
    """As many images of one class as of the other, so that chance is a half; the [data] of them."""
    generator = np.random.default_rng(1_000 + seed)
    x = generator.integers(0, 256, (N_IMAGES, SIDE, SIDE), np.uint8)
    y = generator.permutation(np.arange(N_IMAGES) % 2)
    if kind == "npz":
        np.savez(folder / "x.npz", images=x, labels=y)
        return {"source": str(folder / "x.npz")}
    if kind == "arrays":
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        return {"source": str(folder / "x.npy"), "labels": str(folder / "y.npy")}
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        path = folder / "photos" / "ab"[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return {"source": str(folder / "photos")}


def run(kind: str, folder: Path, seed: int):
    """A network that learns its rows by heart, and an SVM on it."""
    folder.mkdir()
    return run_pipeline(
        parse_config(
            {
                "data": noise(kind, folder, seed),
                "network": {"conv": [{"filters": 8, "kernel_size": 3}], "dense": [{"units": 32}]},
                "train": {"epochs": 15, "batch_size": 32, "seed": seed},
                "extract": {"layer": ["conv1", "fc1"]},
                "svm": {"layer": "fc1", "grid": [0.001, 0.1], "seed": seed},
            }
        ),
        folder=folder / "artifacts",
    )


def check(intervals: list[tuple[float, float]], accuracies: list[float], n_rows: int) -> None:
    """At least 16 of 20 intervals hold a half, and all rows together are within 3 errors of it."""
    holding = sum(low <= 0.5 <= high for low, high in intervals)
    assert holding >= 0.8 * len(intervals), intervals
    error = math.sqrt(0.25 / (n_rows * len(accuracies)))
    assert abs(float(np.mean(accuracies)) - 0.5) <= 3 * error, accuracies


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_random_labels_says_chance(kind: str, tmp_path: Path):
    result = run(kind, tmp_path / "0", 0)
    check([result.svm_accuracy_interval], [result.svm_accuracy], N_IMAGES // 5)
    assert abs(result.network_accuracy - 0.5) <= 3 * math.sqrt(0.25 / 60)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_random_labels_say_chance_with_every_seed(kind: str, tmp_path: Path):
    results = [run(kind, tmp_path / str(seed), seed) for seed in range(20)]
    accuracies = [result.svm_accuracy for result in results]
    check([result.svm_accuracy_interval for result in results], accuracies, N_IMAGES // 5)
    networks = [result.network_accuracy for result in results]
    assert abs(np.mean(networks) - 0.5) <= 3 * math.sqrt(0.25 / 1_200)
