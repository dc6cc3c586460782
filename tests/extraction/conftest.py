"""Extractions of the NumPy source and probe of worker.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cnnfeat.features import FeatureWriter

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def worker_command() -> list[str]:
    """How to run worker.py as a process."""
    return [sys.executable, str(WORKER)]


@pytest.fixture
def run(work: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Call `extract` with the source and probe of worker.py; options go into their record."""
    from cnnfeat.extraction import extract
    from cnnfeat.extraction import run as running
    from cnnfeat.options import ExtractOptions

    own = {"overwrite", "resume", "shard", "should_stop", "progress"}

    def call(out, *, sizes=None, source=None, probe=None, network=None, disk=None, **options):
        class Writer(FeatureWriter):
            def __init__(self, *args, **given):
                super().__init__(*args, disk=disk, **given)

        monkeypatch.setattr(running, "FeatureWriter", Writer)
        how = {name: options.pop(name) for name in own & set(options)}
        return extract(
            network or work.CountingNetwork(probe),
            source or work.CountingSource(sizes or {"train": 130, "test": 40}),
            ExtractOptions(**{"batch_size": 16, **options}),
            out=out,
            **how,
        )

    return call
