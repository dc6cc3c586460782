"""Figures of many images: those that excite a unit most, and those the SVM gets wrong."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import DataError, UsageError
from cnnfeat.features import FeatureFile
from cnnfeat.pictures import Pictures
from cnnfeat.records import class_name
from cnnfeat.report.evidence import Predictions
from cnnfeat.report.figure import BAD, drawing, fitted, short
from cnnfeat.result import SvmResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_SIDE = 128  # pixels of an image at most
_COLUMNS = 6
_INCHES = 1.35  # a panel's side, without its caption
_CAPTION_SIZE = 7  # points


@dataclass(frozen=True, slots=True)
class Excitation:
    """How strongly one image excites a unit."""

    row: int
    value: float
    place: tuple[int, ...]  # where in the unit's map the value stands; () without a map


def find_top(
    file: FeatureFile, layer: str, *, split: str, unit: int, n_images: int = 24
) -> list[Excitation]:
    """Find the rows that excite a unit most, in one pass over the layer.

    Parameters
    ----------
    file : FeatureFile
        Where the features are.
    layer, split : str
        Which of them.
    unit : int
        A place on the layer's last axis: a channel of a convolution, whose map's greatest value
        counts, or one number of a dense layer.
    n_images : int
        How many rows.

    Returns
    -------
    list of Excitation
        The strongest first; of equal ones the earlier row.

    Raises
    ------
    UsageError
        If there is no such unit.
    """
    shape = file.layer(split, layer).shape
    n_units = shape[-1] if len(shape) > 1 else 1
    if not 0 <= unit < n_units:
        raise UsageError(f"--unit must be 0 to {n_units - 1} for {layer}, not {unit}")
    best: list[tuple[float, int, int]] = []  # a heap of (value, -row, place)
    for start, block in file.blocks(split, layer):
        answers = block.reshape(len(block), -1, n_units)[:, :, unit].astype(np.float64)
        places = answers.argmax(axis=1)
        values = answers[np.arange(len(answers)), places]
        for offset in np.argsort(-values, kind="stable")[:n_images].tolist():
            item = (float(values[offset]), -(start + offset), int(places[offset]))
            if len(best) < n_images:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)
    ranked = sorted(best, reverse=True)
    inner = shape[1:-1]
    return [
        Excitation(
            -row, value, tuple(int(i) for i in np.unravel_index(place, inner)) if inner else ()
        )
        for value, row, place in ranked
    ]


def plot_top(
    file: FeatureFile,
    pictures: Pictures,
    out: Path,
    *,
    layer: str,
    split: str,
    unit: int,
    n_images: int = 24,
    dpi: float = 150,
) -> None:
    """Draw the images that excite a unit most; a cross marks where, in a layer with maps."""
    top = find_top(file, layer, split=split, unit=unit, n_images=n_images)
    ids = file.ids(split)
    labels = file.labels(split)
    map_shape = file.layer(split, layer).shape[1:-1]
    images = pictures.thumbnails(split, [item.row for item in top], side=_SIDE)
    maps = len(map_shape) == 2
    panels = []
    for item in top:
        caption = f"{short(ids[item.row], limit=18)}\nanswer {item.value:.4g}"
        if labels is not None:
            caption += f"\nclass {_class_name(file.classes, int(labels[item.row]))}"
        panels.append(
            _Panel(images.get(item.row), caption, (item.place, map_shape) if maps else None)
        )
    title = _top_title(top, layer=layer, split=split, unit=unit, maps=maps)
    _draw_panels(panels, out, title=title, dpi=dpi)


def _top_title(top: Sequence[Excitation], *, layer: str, split: str, unit: int, maps: bool) -> str:
    name = short(layer, limit=60)
    title = f"The {len(top)} images of {split} that excite unit {unit} of {name} most"
    if len(top) > 1 and top[0].value == top[-1].value:
        return f"{title}\n(it answers the same to all of these: {top[0].value:.4g})"
    return f"{title}; the cross marks where" if maps else title


def _class_name(classes: Sequence[str], label: int) -> str:
    return short(class_name(label, classes), limit=18)


def plot_errors(
    result: SvmResult,
    predictions: Predictions,
    images: Mapping[int, NDArray[np.uint8]],
    out: Path,
    *,
    ids: Sequence[str],
    n_images: int = 48,
    dpi: float = 150,
) -> None:
    """Draw misclassified images with true and predicted class and margin, surest mistakes first.

    Parameters
    ----------
    result : SvmResult
        Names the classes.
    predictions : Predictions
        Which samples are wrong.
    images : mapping
        {row: image} of at least the first `n_images` mistakes.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    ids : sequence of str
        Ids of the split's rows.
    n_images : int
        How many mistakes at most.
    dpi : float
        Dots per inch of a PNG.

    Raises
    ------
    DataError
        If nothing was misclassified.
    """
    wrong = predictions.wrong
    if not len(wrong):
        raise DataError(
            f"the SVM on {result.best.layer} made no mistake in {len(predictions.rows):,} images: "
            "there is no error to show"
        )
    shown = wrong[:n_images]
    panels = []
    for place in shown.tolist():
        row = int(predictions.rows[place])
        true, taken = (
            _class_name(result.classes, int(answers[place]))
            for answers in (predictions.labels, predictions.predicted)
        )
        caption = (
            f"{short(ids[row], limit=18)}\n{true} taken for {taken}\n"
            f"margin {predictions.margins[place]:.2f}"
        )
        panels.append(_Panel(images.get(row), caption))
    title = (
        f"SVM on {short(result.best.layer, limit=60)}: {len(shown)} of {len(wrong):,} "
        f"mistakes, surest first\n{result.scored_words}"
    )
    _draw_panels(panels, out, title=title, dpi=dpi)


def mistake_images(
    predictions: Predictions, pictures: Pictures, *, n_images: int = 48
) -> dict[int, NDArray[np.uint8]]:
    """Read the images of the surest mistakes."""
    rows = predictions.rows[predictions.wrong[:n_images]].tolist()
    return pictures.thumbnails(predictions.split, rows, side=_SIDE)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One image of a figure of many."""

    image: NDArray[np.uint8] | None  # None: not readable
    caption: str
    mark: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # a place in a map of that shape


