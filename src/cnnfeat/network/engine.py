"""What runs a probe's graph: TensorFlow itself.

An engine gets the whole graph, from pixels to pooled activations, as TensorFlow's function, and
returns what runs it from array to arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network.runtime import with_precision
from cnnfeat.options import Precision
from cnnfeat.records import Array

Run = Callable[[Array], Sequence[Array]]  # images in, one array of activations a tensor out

_BOUND_BYTES = 1 << 16  # of a weight that becomes a constant


class UnservedError(NetworkError):
    """A graph that an engine can't run, where another may."""


class Engine(Protocol):
    """Compiles the graph of a probe."""

    name: str  # of its package

    def bind(self, values: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """Bring weights, by name, into the graph that is being built."""

    def compile(self, function: tf.types.experimental.ConcreteFunction, *, batch_size: int) -> Run:
        """Compile a graph of one input and some outputs, for batches of about so many images.

        Raises
        ------
        UnservedError
            If this engine can't run it.
        """


class TensorFlow:
    """TensorFlow's own runtime.

    Parameters
    ----------
    precision : Precision
        Of convolutions and matrix products.
    """

    name = "tensorflow"

    def __init__(self, precision: Precision = "float32") -> None:
        self._precision = precision

    def bind(self, values: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """Write small ones into the graph as constants, and hand the others in as they are.

        TensorFlow copies a constant several times, and gains nothing measurable from large ones
        once batch norms are folded.
        """
        return {
            name: tf.constant(value.numpy()) if _is_small(value) else value
            for name, value in values.items()
        }

    def compile(
        self,
        function: tf.types.experimental.ConcreteFunction,
        *,
        batch_size: int,  # noqa: ARG002 - whole batches, whatever their size
    ) -> Run:
        """Have TensorFlow run the function; what comes out isn't copied."""
        call = with_precision(function, self._precision)

        def run(images: Array) -> list[Array]:
            return [as_array(tensor) for tensor in call(tf.constant(images))]

        return run


def as_array(tensor: tf.Tensor) -> Array:
    """View a tensor as an array, without a copy."""
    return np.asarray(memoryview(tensor))


def _is_small(value: tf.Tensor) -> bool:
    size_bytes = (value.shape.num_elements() or 0) * (value.dtype.size or 0)
    return value.dtype not in {tf.resource, tf.variant} and size_bytes <= _BOUND_BYTES
