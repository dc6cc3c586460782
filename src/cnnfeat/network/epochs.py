"""The epochs of a training: how many, in which order of rows, and whose weights are kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat.card import Epoch
from cnnfeat.errors import NetworkError
from cnnfeat.network.augmentation import Augmentation
from cnnfeat.network.descent import Samples, Score, Scorer, Steps
from cnnfeat.network.norming import NormStatistics
from cnnfeat.network.standing import Standing
from cnnfeat.network.starting import HALVES, calls_of_training, least_halved
from cnnfeat.options import RunOptions, TrainOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import RowNumbers

logger = logging.getLogger("cnnfeat")

AUTO_EPOCHS = 6
AUTO_STEPS = 1_500  # what a small source gets at least


@dataclass(frozen=True, slots=True)
class Course:
    """How the training of a network went."""

    history: tuple[Epoch, ...]
    elapsed_s: float
    score: Scorer  # of the network as it is

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights are kept, where one was picked."""
        picked = "val_accuracy" in self.history[-1]
        return self.history[best_epoch(self.history)] if picked else None


def forget(_standing: Callable[[], Standing]) -> None:
    """Keep nothing of where a training stands."""


def fit(
    network: keras.Model,
    samples: Samples,
    validation: Samples | None,
    config: RunOptions,
    *,
    seed: int,
    learner: keras.Model | None = None,
    standing: Standing | None = None,
    keep: Callable[[Callable[[], Standing]], None] = forget,
    label: str = "training",
    progress: Progress = SILENT,
) -> Course:
    """Train, and leave the network with the weights of its best epoch.

    Parameters
    ----------
    network : keras.Model
        Untrained; its weights are changed in place.
    samples : Samples
        What it is fitted to.
    validation : Samples, optional
        What picks the epoch; without, the last one's weights are kept.
    config : RunOptions
        Its tables `network`, `train` and `augment` are used.
    seed : int
        Fixes the order of the rows, and how they are varied.
    learner : keras.Model, optional
        The same network, computing otherwise, to make the steps with; see `Steps`.
    standing : Standing, optional
        Where an interrupted training stood: this one goes on from there, to the same weights.
    keep : callable
        Called after each epoch with what makes the standing.
    label : str
        What the progress is of.
    progress : Progress
        Told each call and epoch.

    Raises
    ------
    NetworkError
        If the loss is no number after the first epoch, or later where no epoch is picked.
    DataError
        If `standing` is of another network.
    """
    options = config.train
    n_steps = -(-len(samples) // options.batch_size)
    n_epochs = _epochs(options, n_steps)
    rate = _rate(options, n_steps * n_epochs)
    steps = Steps(
        network,
        _optimizer(options, rate, network if learner is None else learner),
        n_parts=calls_of_training(config),
        least=least_halved(config.network),
        label_smoothing=options.label_smoothing,
        ema=options.ema,
        learner=learner,
        augmentation=Augmentation(config.augment, seed=seed),
    )
    norms = NormStatistics(network, n_parts=calls_of_training(config))
    best = _Best(network, options.patience, picks=validation is not None)
    if standing is not None:
        _take_up(standing, steps, best, n_steps=n_steps, most=n_epochs)
    before_s, began = 0.0 if standing is None else standing.elapsed_s, time.perf_counter()

    def stands() -> Standing:
        arrays = [*_arrays(steps.variables), *best.weights]
        return Standing(tuple(best.history), elapsed_s(), False, tuple(arrays))

    def elapsed_s() -> float:
        return before_s + time.perf_counter() - began

    first = len(best.history)
    orders = _orders(len(samples), seed)
    for _ in range(first):
        next(orders)
    with progress.task(label, total=n_epochs, unit="epochs", done=first) as task:

        def told(n_images: int) -> None:
            task.advance(n_images / len(samples))

        for number in range(first, n_epochs):
            task.advance(0, note=_note(best.history))
            order = next(orders)
            fitted = steps.epoch(
                samples, order, batch_size=options.batch_size, turn=number, told=told
            )
            if config.augment.varies:
                norms.measure(samples, order)
            validated = None if validation is None else steps.evaluate(validation)
            if not best.goes_on(fitted, validated, float(rate(number * n_steps))):
                break
            keep(stands)
        task.advance(0, note=_note(best.history))
    if best.weights:
        network.set_weights(best.weights)
    return Course(tuple(best.history), elapsed_s(), steps.evaluate)


def _rate(options: TrainOptions, n_steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step: it rises along a line, if asked to, and falls along a cosine."""
    n_rising = min(round(options.warmup * n_steps), n_steps - 1)
    if not n_rising:
        return keras.optimizers.schedules.CosineDecay(options.learning_rate, n_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, n_steps - n_rising, warmup_target=options.learning_rate, warmup_steps=n_rising
    )


def _optimizer(
    options: TrainOptions,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    learner: keras.Model,
) -> keras.optimizers.Optimizer:
    """Adam; with decay that of its author's critics (Loshchilov and Hutter, ICLR 2019)."""
    optimizer = keras.optimizers.Adam(rate, weight_decay=options.weight_decay or None)
    optimizer.exclude_from_weight_decay(
        [weight for weight in learner.trainable_variables if weight.name != "kernel"]
    )
    return optimizer


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


def _note(history: Sequence[Epoch]) -> str:
    """Say how good the last epoch was."""
    if not history:
        return ""
    last = history[-1]
    validated = f"validation {last['val_accuracy']:.2%}, " if "val_accuracy" in last else ""
    return f"{validated}loss {last['loss']:.4f}"


def _arrays(variables: Sequence[keras.Variable]) -> list[NDArray[np.generic]]:
    return [variable.numpy() for variable in variables]


def _put_back(
    variables: Sequence[keras.Variable], arrays: Sequence[NDArray[np.generic]], standing: Standing
) -> None:
    """Give variables the values that they had."""
    wanted = [(tuple(one.shape), keras.backend.standardize_dtype(one.dtype)) for one in variables]
    if wanted != [(one.shape, one.dtype.name) for one in arrays]:
        raise standing.unfit("its arrays are not those of this network")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def restored(network: keras.Model, finished: Standing, *, picks: bool) -> Course:
    """Give a network the weights that its training came to.

    Parameters
    ----------
    network : keras.Model
        Its weights are changed in place.
    finished : Standing
        Of a training that has ended.
    picks : bool
        Whether an epoch was picked by validation rows.

    Raises
    ------
    DataError
        If it is of another network.
    """
    _check_history(finished, picks=picks)
    _put_back(network.weights, finished.arrays, finished)
    return Course(finished.history, finished.elapsed_s, Scorer(network, n_parts=HALVES))


def _take_up(standing: Standing, steps: Steps, best: _Best, *, n_steps: int, most: int) -> None:
    """Go on from where a training stood, which may be behind its last epoch."""
    n_epochs, variables = len(standing.history), steps.variables
    if n_epochs > most:
        raise standing.unfit(f"it tells of {n_epochs} epochs of {most}")
    best.take_up(standing, standing.arrays[len(variables) :])
    _put_back(variables, standing.arrays[: len(variables)], standing)
    if steps.n_done != n_epochs * n_steps:
        raise standing.unfit(f"it tells of {steps.n_done} steps in {n_epochs} epochs")


def _check_history(standing: Standing, *, picks: bool) -> None:
    keys = {*_FITTED, *(_VALIDATED if picks else ())}
    numbers = [one.get("epoch") for one in standing.history]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise standing.unfit("its epochs are not numbered from 1")
    if any(one.keys() != keys for one in standing.history):
        raise standing.unfit(f"its epochs don't tell {', '.join(sorted(keys))}")


class _Best:
    """Keep the history, and the weights of the epoch that validates best."""

    def __init__(self, network: keras.Model, patience: int, *, picks: bool) -> None:
        self._network, self._patience, self._picks = network, patience, picks
        self.history: list[Epoch] = []
        self.weights: Sequence[NDArray[np.generic]] = []  # none where no epoch is picked

    def take_up(self, standing: Standing, weights: Sequence[NDArray[np.generic]]) -> None:
        """Go on from there."""
        _check_history(standing, picks=self._picks)
        wanted = self._network.weights if self._picks else []
        if [tuple(one.shape) for one in wanted] != [one.shape for one in weights]:
            raise standing.unfit("its best weights are not those of this network")
        self.history, self.weights = list(standing.history), weights

    def goes_on(self, fitted: Score, validated: Score | None, learning_rate: float) -> bool:
        """Record an epoch; say whether another is worth while."""
        losses = [fitted.loss, *([] if validated is None else [validated.loss])]
        if not all(map(math.isfinite, losses)):
            self._tell_diverged(fitted, validated)
            return False
        epoch = Epoch(
            epoch=len(self.history) + 1,
            loss=fitted.loss,
            accuracy=fitted.accuracy,
            learning_rate=learning_rate,
        )
        self.history.append(epoch)
        if validated is None:
            return True
        epoch["val_loss"], epoch["val_accuracy"] = validated.loss, validated.accuracy
        latest, best = len(self.history) - 1, best_epoch(self.history)
        if best == latest:
            self.weights = self._network.get_weights()
        return not 0 < self._patience <= latest - best

    def _tell_diverged(self, fitted: Score, validated: Score | None) -> None:
        """Weights have become immense; the best before that are kept, where one was picked."""
        found = f"loss is {fitted.loss}"
        found += "" if validated is None else f" and val_loss is {validated.loss}"
        if not self.weights:
            after = f"epoch {len(self.history) + 1}" if self.history else "its first epoch"
            raise NetworkError(
                f"the training has diverged: {found} after {after}",
                hint="a smaller --learning-rate, or [network] weight_stddev and bias; or pixels of "
                "a smaller range",
            )
        logger.warning(
            "the training has diverged, and ends: %s after epoch %d; what was best before is kept",
            found,
            len(self.history) + 1,
        )


_VALIDATED = ("val_loss", "val_accuracy")
_FITTED = ("epoch", "loss", "accuracy", "learning_rate")


def best_epoch(history: Sequence[Epoch]) -> int:
    """Index of the epoch with the highest validation accuracy; of equals, the lowest loss."""
    return max(
        range(len(history)),
        key=lambda i: (history[i]["val_accuracy"], -history[i]["val_loss"]),
    )
