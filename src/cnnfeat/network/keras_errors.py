"""What Keras raises when it can't read a file, said as errors of this program."""

from __future__ import annotations

import re
from pathlib import Path

import tensorflow as tf

from cnnfeat.errors import UntrustedModelError
from cnnfeat.network import keras_trust

KERAS_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, OSError, AttributeError, ImportError,
    NotImplementedError, RuntimeError, tf.errors.OpError,
)  # fmt: skip


def unknown_class(path: Path, error: Exception) -> UntrustedModelError | None:
    """Say it plainly where Keras failed for want of a class that somebody wrote."""
    text = str(error)
    match = re.search(r"(?:Unknown layer|Could not locate class|Unknown object): ?'?(\w+)", text)
    if match is None:
        return None
    return keras_trust.unregistered(path, "a layer", match.group(1))


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
