"""A small feature file, and the arrays that are in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cnnfeat.features import FeatureWriter, FilePlan, SplitPlan, plan_columns, write_arrays

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


@pytest.fixture
def write(work: ModuleType) -> Callable:
    """Write what the probe of worker.py gives for a source: an extraction in one thread."""

    def call(path, source, *, batch_size=8, on_error="raise", resume=False, **options):
        probe = work.CountingProbe()
        columns = plan_columns(probe.outputs, dtype="float32", has_labels=True)
        plans = tuple(
            SplitPlan(name, info.n_samples, columns) for name, info in source.splits.items()
        )
        settings = {"splits": ", ".join(source.splits)}
        said = {"settings": json.dumps(settings)}
        plan = FilePlan(plans, source.classes, said, settings, source.state())
        if resume and FeatureWriter.finished_before(path, plan):
            return
        with FeatureWriter(path, plan, resume=resume, **options) as writer:
            for split in plans:
                for batch in source.batches(
                    split.name,
                    batch_size=batch_size,
                    start=writer.position(split.name),
                    stop=split.n_rows,
                    on_error=on_error,
                ):
                    writer.append(split.name, batch, probe(batch.images))
            writer.finish()

    return call
