"""Moving statistics of batch norms, measured on images as they are.

While a network is trained on varied images, its batch norms see those alone, and their statistics
are those of blurred, bent pictures: on pictures as they are a network can make half as many
mistakes again. Averages of weights have statistics of their own too, which no batch ever had; P.
Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018,
measure them anew for that.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from cnnfeat.network.descent import Samples, compiled, parts, signature
from cnnfeat.records import RowNumbers

MEASURED = 8_192  # images, at most
_BATCH = 256  # of them


class NormStatistics:
    """What batch norms of a network take for mean and variance.

    Parameters
    ----------
    network : keras.Model
        Its moving statistics are changed in place, its weights are not.
    n_parts : int
        In how many parts a batch is computed side by side, each with statistics of its own.
    """

    def __init__(self, network: keras.Model, *, n_parts: int) -> None:
        self._network, self._n_parts = network, n_parts
        self._norms = [
            layer
            for layer in _layers(network)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._pass = compiled(self._trace, signature(network), n_parts=n_parts, least=n_parts)

    def measure(self, samples: Samples, rows: RowNumbers) -> None:
        """Measure them on some samples, or on the first of those if they are many.

        Each batch counts by the norm's momentum, the latest most, and together they count for all:
        what was there before does not.
        """
        if not self._norms:
            return
        for norm in self._norms:
            norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
            norm.moving_variance.assign(tf.zeros_like(norm.moving_variance))
        rows, n_updates = rows[:MEASURED], 0
        for some in np.array_split(rows, -(-len(rows) // _BATCH)):
            self._pass(samples.images[some], samples.labels[some])
            n_updates += self._n_parts if len(some) >= self._n_parts else 1
        for norm in self._norms:
            share = 1 - norm.momentum**n_updates
            norm.moving_mean.assign(norm.moving_mean / share)
            norm.moving_variance.assign(norm.moving_variance / share)

    def _trace(self, n_parts: int, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:  # noqa: ARG002
        for (some,) in parts(n_parts, images):
            self._network(some, training=True)
        return tf.constant(0.0)


def _layers(network: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in network.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
