"""Train a small network on a source, and keep how it went beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cnnfeat import __version__
from cnnfeat.brightness import measure
from cnnfeat.card import ModelCard, card_path, file_sha256, write_card
from cnnfeat.divided import divide_source, rule_for, training_split
from cnnfeat.errors import DataError, UsageError
from cnnfeat.files import check_output, replacing
from cnnfeat.knobs import fields_of, to_dict
from cnnfeat.network.architecture import build_network
from cnnfeat.network.descent import EVALUATION_BATCH, Samples, best_epoch, fit
from cnnfeat.network.loading import load_network
from cnnfeat.network.network import Network
from cnnfeat.options import FitOptions, RunOptions, TrainOptions
from cnnfeat.parts import TEST, VALIDATION, Part
from cnnfeat.pixels import range_warning
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import ImageTarget, Json, Parts, Source, SplitInfo

logger = logging.getLogger("cnnfeat")

BYTES_PER_WEIGHT = 4
FILE_OVERHEAD_BYTES = 1_000_000  # HDF5 and JSON around the weights, generously


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
    are kept. The test split is read once, after that. Same seed, same machine, as many threads of
    TensorFlow's: same weights.

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
    history, steps = fit(network, fitted, held_back, config, progress)
    elapsed_s = time.perf_counter() - started
    best = best_epoch(history)
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
            "augment": to_dict(config.augment),
        },
        source=_describe(source),
        classes=source.classes,
        image_shape=shape,
        history=tuple(history),
        best_epoch=best + 1,
        validation_accuracy=history[best]["val_accuracy"],
        test_accuracy=steps.evaluate(test).accuracy,
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


def _held_back(source: Source, samples: Samples, parts: Parts | None) -> Samples:
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


def _read(source: Source, split: str, shape: tuple[int, ...]) -> Samples:
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
    return Samples(images, labels)


def _save(network: keras.Model, out: Path) -> str:
    """Write the network without its optimizer, whole or not at all; return the file's digest."""
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    with replacing(out) as temporary:
        plain.save(temporary)
        return file_sha256(temporary)
