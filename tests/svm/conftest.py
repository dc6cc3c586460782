"""Small feature files made of real digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.features import write_arrays

PROVENANCE = {
    "cnnfeat": "0.1.0",
    "network": "model.keras",
    "network_sha256": "5f" * 32,
    "network_format": "keras",
    "source": "digits",
    "source_kind": "digits",
    "source_fingerprint": "a1" * 32,
    "source_fingerprint_method": "file contents",
    "preprocessing": '{"scale": "unit"}',
    "precision": "float32",
    "network_test_accuracy": 0.97,
}

MakeFile = Callable[..., Path]


@pytest.fixture(scope="session")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """The digits, (1797, 8, 8) float32, and their labels."""
    X, y = load_digits(return_X_y=True)
    return X.astype(np.float32).reshape(-1, 8, 8), y.astype(np.int64)


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Write a feature file from arrays by split and layer."""

    def make(
        splits: Mapping[str, Mapping[str, np.ndarray]],
        labels: Mapping[str, np.ndarray] | None = None,
        *,
        classes: tuple[str, ...] = tuple("0123456789"),
        name: str = "features.h5",
        parts: Mapping[str, np.ndarray] | None = None,
        groups: Mapping[str, np.ndarray] | None = None,
        **attributes: str | float,
    ) -> Path:
        path = tmp_path / name
        write_arrays(
            path,
            splits,
            labels=labels,
            parts=parts,
            groups=groups,
            classes=classes,
            attributes={**PROVENANCE, **attributes},
            overwrite=True,
        )
        return path

    return make


@pytest.fixture
def digits_file(make_file: MakeFile, pixels: tuple[np.ndarray, np.ndarray]) -> Path:
    """Two layers: all pixels, and the upper half of them."""
    X, y = pixels
    parts = {"train": slice(0, 700), "test": slice(700, 1000)}
    return make_file(
        {split: {"whole": X[part], "half": X[part, :4]} for split, part in parts.items()},
        {split: y[part] for split, part in parts.items()},
    )
