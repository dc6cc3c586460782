"""Charts of a run's numbers: which class is taken for which, accuracy by layer and by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.colors import PowerNorm

from cnnfeat.card import Training
from cnnfeat.errors import DataError
from cnnfeat.report.figure import AMOUNTS, drawing, fitted, short, text_width
from cnnfeat.result import LayerScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

_NUMBERED = 20  # classes up to which every cell shows its count
_NAMED = 50  # classes up to which every row shows its name
_MARKED_EPOCHS = 60  # of more, marks would hide the lines


def plot_confusion(
    confusion: ArrayLike,
    classes: Sequence[str],
    out: Path,
    *,
    title: str,
    caveat: str = "",
    dpi: float = 150,
) -> None:
    """Draw a confusion matrix: true classes down, predicted ones across, counts in the cells.

    The colour is a cell's share of its row, on a scale that keeps rare confusions visible.

    Parameters
    ----------
    confusion : array_like
        Counts, (n_classes, n_classes); row k holds the samples whose true class is k.
    classes : sequence of str
        Class names, n_classes of them. Above 20 the counts are left out, above 50 most names too.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    title : str
        What is shown; the share of right predictions is added below it.
    caveat : str
        What must stand beside that share.
    dpi : float
        Dots per inch of a PNG.

    Raises
    ------
    DataError
        If the matrix is not square, negative, or has not one row for each class.
    """
    counts = _checked(confusion, classes)
    n_classes = len(classes)
    side = min(max(3.6, 1.6 + 0.45 * n_classes), 11.0)
    with drawing(out, size=(side + 1.0, side), dpi=dpi) as figure:
        axes = figure.add_subplot()
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap=AMOUNTS, norm=PowerNorm(0.35, vmin=0, vmax=1))
        bar = figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
        bar.set_ticks([0, 0.01, 0.1, 0.5, 1.0], labels=["0", "1%", "10%", "50%", "100%"])
        _name_axes(axes, classes, cell=side / (n_classes + 3))
        lines = [fitted(line, inches=side + 0.8, size=10) for line in (title, _summary(counts))]
        lines += [fitted(caveat, inches=side + 0.8, size=10)] if caveat else []
        figure.suptitle("\n".join(lines), fontsize=10)
        axes.spines[:].set_visible(False)
        if n_classes <= _NUMBERED:
            _write_counts(axes, counts, share)


def _checked(confusion: ArrayLike, classes: Sequence[str]) -> NDArray[np.int64]:
    counts = np.asarray(confusion)
    if counts.shape != (len(classes), len(classes)) or not len(classes):
        raise DataError(
            f"a confusion matrix for {len(classes)} classes has shape "
            f"({len(classes)}, {len(classes)}), not {counts.shape}"
        )
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise DataError("a confusion matrix holds counts: whole numbers, none negative")
    return counts.astype(np.int64)


def _summary(counts: NDArray[np.int64]) -> str:
    right, total = int(np.trace(counts)), int(counts.sum())
    if not total:
        return "no samples"
    return f"{right:,} of {total:,} right ({right / total:.2%})"


def _name_axes(axes: Axes, classes: Sequence[str], *, cell: float) -> None:
    """Name rows and columns; upright where a name is wider than its column, in inches."""
    step = -(-len(classes) // _NAMED)  # every class up to _NAMED, then every step-th
    ticks = range(0, len(classes), step)
    labels = [short(classes[tick], limit=16) for tick in ticks]
    small = 7 if len(labels) > _NUMBERED else 9
    upright = any(text_width(label, size=small) > 0.9 * step * cell for label in labels)
    axes.set_xticks(ticks, labels, rotation=90 if upright else 0, fontsize=small)
    axes.set_yticks(ticks, labels, fontsize=small)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _write_counts(axes: Axes, counts: NDArray[np.int64], share: NDArray[np.float64]) -> None:
    size = 8 if counts.max() < 10_000 else 6
    shade = mpl.colormaps[AMOUNTS](PowerNorm(0.35, vmin=0, vmax=1)(share))
    bright = shade[..., :3] @ (0.299, 0.587, 0.114)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "black" if bright[row, column] > 0.5 else "white"
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size
            )


def plot_layers(
    scores: Sequence[LayerScore],
    out: Path,
    *,
    network_accuracy: float | None,
    on: str,
    title: str = "",
    dpi: float = 150,
    dark: bool = False,
) -> None:
    """Draw each layer's share of right rows with its 95 % interval, beside the network's own.

    Parameters
    ----------
    scores : sequence of LayerScore
        In the order they are drawn, from above.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    network_accuracy : float or None
        The network's own on test images, 0 to 1, drawn as a line where it is known.
    on : str
        Which rows the scores are of, and what must be said of them.
    title : str
        What is shown.
    dpi : float
        Dots per inch of a PNG.
    dark : bool
        Whether it is for a dark page.
    """
    with drawing(out, size=(8.5, 1.5 + 0.42 * len(scores)), dpi=dpi, dark=dark) as figure:
        axes = figure.add_subplot()
        places = range(len(scores))
        values = [100 * score.accuracy for score in scores]
        below = [100 * (score.accuracy - score.accuracy_interval[0]) for score in scores]
        above = [100 * (score.accuracy_interval[1] - score.accuracy) for score in scores]
        axes.errorbar(
            values,
            places,
            xerr=(below, above),
            fmt="o",
            color="C0",
            capsize=3,
            label="SVM, with 95% interval",
        )
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.2f}%",
                (value, place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        if network_accuracy is not None:
            axes.axvline(
                100 * network_accuracy,
                color="C1",
                linestyle="--",
                label=f"the network itself: {network_accuracy:.2%} of test images",
            )
        axes.set_yticks(places, [short(score.layer, limit=32) for score in scores])
        axes.set_ylim(len(scores) - 0.4, -0.7)
        axes.set_xlabel(fitted(f"right, % of {on}", inches=5, size=9))
        axes.set_ylabel("layer")
        figure.suptitle(fitted(title, inches=8, size=10), fontsize=10)
        figure.legend(loc="outside lower center", ncols=2)


def plot_training(
    trainings: Sequence[Training],
    out: Path,
    *,
    title: str = "",
    dpi: float = 150,
    dark: bool = False,
) -> None:
    """Draw loss and accuracy by epoch, on training and validation images.

    Parameters
    ----------
    trainings : sequence of Training
        As the model's card has them, of each network in it.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    title : str
        What is shown.
    dpi : float
        Dots per inch of a PNG.
    dark : bool
        Whether it is for a dark page.

    Raises
    ------
    DataError
        If there is none.
    """
    if not trainings:
        raise DataError("the model's card has no losses and accuracies by epoch: nothing to draw")
    with drawing(out, size=(8.5, 3.8), dpi=dpi, dark=dark) as figure:
        for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for training in trainings:
                _draw_course(axes, training, measure)
            axes.set_xlabel("epoch")
            axes.set_ylabel("accuracy, %" if measure == "accuracy" else measure)
            axes.xaxis.get_major_locator().set_params(integer=True)
        lines, names = axes.get_legend_handles_labels()
        named = dict(zip(names, lines, strict=True))  # one of each, however many networks
        axes.legend(named.values(), named.keys())
        if title:
            figure.suptitle(fitted(title, inches=8, size=11))


def _draw_course(axes: Axes, training: Training, measure: str) -> None:
    """Draw one measure of one network by epoch, and which epoch's weights were kept."""
    history = training["history"]
    times = 100 if measure == "accuracy" else 1
    for key, name, colour, line in (
        (measure, "training", "C0", "o-"),
        (f"val_{measure}", "validation", "C1", "s--"),
    ):
        known = [(one["epoch"], times * one[key]) for one in history if key in one]  # type: ignore[literal-required]
        if known:
            style = line if len(history) <= _MARKED_EPOCHS else line[1:]
            axes.plot(*zip(*known, strict=True), style, color=colour, markersize=4, label=name)
    if training["best_epoch"] is not None:
        axes.axvline(training["best_epoch"], color="0.5", linewidth=1, linestyle=":", label="kept")
