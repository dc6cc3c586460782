"""Fitting the weights of a network: the compiled steps, the epochs, and the best of these.

Many steps are one call of TensorFlow, whose threads then have no time to fall asleep. A batch is
computed in two halves side by side, each on a core of its own if TensorFlow was started so: they
wait for each other once a step, where operations that are divided among cores wait after each.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat.card import Epoch
from cnnfeat.errors import NetworkError
from cnnfeat.network.augmentation import AS_THEY_ARE, Augmentation, Draws
from cnnfeat.network.starting import calls_of_training
from cnnfeat.options import RunOptions, TrainOptions
from cnnfeat.progress import Progress
from cnnfeat.records import Labels, RowNumbers

logger = logging.getLogger("cnnfeat")

EVALUATION_BATCH = 1_000
AUTO_EPOCHS = 6
AUTO_STEPS = 1_500  # what a small source gets at least
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


class Steps:
    """A network's steps, and its evaluation, compiled.

    Parameters
    ----------
    network : keras.Model
        Images in, logits out; its weights are changed in place.
    optimizer : keras.optimizers.Optimizer
        What a step does with the gradients.
    n_parts : int
        In how many parts a batch is computed side by side. The sum of their gradients is the
        batch's, but for rounding; where images of a batch act on each other it is not: 1.
    augmentation : Augmentation
        How images are varied before a step takes them; by default they aren't.
    """

    def __init__(
        self,
        network: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        n_parts: int,
        augmentation: Augmentation = AS_THEY_ARE,
    ) -> None:
        optimizer.build(network.trainable_variables)
        self._network, self._optimizer, self._n_parts = network, optimizer, n_parts
        self._augmentation = augmentation
        self._n_steps = 1  # of the next call
        images, labels = (None, *network.input_shape[1:]), (None,)
        dtype = network.inputs[0].dtype
        self._descend = self._compiled(
            self._trace_descent,
            [
                tf.TensorSpec((None, *images), dtype),
                tf.TensorSpec((None, *labels), tf.int64),
                tf.TensorSpec((None, None, augmentation.n_draws), tf.float32),
            ],
        )
        self._score = self._compiled(
            self._trace_score, [tf.TensorSpec(images, dtype), tf.TensorSpec(labels, tf.int64)]
        )

    def _compiled(
        self,
        trace: Callable[..., tf.Tensor],
        signature: list[tf.TensorSpec],
    ) -> Callable[..., NDArray[np.float32]]:
        """Compile for batches in parts, and for those of fewer images than parts: in one."""
        functions = {
            n_parts: tf.function(
                partial(trace, n_parts), input_signature=signature, autograph=False
            )
            for n_parts in {1, self._n_parts}
        }

        def call(images: NDArray[np.generic], labels: Labels, *drawn: Draws) -> NDArray[np.float32]:
            n_parts = self._n_parts if labels.shape[-1] >= self._n_parts else 1
            sums: NDArray[np.float32] = functions[n_parts](images, labels, *drawn).numpy()
            return sums

        return call

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

    def evaluate(self, samples: Samples) -> Score:
        """Score the network as it is."""
        totals = np.zeros(2)
        for start in range(0, len(samples), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            totals += self._score(samples.images[rows], samples.labels[rows])
        return Score(*(totals / len(samples)).tolist())

    def _trace_descent(
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
        weights = self._network.trainable_variables
        sums, gradients = [], []
        for some_images, some_labels, some_drawn in _parts(n_parts, images, labels, drawn):
            varied = self._augmentation.graph(some_images, some_drawn)
            with tf.GradientTape() as tape:
                logits = self._network(varied, training=True)
                sums.append(_sums(logits, some_labels))
                loss = sums[-1][0] / size
            gradients.append(tape.gradient(loss, weights))
        self._optimizer.apply([tf.add_n(parts) for parts in zip(*gradients, strict=True)], weights)
        return tf.add_n(sums)

    def _trace_score(self, n_parts: int, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.add_n(
            [
                _sums(self._network(some_images, training=False), some_labels)
                for some_images, some_labels in _parts(n_parts, images, labels)
            ]
        )


def _parts(n_parts: int, *batch: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
    """Cut what belongs to a batch's images into parts, all alike."""
    size = tf.shape(batch[0])[0]
    bounds = [size * number // n_parts for number in range(n_parts + 1)]
    return [tuple(one[a:b] for one in batch) for a, b in itertools.pairwise(bounds)]


def _sums(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy, and how many are right, each summed over the samples."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = tf.argmax(logits, axis=1) == labels
    return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.float32))])


