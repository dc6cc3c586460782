"""TensorFlow itself: starting it, and what it runs on."""

from __future__ import annotations

import os
from contextlib import suppress

import tensorflow as tf


def start(*, n_calls: int = 1) -> None:
    """Find the devices and make them ready; TensorFlow does this once, when first asked.

    GPUs get memory as they need it, so that a second process finds some.

    Parameters
    ----------
    n_calls : int
        How many calls of a network will be under way at a time. Where they are as many as the
        processor's cores, each keeps to one thread: it costs less than dividing each among all,
        and while only one is under way a core is left to what reads and decodes.
        TF_NUM_INTRAOP_THREADS overrides it; once TensorFlow runs, it is too late.
    """
    if n_calls >= (os.cpu_count() or 1) and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        with suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.list_logical_devices()
