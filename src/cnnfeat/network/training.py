"""Train a small network on a source, and keep how it went beside it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat import __version__
from cnnfeat.brightness import measure
from cnnfeat.card import Epoch, ModelCard, card_path, file_sha256, write_card
from cnnfeat.divided import TEST, VALIDATION, divide_source, rule_for, training_split
from cnnfeat.errors import DataError, NetworkError, UsageError
from cnnfeat.files import check_output, replacing
from cnnfeat.knobs import fields_of, to_dict
from cnnfeat.network.architecture import build_network
from cnnfeat.network.loading import load_network
from cnnfeat.network.network import Network
from cnnfeat.options import FitOptions, RunOptions, TrainOptions
from cnnfeat.parts import Part
from cnnfeat.pixels import range_warning
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.records import ImageTarget, Json, Labels, Parts, RowNumbers, Source, SplitInfo

logger = logging.getLogger("cnnfeat")

EVALUATION_BATCH = 1_000
AUTO_EPOCHS = 6
AUTO_STEPS = 1_500  # what a small source gets at least
BYTES_PER_WEIGHT = 4
FILE_OVERHEAD_BYTES = 1_000_000  # HDF5 and JSON around the weights, generously


@dataclass(frozen=True, slots=True)
class _Samples:
    """Images and labels in memory."""

    images: NDArray[np.generic]  # (n_samples, height, width, channels), the source's dtype
    labels: Labels  # (n_samples,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: RowNumbers) -> _Samples:
        return _Samples(self.images[rows], self.labels[rows])


def train(
    config: RunOptions,
    source: Source,
    *,
    out: Path,
    overwrite: bool = False,
    foresee: Callable[[Network, Source], object] | None = None,
    progress: Progress = SILENT,
) -> ModelCard:
    """Train the network of `config` and write it with its card.

    A source without a test split is divided first. Of what it trains on, a stratified part is held
    back, unless the source has a split `validation`: the weights of the epoch that does best on it
    are kept. The test split is read once, after that. Same seed, same machine: same weights.

    Parameters
    ----------
    config : RunOptions
        Its tables `network` and `train` are used; `data` is recorded.
    source : Source
        Labelled images, all of one size; if any has colour, all become RGB. Held in memory in
        their own dtype. One that is divided
        already stays so.
    out : Path
        The model file, ending in `.keras`; the card gets the same name with `.json`.
    overwrite : bool
        Whether files of these names may be replaced.
    foresee : callable, optional
        Called with the network as it is before the training, and the divided source: what is to be
        done with them later may be refused now.
    progress : Progress
        Told each batch and epoch.

    Raises
    ------
    UsageError
        If `out` does not end in `.keras`, or exists.
    DataError
        If the source has no labels, fewer than two classes, classes too small to be divided,
        nothing to train on, or images of several shapes.
    NetworkError
        If the network can't be built for images of this shape.
    StorageError
        If there is no room for the model; found out before training.
    """
    if out.suffix != ".keras":
        raise UsageError(f"a model file ends in .keras, not {out.name!r}", hint="name it with -o")
    source = _divided(source, config.train)
    split = _fitted_split(source)
    info = source.splits[split]
    shape = (*info.image_shape[:2], source.channels(split))
    _say_what_becomes_of(info, shape)
    network = build_network(
        config.network,
        image_shape=shape,
        n_classes=len(source.classes),
        seed=config.train.seed,
        dtype=info.dtype,
    )
    for path in (out, card_path(out)):
        needed = network.count_params() * BYTES_PER_WEIGHT + FILE_OVERHEAD_BYTES
        check_output(path, overwrite=overwrite, needed_bytes=needed)
    if foresee is not None:
        foresee(load_network(network), source)
    samples = _read(source, split, shape)
    parts = source.parts(split)
    fitted = samples.take(np.flatnonzero(parts == Part.FITTED))
    held_back = _held_back(source, samples, parts)
    if warning := range_warning(fitted.images, unit=True):
        logger.warning("%s", warning)
    started = time.perf_counter()
    history = _fit(network, fitted, held_back, config.train, progress)
    elapsed_s = time.perf_counter() - started
    best = _best_epoch(history)
    test = _read(source, TEST, shape)
    card = ModelCard(
        cnnfeat=__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config={
            "data": _data_options(config, source),
            "network": to_dict(config.network),
            "train": to_dict(config.train),
        },
        source=_describe(source),
        classes=source.classes,
        image_shape=shape,
        history=tuple(history),
        best_epoch=best + 1,
        validation_accuracy=history[best]["val_accuracy"],
        test_accuracy=_accuracy(network, test),
        n_train=len(fitted),
        n_validation=len(held_back),
        n_test=len(test),
        elapsed_s=elapsed_s,
        model_sha256=_save(network, out),
        division=source.division,
        pixels=measure([fitted.images]),
    )
    write_card(card, card_path(out))
    return card


def _describe(source: Source) -> dict[str, str]:
    fingerprint = source.fingerprint()
    return {
        "name": source.name,
        "kind": source.kind,
        "fingerprint": fingerprint.digest,
        "fingerprint_method": fingerprint.method,
    }


def _divided(source: Source, options: TrainOptions) -> Source:
    """Divide the source before the network sees any of it."""
    _check_classes(source)
    if source.division is not None:
        return source
    rule = rule_for(
        source,
        test_fraction=options.test_fraction,
        validation=options.validation,
        seed=options.seed,
    )
    divided = divide_source(source, rule)
    _warn_of_shared_groups(divided)
    return divided


def _warn_of_shared_groups(source: Source) -> None:
    """Say which of the source's own splits hold groups that are trained on."""
    fitted = _fitted_split(source)
    trained_on = source.groups(fitted)
    for split in source.splits:
        groups = source.groups(split)
        if split == fitted or groups is None or trained_on is None:
            continue
        shared = len(np.intersect1d(groups, trained_on))
        if shared:
            logger.warning(
                "%d of %d groups of %r are in %r too: it says nothing of new groups",
                shared,
                len(np.unique(groups)),
                split,
                fitted,
            )