def fit(
    network: keras.Model,
    samples: Samples,
    validation: Samples,
    config: RunOptions,
    progress: Progress,
) -> tuple[list[Epoch], Steps]:
    """Train, and leave the network with the weights of its best epoch.

    Parameters
    ----------
    network : keras.Model
        Untrained; its weights are changed in place.
    samples : Samples
        What it is fitted to.
    validation : Samples
        What picks the epoch.
    config : RunOptions
        Its tables `network`, `train` and `augment` are used.
    progress : Progress
        Told each call and epoch.

    Returns
    -------
    history : list of Epoch
        How each epoch went.
    steps : Steps
        To evaluate the network on other samples.

    Raises
    ------
    NetworkError
        If the loss is no number after the first epoch.
    """
    options = config.train
    n_steps = -(-len(samples) // options.batch_size)
    n_epochs = _epochs(options, n_steps)
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, n_steps * n_epochs)
    steps = Steps(
        network,
        keras.optimizers.Adam(rate),
        n_parts=calls_of_training(config.network),
        augmentation=Augmentation(config.augment, seed=options.seed),
    )
    best, orders = _Best(network, options.patience), _orders(len(samples), options.seed)
    with progress.task("training", total=n_epochs * len(samples), unit="images") as task:
        for number, order in zip(range(n_epochs), orders, strict=False):
            fitted = steps.epoch(
                samples, order, batch_size=options.batch_size, turn=number, told=task.advance
            )
            validated = steps.evaluate(validation)
            task.advance(
                0,
                note=f"epoch {number + 1}/{n_epochs}, loss {fitted.loss:.4f}, "
                f"validation accuracy {validated.accuracy:.2%}",
            )
            learning_rate = float(rate(number * n_steps))
            if not best.goes_on(fitted, validated, learning_rate):
                break
    network.set_weights(best.weights)
    return best.history, steps


def _orders(n_samples: int, seed: int) -> Iterator[RowNumbers]:
    """Shuffle the rows for each epoch, in the orders that earlier versions took them in."""
    keras.utils.set_random_seed(seed)
    rows = tf.data.Dataset.range(n_samples)
    rows = rows.shuffle(n_samples, seed=seed, reshuffle_each_iteration=True).batch(n_samples)
    while True:
        (order,) = rows.as_numpy_iterator()
        yield order
        next(rows.as_numpy_iterator())  # every other order, as Keras's own loop did


def _epochs(config: TrainOptions, steps: int) -> int:
    if config.epochs == "auto":
        return max(AUTO_EPOCHS, -(-AUTO_STEPS // steps))
    return config.epochs


class _Best:
    """Keep the history, and the weights of the epoch that validates best."""

    def __init__(self, network: keras.Model, patience: int) -> None:
        self._network, self._patience = network, patience
        self.history: list[Epoch] = []
        self.weights: list[NDArray[np.float32]] = []

    def goes_on(self, fitted: Score, validated: Score, learning_rate: float) -> bool:
        """Record an epoch; say whether another is worth while."""
        if not (math.isfinite(fitted.loss) and math.isfinite(validated.loss)):
            self._tell_diverged(fitted, validated)
            return False
        self.history.append(
            Epoch(
                epoch=len(self.history) + 1,
                loss=fitted.loss,
                accuracy=fitted.accuracy,
                val_loss=validated.loss,
                val_accuracy=validated.accuracy,
                learning_rate=learning_rate,
            )
        )
        latest, best = len(self.history) - 1, best_epoch(self.history)
        if best == latest:
            self.weights = self._network.get_weights()
        return not 0 < self._patience <= latest - best

    def _tell_diverged(self, fitted: Score, validated: Score) -> None:
        """Weights have become immense; the best before that are kept."""
        found = f"loss is {fitted.loss} and val_loss is {validated.loss}"
        if not self.history:
            raise NetworkError(
                f"the training has diverged: {found} after its first epoch",
                hint="a smaller --learning-rate, or [network] weight_stddev and bias; or pixels of "
                "a smaller range",
            )
        logger.warning(
            "the training has diverged, and ends: %s after epoch %d; what was best before is kept",
            found,
            len(self.history) + 1,
        )


def best_epoch(history: Sequence[Epoch]) -> int:
    """Index of the epoch with the highest validation accuracy; of equals, the lowest loss."""
    return max(
        range(len(history)),
        key=lambda i: (history[i]["val_accuracy"], -history[i]["val_loss"]),
    )
