"""A cluster of two processes, a tiny network, and pictures for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

N = 150


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    """So many images with labels, in two splits."""
    path = tmp_path / "images.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 256, (N, 8, 8, 1), np.uint8),
        y_train=rng.integers(0, 10, N),
        x_test=rng.integers(0, 256, (30, 8, 8, 1), np.uint8),
        y_test=rng.integers(0, 10, 30),
    )
    return path


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A scheduler and two workers, each a process, as a cluster of others' has them."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL + 1,
            preload="cnnfeat.cluster.quiet",
        ) as made,
    ):
        yield made


@pytest.fixture
def extract(cluster, model: Path, pictures: Path, tmp_path: Path) -> Callable:
    """Extract `conv1` of the pictures on the cluster, in ten shards of 16 images at most."""
    from cnnfeat.cluster import ClusterOptions, extract_on_cluster
    from cnnfeat.options import DataOptions, ExtractOptions, ReadOptions

    def run(**changed):
        given = {
            "network": model,
            "data": DataOptions(source=str(pictures)),
            "options": ExtractOptions(layer=("conv1",), batch_size=16),
            "cluster": ClusterOptions(cluster.scheduler_address, shards=10),
            "out": tmp_path / "set",
            "read": ReadOptions(),
            "opened": lambda _source: None,
            "stopping": lambda: contextlib.nullcontext(lambda: False),
        }
        return extract_on_cluster(**{**given, **changed})

    return run


@pytest.fixture
def task_in() -> Callable:
    """What a worker is told; nothing that it names is there."""
    from cnnfeat.cluster.checking import versions_that_count
    from cnnfeat.cluster.worker import Work
    from cnnfeat.options import DataOptions, ExtractOptions, ReadOptions

    def make(folder: Path, **versions: str) -> Work:
        return Work(
            run="a",
            network="nowhere.keras",
            read=ReadOptions(),
            trust=False,
            data=DataOptions(),
            options=ExtractOptions(),
            folder=str(folder),
            n_shards=1,
            versions={**versions_that_count("tensorflow"), **versions},
        )

    return make
