"""Random pixels with random labels: whatever is said of them must be what chance says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.configfile import load_config
from cnnfeat.pipeline import run_pipeline

N_IMAGES, SIDE = 300, 12
N_TEST = N_IMAGES // 5
KINDS = ("arrays", "folder", "npz")
# A network that learns its rows by heart.
OPTIONS = """
[network]
conv = [{{ filters = 8, kernel_size = 3 }}]
dense = [{{ units = 32 }}]
[train]
epochs = 15
batch_size = 32
seed = {seed}
[extract]
layer = ["conv1", "fc1"]
[svm]
layer = "fc1"
grid = [0.001, 0.1]
seed = {seed}
"""


def noise(kind: str, folder: Path, seed: int) -> str:
    """As many images of one class as of the other, so that chance is a half; [data] of them."""
    generator = np.random.default_rng(1_000 + seed)
    x = generator.integers(0, 256, (N_IMAGES, SIDE, SIDE), np.uint8)
    y = generator.permutation(np.arange(N_IMAGES) % 2)
    if kind == "npz":
        np.savez(folder / "x.npz", images=x, labels=y)
        return f'source = "{folder / "x.npz"}"\n'
    if kind == "arrays":
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        return f'source = "{folder / "x.npy"}"\nlabels = "{folder / "y.npy"}"\n'
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        path = folder / "photos" / "ab"[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return f'source = "{folder / "photos"}"\n'


def run(kind: str, folder: Path, seed: int):
    folder.mkdir()
    text = f"[data]\n{noise(kind, folder, seed)}{OPTIONS.format(seed=seed)}"
    (folder / "c.toml").write_text(text, "utf-8")
    return run_pipeline(load_config(folder / "c.toml"), folder=folder / "artifacts")


def near_chance(rates: Sequence[float], n_rows: int) -> bool:
    """Whether all rows together are within three standard errors of a half."""
    return abs(float(np.mean(rates)) - 0.5) <= 3 * math.sqrt(0.25 / (n_rows * len(rates)))


def hold_chance(intervals: Sequence[Sequence[float]]) -> int:
    return sum(low <= 0.5 <= high for low, high in intervals)


@pytest.mark.parametrize(
    "kind", ["folder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("arrays", "npz"))]
)
def test_a_run_on_random_labels_says_chance(kind: str, tmp_path: Path):
    result = run(kind, tmp_path / "0", 0)
    assert hold_chance([result.svm_accuracy_interval])
    assert near_chance([result.svm_accuracy], N_TEST)
    assert near_chance([result.network_accuracy], N_TEST)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_random_labels_say_chance_with_every_seed(kind: str, tmp_path: Path):
    results = [run(kind, tmp_path / str(seed), seed) for seed in range(20)]
    assert hold_chance([result.svm_accuracy_interval for result in results]) >= 16
    assert near_chance([result.svm_accuracy for result in results], N_TEST)
    assert near_chance([result.network_accuracy for result in results], N_TEST)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_on_random_labels_say_chance_with_every_seed(
    cnnfeat, kind: str, tmp_path: Path, monkeypatch
):
    """The three of them; and instead of the last one, `--cv` and `--layer all`."""
    ways = {"plain": [], "cv": ["--cv"], "all": ["--layer", "all"]}
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        monkeypatch.chdir(tmp_path / str(seed))
        text = f"[data]\n{noise(kind, Path.cwd(), seed)}{OPTIONS.format(seed=seed)}"
        Path("c.toml").write_text(text, "utf-8")
        for words in (["train"], ["extract"]):
            done = cnnfeat(*words, "--config", "c.toml")
            assert done.returncode == 0, done.stderr
        for way, words in ways.items():
            done = cnnfeat("svm", "--config", "c.toml", *words, "-o", way, "--json")
            assert done.returncode == 0, done.stderr
            found[way].append(json.loads(done.stdout))
    for results in found.values():
        (n_rows,) = {result["n_test"] for result in results}
        assert hold_chance([result["accuracy_interval"] for result in results]) >= 16
        assert near_chance([result["accuracy"] for result in results], n_rows)
