"""A small feature file, and the arrays that are in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.features import write_arrays

N_TRAIN, N_TEST = 1300, 300


@dataclass
class Sample:
    path: Path
    splits: dict[str, dict[str, np.ndarray]]
    labels: dict[str, np.ndarray]
    ids: dict[str, list[str]]


@pytest.fixture
def sample(tmp_path: Path, rng: np.random.Generator) -> Sample:
    splits = {
        split: {
            "conv2": rng.normal(size=(n, 3, 3, 5)).astype("float32"),
            "block/fc1": rng.normal(size=(n, 8)).astype("float32"),
        }
        for split, n in (("train", N_TRAIN), ("test", N_TEST))
    }
    labels = {split: rng.integers(0, 3, len(a["conv2"])) for split, a in splits.items()}
    ids = {split: [f"{split}/ü{i}.png" for i in range(len(labels[split]))] for split in splits}
    path = tmp_path / "features.h5"
    write_arrays(
        path, splits, labels=labels, ids=ids, classes=["a", "b", "ç"], attributes={"network": "m"}
    )
    return Sample(path, splits, labels, ids)
