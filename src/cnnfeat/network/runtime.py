"""TensorFlow itself: starting it, and what it runs on."""

from __future__ import annotations

import tensorflow as tf


def start() -> None:
    """Find the devices and make them ready; TensorFlow does this once, when first asked.

    GPUs get memory as they need it, so that a second process finds some.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.list_logical_devices()
