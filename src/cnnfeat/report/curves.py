"""Accuracy by layer and by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnfeat.errors import DataError
from cnnfeat.report.figure import BAD, GOOD, drawing, short
from cnnfeat.result import LayerScore


def plot_layers(
    scores: Sequence[LayerScore],
    out: Path,
    *,
    network_accuracy: float | None,
    title: str,
    dpi: float = 150,
) -> None:
    """Draw each layer's SVM accuracy with its 95 % interval, beside the network's own.

    Parameters
    ----------
    scores : sequence of LayerScore
        In the order they are drawn, from above.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    network_accuracy : float or None
        The network's own, 0 to 1, drawn as a line where it is known.
    title : str
        What is shown.
    dpi : float
        Dots per inch of a PNG.
    """
    with drawing(out, size=(7.5, 1.3 + 0.42 * len(scores)), dpi=dpi) as figure:
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
            color=GOOD,
            capsize=3,
            label="SVM, with 95 % interval",
        )
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.2f}",
                (value, place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        if network_accuracy is not None:
            axes.axvline(
                100 * network_accuracy,
                color=BAD,
                linestyle="--",
                label=f"the network itself: {network_accuracy:.2%}",
            )
        axes.set_yticks(places, [short(score.layer, limit=32) for score in scores])
        axes.set_ylim(len(scores) - 0.4, -0.7)
        axes.set_xlabel("test accuracy, %")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2)


def plot_training(
    history: Sequence[Mapping[str, float]],
    out: Path,
    *,
    best_epoch: int,
    title: str,
    dpi: float = 150,
) -> None:
    """Draw loss and accuracy by epoch, on training and validation images.

    Parameters
    ----------
    history : sequence of mapping
        One record an epoch: epoch, loss, accuracy, val_loss, val_accuracy.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    best_epoch : int
        Whose weights were kept, counted from 1.
    title : str
        What is shown.
    dpi : float
        Dots per inch of a PNG.

    Raises
    ------
    DataError
        If there is no history.
    """
    if not history:
        raise DataError("the model's card has no history: nothing to draw")
    epochs = [record["epoch"] for record in history]
    with drawing(out, size=(8.5, 3.8), dpi=dpi) as figure:
        for axes, key, scale, label in zip(
            figure.subplots(1, 2),
            ("loss", "accuracy"),
            (1, 100),
            ("loss", "accuracy, %"),
            strict=True,
        ):
            for prefix, name, colour, line in (
                ("", "training", GOOD, "o-"),
                ("val_", "validation", BAD, "s--"),
            ):
                values = [scale * record[prefix + key] for record in history]
                axes.plot(epochs, values, line, color=colour, markersize=4, label=name)
            axes.axvline(best_epoch, color="0.5", linewidth=1, linestyle=":", label="kept")
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        figure.suptitle(title)
