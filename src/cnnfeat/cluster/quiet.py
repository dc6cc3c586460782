"""Loaded by Dask into each worker of a cluster of this machine, before it does anything.

A terminal sends Ctrl-C to all processes of a program. It is the driver that hears it. And each
worker keeps to cores of its own: two that share two cores take a quarter more time.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Worker

PROCESSES = "cnnfeat.processes"  # in Dask's settings, which its workers get


def dask_setup(worker: Worker) -> None:
    """Let the worker go on, whatever is typed, leave the terminal alone, and keep to some cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("cnnfeat").addHandler(logging.NullHandler())
    import dask

    n_processes = int(dask.config.get(PROCESSES, 1))
    if hasattr(os, "sched_setaffinity") and str(worker.name).isdecimal():
        cores = share(sorted(os.sched_getaffinity(0)), int(worker.name) % n_processes, n_processes)
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def share(cores: list[int], number: int, n_processes: int) -> list[int]:
    """Give one of several processes its cores; all of them, where there are more processes."""
    if len(cores) < n_processes:
        return cores
    ends = [len(cores) * place // n_processes for place in (number, number + 1)]
    return cores[slice(*ends)]
