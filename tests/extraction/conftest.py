"""Extractions of the NumPy source and probe of worker.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

WORKER = Path(__file__).with_name("worker.py")


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
