"""Steps of a network down its gradient, compiled, and its score.

Many steps are one call of TensorFlow, whose threads then have no time to fall asleep. A batch is
computed in two halves side by side, each on a core of its own if TensorFlow was started so: they
wait for each other once a step, where operations that are divided among cores wait after each.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat.network.augmentation import AS_THEY_ARE, Augmentation, Draws
from cnnfeat.records import Labels, RowNumbers

EVALUATION_BATCH = 1_000
STEPS_A_CALL = 16  # at most
BYTES_A_CALL = 16 << 20  # of images, about
SECONDS_A_CALL = 0.5  # about: what goes on is told, and a signal heard, in between


@dataclass(frozen=True, slots=True)
class Samples:
    """Images and labels in memory."""

    images: NDArray[np.generic]  # (n_samples, height, width, channels), the source's dtype
    labels: Labels  # (n_samples,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: RowNumbers) -> Samples:
        """Copy some of them, in this order."""
        return Samples(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True)
class Score:
    """How well a network does on some samples."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # fraction whose largest logit is at their label


class Scorer:
    """A network's evaluation, compiled.

    Parameters
    ----------
    network : keras.Model
        Images in, logits out; scored as it is when it is called.
    n_parts : int
        In how many parts a batch is computed side by side.
    """

    def __init__(self, network: keras.Model, *, n_parts: int) -> None:
        self._network = network
        self._sums = compiled(self._trace, signature(network), n_parts=n_parts, least=n_parts)

    def __call__(self, samples: Samples) -> Score:
        """Score the network on samples."""
        totals = np.zeros(2)
        for start in range(0, len(samples), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            totals += self._sums(samples.images[rows], samples.labels[rows])
        return Score(*(totals / len(samples)).tolist())

    def _trace(self, n_parts: int, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.add_n(
            [
                _sums(self._network(some_images, training=False), some_labels)
                for some_images, some_labels in parts(n_parts, images, labels)
            ]
        )


class Steps:
    """A network's steps, compiled.

    Parameters
    ----------
    network : keras.Model
        Images in, logits out; its weights are changed in place.
    optimizer : keras.optimizers.Optimizer
        What a step does with the gradients.
    n_parts : int
        In how many parts a batch is computed side by side. The sum of their gradients is the
        batch's, but for rounding and for batch norm, which norms each part by itself; its moving
        statistics take up one part after the other.
    least : int
        How many images a batch must have to be computed in parts.
    label_smoothing : float
        Share of each label that is spread over all classes (C. Szegedy et al., "Rethinking the
        Inception Architecture", CVPR 2016).
    ema : float
        If above 0, the network's weights are a moving average of the `learner`'s, of which this
        much remains at a step.
    learner : keras.Model, optional
        The same network, of the same first weights, which makes the steps instead.
    augmentation : Augmentation
        How images are varied before a step takes them; by default they aren't.
    """

    def __init__(
        self,
        network: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        n_parts: int,
        least: int = 0,
        label_smoothing: float = 0.0,
        ema: float = 0.0,
        learner: keras.Model | None = None,
        augmentation: Augmentation = AS_THEY_ARE,
    ) -> None:
        self._network, self._learner = network, network if learner is None else learner
        self._optimizer, self._smoothing, self._ema = optimizer, label_smoothing, ema
        self._augmentation = augmentation
        optimizer.build(self._learner.trainable_variables)
        self._n_steps = 1  # of the next call
        batches = [tf.TensorSpec((None, *one.shape), one.dtype) for one in signature(network)]
        batches.append(tf.TensorSpec((None, None, augmentation.n_draws), tf.float32))
        self._descend = compiled(self._trace, batches, n_parts=n_parts, least=max(least, n_parts))
        self.evaluate = Scorer(network, n_parts=n_parts)

    @property
    def variables(self) -> list[keras.Variable]:
        """All that further steps depend on: weights, the optimizer's, and states of dropout."""
        own = [] if self._learner is self._network else self._network.variables
        return [*self._learner.variables, *self._optimizer.variables, *own]

    @property
    def n_done(self) -> int:
        """How many steps were made."""
        return int(self._optimizer.iterations)

    def epoch(
        self,
        samples: Samples,
        order: RowNumbers,
        *,
        batch_size: int,
        turn: int = 0,
        told: Callable[[int], None],
    ) -> Score:
        """Make a step for each batch of an epoch.

        Parameters
        ----------
        samples : Samples
            What the network is fitted to.
        order : ndarray of int64, (n_rows,)
            Rows of `samples`, in the order in which they are taken.
        batch_size : int
            Rows a step; the last one takes what remains.
        turn : int
            Number of the epoch: images are varied anew in each.
        told : callable
            Called with a number of rows when they are done.

        Returns
        -------
        Score
            Each row as the network was before its step.
        """
        totals = np.zeros(2)
        room = BYTES_A_CALL // max(1, batch_size * samples.images[:1].nbytes)
        for rows in self._calls(order, batch_size, most=max(1, min(room, STEPS_A_CALL))):
            drawn = self._augmentation.draws(turn, rows)
            totals += self._descend(samples.images[rows], samples.labels[rows], drawn)
            told(rows.size)
        self._hand_on()
        return Score(*(totals / len(order)).tolist())

    def _calls(self, order: RowNumbers, batch_size: int, *, most: int) -> Iterator[RowNumbers]:
        """Cut an epoch into calls of `(n_steps, batch_size)`; the last batch may be smaller.

        How many steps a call makes follows the time that calls take. Weights don't depend on it.
        """
        n_whole, done = len(order) // batch_size, 0
        batches = order[: n_whole * batch_size].reshape(n_whole, batch_size)
        while done < n_whole:
            n_steps, began = min(self._n_steps, most), time.monotonic()
            yield batches[done : done + n_steps]
            done += n_steps
            soon = time.monotonic() - began < SECONDS_A_CALL / 2
            self._n_steps = min(2 * n_steps, most) if soon else max(1, n_steps // 2)
        if n_whole * batch_size < len(order):
            yield order[None, n_whole * batch_size :]

    def _trace(
        self, n_parts: int, images: tf.Tensor, labels: tf.Tensor, drawn: tf.Tensor
    ) -> tf.Tensor:
        """Make a step for each batch of `(n_steps, batch_size, ...)`; return sums over all."""
        n_steps = tf.shape(labels)[0]

        def step(number: tf.Tensor, totals: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            batch = (images[number], labels[number], drawn[number])
            return number + 1, totals + self._step(*batch, n_parts=n_parts)

        return tf.while_loop(lambda number, _: number < n_steps, step, (0, tf.zeros(2)))[1]

    def _step(
        self, images: tf.Tensor, labels: tf.Tensor, drawn: tf.Tensor, *, n_parts: int
    ) -> tf.Tensor:
        size = tf.cast(tf.shape(labels)[0], tf.float32)
        weights = self._learner.trainable_variables
        sums, gradients = [], []
        for some_images, some_labels, some_drawn in parts(n_parts, images, labels, drawn):
            varied = self._augmentation.graph(some_images, some_drawn)
            with tf.GradientTape() as tape:
                logits = self._learner(varied, training=True)
                sums.append(_sums(logits, some_labels))
                loss = self._objective(sums[-1][0], logits) / size
            gradients.append(tape.gradient(loss, weights))
        self._optimizer.apply([tf.add_n(parts) for parts in zip(*gradients, strict=True)], weights)
        if self._ema:
            self._average()
        return tf.add_n(sums)

    def _objective(self, cross_entropy: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Sum over images of what a step makes smaller."""
        if not self._smoothing:
            return cross_entropy
        spread = -tf.reduce_sum(tf.reduce_mean(tf.nn.log_softmax(logits), axis=1))
        return (1 - self._smoothing) * cross_entropy + self._smoothing * spread

    def _average(self) -> None:
        """Take up the weights after a step; the first ones are soon forgotten, however short it is.

        The decay grows with the steps, as that of `tf.train.ExponentialMovingAverage` does.
        """
        n_steps = tf.cast(self._optimizer.iterations, tf.float32)
        taken = 1 - tf.minimum(self._ema, (1 + n_steps) / (10 + n_steps))
        for mean, weight in zip(self._network.weights, self._learner.weights, strict=True):
            mean.assign(mean + taken * (weight - mean))

    def _hand_on(self) -> None:
        """Let the network have the learner's weights, where it has no mean of them."""
        if self._learner is not self._network and not self._ema:
            for own, weight in zip(self._network.weights, self._learner.weights, strict=True):
                own.assign(weight)


def signature(network: keras.Model) -> list[tf.TensorSpec]:
    """A batch of images, and their labels."""
    images = tf.TensorSpec((None, *network.input_shape[1:]), network.inputs[0].dtype)
    return [images, tf.TensorSpec((None,), tf.int64)]


def compiled(
    trace: Callable[..., tf.Tensor],
    taken: list[tf.TensorSpec],
    *,
    n_parts: int,
    least: int,
) -> Callable[..., NDArray[np.float32]]:
    """Compile for batches in parts, and for those of fewer images than `least`: in one piece."""
    functions = {
        n: tf.function(partial(trace, n), input_signature=taken, autograph=False)
        for n in {1, n_parts}
    }

    def call(images: NDArray[np.generic], labels: Labels, *drawn: Draws) -> NDArray[np.float32]:
        n = n_parts if labels.shape[-1] >= least else 1
        sums: NDArray[np.float32] = functions[n](images, labels, *drawn).numpy()
        return sums

    return call


def parts(n_parts: int, *batch: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
    """Cut what belongs to a batch's images into parts, all alike."""
    size = tf.shape(batch[0])[0]
    bounds = [size * number // n_parts for number in range(n_parts + 1)]
    return [tuple(one[a:b] for one in batch) for a, b in itertools.pairwise(bounds)]


def _sums(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy, and how many are right, each summed over the samples."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = tf.argmax(logits, axis=1) == labels
    return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.float32))])
