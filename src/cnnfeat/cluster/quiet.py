"""Loaded by Dask into each worker of a cluster of this machine, before it does anything.

A terminal sends Ctrl-C to all processes of a program. It is the driver that hears it.
"""

from __future__ import annotations

import logging
import signal


def dask_setup(_worker: object) -> None:
    """Let the worker go on, whatever is typed, and leave the terminal alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("cnnfeat").addHandler(logging.NullHandler())
