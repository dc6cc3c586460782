"""The NumPy source and probe of worker.py, and what their features must be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cnnfeat.features import FeatureFile, verify_file

WORKER = Path(__file__).with_name("worker.py")


def _load(name: str) -> ModuleType:
    path = WORKER.with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"extraction_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def work() -> ModuleType:
    """The module worker.py."""
    return _load("worker")


@pytest.fixture(scope="session")
def worker_command() -> list[str]:
    """How to run worker.py as a process."""
    return [sys.executable, str(WORKER)]


@pytest.fixture
def run(work: ModuleType) -> Callable:
    """Call `extract` with the source and probe of worker.py."""
    from cnnfeat.extraction import extract

    def call(out, *, sizes=None, source=None, probe=None, changes=None, **options):
        source = source or work.CountingSource(sizes or {"train": 130, "test": 40})
        options.setdefault("batch_size", 16)
        return extract(
            source,
            probe or work.CountingProbe(),
            out=out,
            provenance=work.provenance(source, changes),
            **options,
        )

    return call


@pytest.fixture
def check(work: ModuleType) -> Callable:
    """Check every value of a complete file, by what the features of a row number must be."""

    def checked(path, sizes, *, left_out=None, labelled=True):
        assert verify_file(path).damages == ()
        with FeatureFile(path) as file:
            assert set(file.splits) == set(sizes)
            for split, n in sizes.items():
                gone = (left_out or {}).get(split, set())
                rows = np.array([row for row in range(n) if row not in gone])
                assert file.ids(split) == [f"{split}/{row}.png" for row in rows]
                for number, (name, shape) in enumerate(work.CountingProbe().layers.items()):
                    wanted = work.expected(rows, shape=shape, times=0.5 + number)
                    found = file.read(split, name.replace("/", "."))
                    np.testing.assert_array_equal(found, wanted)
                if labelled:
                    np.testing.assert_array_equal(file.labels(split), rows % 2)
                else:
                    assert file.labels(split) is None
                assert {item.row for item in file.skipped(split)} == gone
        leftovers = [p.name for p in path.parent.iterdir() if p.name.startswith(path.name + ".")]
        assert leftovers == []

    return checked


@pytest.fixture(scope="session")
def disks() -> ModuleType:
    """The module disks.py."""
    return _load("disks")
