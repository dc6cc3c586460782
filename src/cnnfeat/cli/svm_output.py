"""The pictures `cnnfeat svm` draws beside its other outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.report.confusion import plot_confusion
from cnnfeat.report.curves import plot_layers

if TYPE_CHECKING:
    from cnnfeat.result import SvmResult

CONFUSION, LAYERS = "confusion.png", "layers.png"


def extra_outputs(layer: Sequence[str]) -> list[str]:
    """Name the pictures that may be drawn when these layers are asked for."""
    return [CONFUSION, LAYERS] if len(layer) > 1 or "all" in layer else [CONFUSION]


def draw(result: SvmResult, folder: Path) -> list[Path]:
    """Draw the confusion matrix, and the layers where several were compared."""
    drawn = [folder / CONFUSION]
    plot_confusion(
        result.confusion,
        result.classes,
        drawn[0],
        title=f"SVM on {result.best.layer}",
    )
    if len(result.layers) > 1:
        drawn.append(folder / LAYERS)
        plot_layers(
            result.layers,
            drawn[1],
            network_accuracy=result.network_test_accuracy,
            title="SVMs by layer",
        )
    return drawn
