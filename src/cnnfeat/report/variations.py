"""A figure of images as augmentation varies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnfeat.divided import training_split
from cnnfeat.errors import DataError
from cnnfeat.options import AugmentOptions
from cnnfeat.pictures import as_bytes
from cnnfeat.records import Array, ImageTarget, Source, class_name
from cnnfeat.report.figure import drawing, fitted, short

_INCHES = 0.9  # a panel's side


@dataclass(frozen=True, slots=True)
class _Varied:
    """An image, and what becomes of it."""

    caption: str
    images: tuple[Array, ...]  # (height, width, channels) each; the image itself first


def draw_variations(
    source: Source,
    options: AugmentOptions,
    out: Path,
    *,
    n_images: int,
    n_variations: int,
    seed: int,
    dpi: float = 150,
) -> None:
    """Draw images from all over what is trained on, each beside what becomes of it.

    Parameters
    ----------
    source : Source
        Its images.
    options : AugmentOptions
        How they are varied.
    out : Path
        The picture.
    n_images : int
        A row each.
    n_variations : int
        Columns beside the image itself: those of as many epochs.
    seed : int
        Fixes what is drawn by chance.
    dpi : float
        Dots per inch of a PNG.

    Raises
    ------
    DataError
        If none of the images can be read.
    """
    found = list(_vary_some(source, options, n_images, n_variations, seed))
    if not found:
        raise DataError(f"{source.name}: none of its images can be read")
    size = (_INCHES * (n_variations + 1) + 1.5, _INCHES * len(found) + 0.9)
    with drawing(out, size=size, dpi=dpi) as figure:
        panels = figure.subplots(len(found), n_variations + 1, squeeze=False)
        for row, one in zip(panels, found, strict=True):
            for axes, image in zip(row, one.images, strict=True):
                axes.imshow(as_bytes(image), cmap="gray", vmin=0, vmax=255)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
            row[0].set_ylabel(one.caption, fontsize=7, rotation=0, ha="right", va="center")
        panels[0, 0].set_title("original", fontsize=8)
        for turn, axes in enumerate(panels[0, 1:], 1):
            axes.set_title(f"epoch {turn}", fontsize=8)
        words = str(options).replace(",", ", ")
        figure.suptitle(fitted(words, inches=size[0] - 0.2, size=9), fontsize=9)


def _vary_some(
    source: Source, options: AugmentOptions, n_images: int, n_variations: int, seed: int
) -> Iterator[_Varied]:
    """Vary a few images; those that can't be read are left out."""
    from cnnfeat.network.augmentation import Augmentation  # TensorFlow takes seconds

    split = training_split(source)
    n_rows = source.splits[split].n_samples
    rows = np.unique(np.linspace(0, n_rows - 1, min(n_images, n_rows)).round().astype(np.intp))
    vary = Augmentation(options, seed=seed)
    seen = ImageTarget(channels=source.channels(split))  # as a training takes them: no opacity
    for batch in source.batches(split, batch_size=1, rows=rows, target=seen, on_error="skip"):
        if len(batch):
            own = rows[batch.start : batch.stop]
            turns = [vary(batch.images, turn=turn, rows=own) for turn in range(n_variations)]
            caption = short(batch.ids[0], limit=18)
            if batch.labels is not None:
                name = class_name(int(batch.labels[0]), source.classes)
                caption += f"\nclass {short(name, limit=18)}"
            yield _Varied(caption, tuple(one[0] for one in (batch.images, *turns)))
