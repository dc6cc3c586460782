"""The confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.colors import PowerNorm

from cnnfeat.errors import DataError
from cnnfeat.report.figure import AMOUNTS, drawing, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

_NUMBERED = 20  # classes up to which every cell shows its count
_NAMED = 50  # classes up to which every row shows its name


def plot_confusion(
    confusion: ArrayLike,
    classes: Sequence[str],
    out: Path,
    *,
    title: str,
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
        bar.set_ticks([0, 0.01, 0.1, 0.5, 1.0], labels=["0", "1 %", "10 %", "50 %", "100 %"])
        _name_axes(axes, classes)
        axes.set_title(f"{title}\n{_summary(counts)}")
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


def _name_axes(axes: Axes, classes: Sequence[str]) -> None:
    step = -(-len(classes) // _NAMED)  # every class up to _NAMED, then every step-th
    ticks = range(0, len(classes), step)
    labels = [short(classes[tick], limit=16) for tick in ticks]
    upright = sum(map(len, labels)) > 3 * len(labels) or len(labels) > _NUMBERED
    small = 7 if len(labels) > _NUMBERED else 9
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