def _draw_panels(panels: Sequence[_Panel], out: Path, *, title: str, dpi: float) -> None:
    """Draw images in rows, each below its caption; rows are as high as the longest one needs."""
    columns = max(min(_COLUMNS, len(panels)), 1)
    n_rows = max(math.ceil(len(panels) / columns), 1)
    width = max(_INCHES * columns, 5.0)
    with drawing(out, size=(width, n_rows * _INCHES), dpi=dpi) as figure:
        title = fitted(title, inches=width - 0.2, size=11)
        captions = [
            fitted(one.caption, inches=width / columns - 0.1, size=_CAPTION_SIZE, lines=6)
            for one in panels
        ]
        n_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
        row_height = _INCHES + n_lines * 1.3 * _CAPTION_SIZE / 72
        figure.set_size_inches(width, n_rows * row_height + 0.2 * (title.count("\n") + 1))
        places = figure.subplots(n_rows, columns, squeeze=False).flat
        for panel, caption, axes in zip(panels, captions, places, strict=False):
            _show(axes, panel)
            axes.set_title(caption, fontsize=_CAPTION_SIZE)
        for axes in places:  # that are left
            axes.set_axis_off()
        figure.suptitle(title)


def _show(axes: Axes, panel: _Panel) -> None:
    axes.set_axis_off()
    if panel.image is None:
        axes.text(0.5, 0.5, "not readable", ha="center", va="center", fontsize=_CAPTION_SIZE)
        return
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=255, interpolation="none")
    if panel.mark is not None:
        down, across = (
            (index + 0.5) / length * side - 0.5
            for index, length, side in zip(*panel.mark, panel.image.shape[:2], strict=True)
        )
        axes.plot(across, down, marker="+", color=BAD, markersize=8, markeredgewidth=1.4)