def _fitted_split(source: Source) -> str:
    """Name the split whose rows the weights are fitted to."""
    parts = {split: source.parts(split) for split in source.splits}
    return next(name for name, found in parts.items() if found is not None and Part.FITTED in found)


def _check_classes(source: Source) -> None:
    split = training_split(source)
    labels = source.labels(split)
    present = [] if labels is None else np.unique(labels).tolist()
    if labels is not None and len(present) < 2:
        names = {source.classes[k]: int(np.count_nonzero(labels == k)) for k in present}
        raise DataError(
            f"training needs at least two classes, and {source.name} has {names} in {split!r}"
        )


def _held_back(source: Source, samples: _Samples, parts: Parts | None) -> _Samples:
    """What picks the best epoch: the source's own split for that, or rows held back."""
    rows = np.flatnonzero(parts == Part.VALIDATION)
    return samples.take(rows) if len(rows) else _read(source, VALIDATION, samples.images.shape[1:])


def _say_what_becomes_of(info: SplitInfo, shape: tuple[int, int, int]) -> None:
    """Say how many channels all pictures get, where they may have several numbers of them."""
    if info.image_shape[2] in (2, 4) and shape[2] == info.image_shape[2] - 1:
        logger.warning(
            "images of %d channels: the last is taken for opacity, and laid over white",
            info.image_shape[2],
        )
    elif not info.uniform or shape != info.image_shape:
        other = "grey pictures among them become RGB" if shape[2] == 3 else "none has colour"
        logger.info("images: to %s for the network; %s", "×".join(map(str, shape)), other)


def _data_options(config: RunOptions, source: Source) -> dict[str, Json]:
    """How the images were opened, what they were brought to included."""
    fitting = {name: source.options.get(name) for name in fields_of(FitOptions)}
    return {**to_dict(config.data), **fitting, "source": config.data.source or "auto"}


def _read(source: Source, split: str, shape: tuple[int, ...]) -> _Samples:
    """Hold a whole split in memory; a network of this family trains on nothing larger."""
    info = source.splits[split]
    images = np.empty((info.n_samples, *shape), info.dtype)
    target = ImageTarget(channels=shape[2])
    for batch in source.batches(split, batch_size=EVALUATION_BATCH, target=target):
        if batch.images.shape[1:] != shape:
            given = "×".join(map(str, batch.images.shape[1:]))
            raise DataError(
                f"all images must have one size to train on: {batch.ids[0]} is {given}, the first "
                f"is {'×'.join(map(str, shape))}",
                hint="--resize 64x64 brings them to one; --fit crop or pad keeps proportions",
            )
        images[batch.start : batch.stop] = batch.images
    labels = source.labels(split)
    if labels is None:
        raise DataError(f"{source.name} has labels in one split, but none in {split!r}")
    return _Samples(images, labels)


def _fit(
    network: keras.Model,
    samples: _Samples,
    validation: _Samples,
    config: TrainOptions,
    progress: Progress,
) -> list[Epoch]:
    """Train, and leave the network with the weights of its best epoch."""
    keras.utils.set_random_seed(config.seed)
    steps = -(-len(samples) // config.batch_size)
    epochs = _epochs(config, steps)
    schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps * epochs)
    network.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    keeper = _BestWeights(config, schedule, steps)
    with progress.task("training", total=epochs * len(samples), unit="images") as task:
        network.fit(
            _batches(samples, config, shuffle=True),
            validation_data=_batches(validation, config, shuffle=False),
            epochs=epochs,
            verbose=0,
            shuffle=False,  # _batches has done it
            callbacks=[keeper, _Teller(task, len(samples), config.batch_size, epochs)],
        )
    network.set_weights(keeper.weights)
    return keeper.history


