"""What all tests share: a seed, a clean environment, commands, the real MNIST where it is."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

_DATA_DIR = os.environ.get("CNNFEAT_DATA_DIR")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line does


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No option comes from the tester's own environment, and no cache is the tester's own."""
    for name in list(os.environ):
        if name.startswith("CNNFEAT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class Done(NamedTuple):
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cnnfeat(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Type a command. It runs in this process, so that TensorFlow starts once and not for each."""
    from cnnfeat.cli import main

    def run(*args: object, folder: Path | None = None, **environment: str) -> Done:
        words = [str(word) for word in args]
        monkeypatch.setattr(sys, "argv", ["cnnfeat", *words])
        if folder is not None:
            monkeypatch.chdir(folder)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stopped:
            main(words)
        return Done(int(stopped.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_240_229)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with mnist/ in it."""
    if _DATA_DIR is None or not (Path(_DATA_DIR) / "mnist").is_dir():
        pytest.skip("CNNFEAT_DATA_DIR names no folder with mnist/ in it")
    return Path(_DATA_DIR).resolve()


@pytest.fixture(scope="session")
def mnist_dir(data_dir: Path) -> Path:
    """The folder with the four MNIST files, packed."""
    return data_dir / "mnist"


@pytest.fixture(scope="session")
def mnist_arrays(mnist_dir: Path) -> dict[str, np.ndarray]:
    """MNIST by the shortest way there is: `train_images` (60000, 28, 28) uint8 and so on."""
    files = {
        "train_images": ("train-images-idx3-ubyte.gz", 16, (60_000, 28, 28)),
        "train_labels": ("train-labels-idx1-ubyte.gz", 8, (60_000,)),
        "test_images": ("t10k-images-idx3-ubyte.gz", 16, (10_000, 28, 28)),
        "test_labels": ("t10k-labels-idx1-ubyte.gz", 8, (10_000,)),
    }
    return {
        name: np.frombuffer(
            gzip.decompress((mnist_dir / file).read_bytes()), np.uint8, offset=skip
        ).reshape(shape)
        for name, (file, skip, shape) in files.items()
    }
