"""The rows of a source that a training takes: divided before a network sees any, held in memory."""

from __future__ import annotations

import logging

import numpy as np

from cnnfeat.divided import divide_source, rule_for, training_split
from cnnfeat.errors import DataError
from cnnfeat.network.descent import EVALUATION_BATCH, Samples
from cnnfeat.options import TrainOptions
from cnnfeat.parts import VALIDATION, Part
from cnnfeat.records import ImageTarget, Parts, Source, SplitInfo

logger = logging.getLogger("cnnfeat")


def divided_for_training(source: Source, options: TrainOptions) -> Source:
    """Divide the source before the network sees any of it."""
    _check_classes(source)
    if source.division is not None:
        return source
    rule = rule_for(
        source,
        test_fraction=options.test_fraction,
        validation=options.validation,
        seed=options.members[0],
    )
    divided = divide_source(source, rule)
    _warn_of_shared_groups(divided)
    return divided


def _warn_of_shared_groups(source: Source) -> None:
    """Say which of the source's own splits hold groups that are trained on."""
    fitted = fitted_split(source)
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


def fitted_split(source: Source) -> str:
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


def held_back(source: Source, samples: Samples, parts: Parts | None) -> Samples:
    """Take what picks the best epoch: the source's own split for that, or rows held back."""
    rows = np.flatnonzero(parts == Part.VALIDATION)
    if len(rows):
        return samples.take(rows)
    return read_samples(source, VALIDATION, samples.images.shape[1:])


def say_what_becomes_of(info: SplitInfo, shape: tuple[int, int, int]) -> None:
    """Say how many channels all pictures get, where they may have several numbers of them."""
    if info.image_shape[2] in (2, 4) and shape[2] == info.image_shape[2] - 1:
        logger.warning(
            "images of %d channels: the last is taken for opacity, and laid over white",
            info.image_shape[2],
        )
    elif not info.uniform or shape != info.image_shape:
        other = "grey pictures among them become RGB" if shape[2] == 3 else "none has colour"
        logger.info("images: to %s for the network; %s", "×".join(map(str, shape)), other)


def read_samples(source: Source, split: str, shape: tuple[int, ...]) -> Samples:
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