def _epochs(config: TrainOptions, steps: int) -> int:
    if config.epochs == "auto":
        return max(AUTO_EPOCHS, -(-AUTO_STEPS // steps))
    return config.epochs


def _batches(samples: _Samples, config: TrainOptions, *, shuffle: bool) -> tf.data.Dataset:
    """Cut shuffled batches from memory, without a copy of the whole."""
    rows = tf.data.Dataset.range(len(samples))
    if shuffle:
        rows = rows.shuffle(len(samples), seed=config.seed, reshuffle_each_iteration=True)
    size = config.batch_size if shuffle else EVALUATION_BATCH

    def take(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.numpy_function(
            lambda rows: (samples.images[rows], samples.labels[rows]),
            [batch],
            [samples.images.dtype, tf.int64],
            stateful=False,
        )
        images.set_shape((None, *samples.images.shape[1:]))
        labels.set_shape((None,))
        return images, labels

    return rows.batch(size).map(take).prefetch(2)


class _BestWeights(keras.callbacks.Callback):  # type: ignore[misc]
    """Keep the history, and the weights of the epoch that validates best."""

    def __init__(
        self,
        config: TrainOptions,
        schedule: keras.optimizers.schedules.LearningRateSchedule,
        steps: int,
    ) -> None:
        super().__init__()
        self._config, self._schedule, self._steps = config, schedule, steps
        self.history: list[Epoch] = []
        self.weights: list[NDArray[np.float32]] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Record the epoch; stop when patience is at an end."""
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        if not all(map(math.isfinite, numbers.values())):
            self._end_diverged(epoch, numbers)
            return
        rate = float(self._schedule(epoch * self._steps))
        self.history.append(
            Epoch(
                epoch=epoch + 1,
                loss=numbers["loss"],
                accuracy=numbers["accuracy"],
                val_loss=numbers["val_loss"],
                val_accuracy=numbers["val_accuracy"],
                learning_rate=rate,
            )
        )
        best = _best_epoch(self.history)
        if best == epoch:
            self.weights = self.model.get_weights()
        if 0 < self._config.patience <= epoch - best:
            self.model.stop_training = True

    def _end_diverged(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """End a training whose weights have become immense; the best before that are kept."""
        found = " and ".join(f"{name} is {numbers[name]}" for name in ("loss", "val_loss"))
        if not self.history:
            raise NetworkError(
                f"the training has diverged: {found} after its first epoch",
                hint="a smaller --learning-rate, or [network] weight_stddev and bias; or pixels of "
                "a smaller range",
            )
        logger.warning(
            "the training has diverged, and ends: %s after epoch %d; what was best before is kept",
            found,
            epoch + 1,
        )
        self.model.stop_training = True


class _Teller(keras.callbacks.Callback):  # type: ignore[misc]
    """Tell a progress task of each batch and epoch."""

    def __init__(self, task: Task, n_samples: int, batch_size: int, epochs: int) -> None:
        super().__init__()
        self._task, self._n_samples = task, n_samples
        self._batch_size, self._epochs = batch_size, epochs

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:  # noqa: ARG002
        """Count the images of a batch; the last one of an epoch may be smaller."""
        self._task.advance(min(self._batch_size, self._n_samples - batch * self._batch_size))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Say how the epoch went."""
        numbers = logs or {}
        self._task.advance(
            0,
            note=f"epoch {epoch + 1}/{self._epochs}, loss {numbers['loss']:.4f}, "
            f"validation accuracy {numbers['val_accuracy']:.2%}",
        )


def _best_epoch(history: list[Epoch]) -> int:
    """Index of the epoch with the highest validation accuracy; of equals, the lowest loss."""
    return max(
        range(len(history)),
        key=lambda i: (history[i]["val_accuracy"], -history[i]["val_loss"]),
    )


def _accuracy(network: keras.Model, samples: _Samples) -> float:
    """Fraction of the samples whose largest logit is at their label."""
    right = 0
    for start in range(0, len(samples), EVALUATION_BATCH):
        rows = slice(start, start + EVALUATION_BATCH)
        logits = network.predict_on_batch(samples.images[rows])
        right += int(np.sum(np.argmax(logits, axis=1) == samples.labels[rows]))
    return right / len(samples)


def _save(network: keras.Model, out: Path) -> str:
    """Write the network without its optimizer, whole or not at all; return the file's digest."""
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    with replacing(out) as temporary:
        plain.save(temporary)
        return file_sha256(temporary)
