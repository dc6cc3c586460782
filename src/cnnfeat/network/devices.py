"""What TensorFlow computes on: the processor, or a GPU.

Devices are made ready once, when TensorFlow first computes. What shall not be used is hidden before
that, so that no process takes memory of a GPU that it does without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

import tensorflow as tf

from cnnfeat.errors import NetworkError

_GPU = "GPU"


def choose_device(device: str = "auto") -> str:
    """Let TensorFlow compute on one device, and say which: "cpu", "gpu:0" …

    Parameters
    ----------
    device : str
        "cpu", "gpu:N", or "auto": the first GPU that TensorFlow may use, else the processor.

    Raises
    ------
    NetworkError
        If there is no such GPU, or TensorFlow computes on something else already.
    """
    gpus = tf.config.list_physical_devices(_GPU)
    used = tf.config.get_visible_devices(_GPU)
    if device != "auto":
        wanted = _wanted(device, gpus)
        try:
            tf.config.set_visible_devices(wanted, _GPU)
        except RuntimeError as error:
            number = "-1" if device == "cpu" else device.removeprefix("gpu:")
            raise NetworkError(
                f"--device {device}: TensorFlow computes on {_name(used, gpus)} in this process "
                "already",
                hint=f"start the program with CUDA_VISIBLE_DEVICES={number} in its environment",
            ) from error
        used = wanted
    for gpu in used:
        # Too late once TensorFlow computes; a program may have divided the memory itself.
        with suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)
    return _name(used, gpus)


def gpu_names() -> list[str]:
    """Name the GPUs that TensorFlow sees: "gpu:0: NVIDIA A100"."""
    found = tf.config.list_physical_devices(_GPU)
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in found]
    return [f"gpu:{number}: {name or 'unnamed'}" for number, name in enumerate(names)]


def _wanted(
    device: str, gpus: Sequence[tf.config.PhysicalDevice]
) -> list[tf.config.PhysicalDevice]:
    """The GPUs that are to be seen."""
    if device == "cpu":
        return []
    found = re.fullmatch(r"gpu:([0-9]{1,4})", device)
    if not found:
        raise NetworkError(f"--device must be auto, cpu or gpu:N, not {device!r}")
    number = int(found[1])
    if number >= len(gpus):
        there = ", ".join(["cpu", *(f"gpu:{n}" for n in range(len(gpus)))])
        raise NetworkError(
            f"--device {device}: TensorFlow sees no such GPU; there is: {there}",
            hint="--device auto takes a GPU where there is one; TensorFlow sees those of NVIDIA "
            "that have a driver, with pip install 'cnnfeat[gpu]'",
        )
    return [gpus[number]]


def _name(
    used: Sequence[tf.config.PhysicalDevice], gpus: Sequence[tf.config.PhysicalDevice]
) -> str:
    """Of several, TensorFlow computes on the first."""
    return f"gpu:{list(gpus).index(used[0])}" if used else "cpu"
