"""`cnnfeat svm`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cnnfeat.cli import console, options
from cnnfeat.cli.settings import Settings, artifact, pass_settings
from cnnfeat.options import SvmOptions

if TYPE_CHECKING:
    from cnnfeat.result import SvmResult

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LEAST_BYTES = 64 * 2**20
_CONFUSION, _LAYERS = "confusion.png", "layers.png"
_CELLS = 20  # classes up to which the confusion matrix is printed


class MemorySize(click.ParamType[int]):
    """`2GiB`, `512MiB`, or a number of bytes."""

    name = "SIZE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a number and a unit."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value).lower())
        if not found:
            self.fail(f"{value!r} is no size; 2GiB and 512MiB are", param, ctx)
        size_bytes = int(float(found[1]) * _UNITS[found[2]])
        if size_bytes < _LEAST_BYTES:
            self.fail(f"must be at least 64MiB, not {value}", param, ctx)
        return size_bytes


class Grid(click.ParamType[tuple[float, ...]]):
    """`0.01,0.1,1`."""

    name = "C,C,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Read numbers between commas."""
        if isinstance(value, tuple):
            return value
        try:
            grid = tuple(float(text) for text in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; 0.01,0.1,1 is", param, ctx)
        if len(set(grid)) < 2 or not all(0 < C < float("inf") for C in grid):
            self.fail(f"needs at least 2 different values above 0, not {value}", param, ctx)
        return grid


@click.command()
@click.argument(
    "features",
    type=click.Path(path_type=Path),
    default=lambda: artifact("features.h5"),
)
@options.common
@options.config_file("svm")
@options.setting(
    SvmOptions,
    "layer",
    help="A layer of the file; may be repeated: layers are compared. all: every one.",
)
@options.setting(SvmOptions, "kernel", help="nystroem: an approximation of rbf for many rows.")
@options.setting(SvmOptions, "C", "--C", help="The cost of errors; auto: by cross-validation.")
@options.setting(SvmOptions, "gamma", help="Of rbf and poly; auto: by cross-validation.")
@options.setting(
    SvmOptions,
    "normalize",
    help="Mean 0 and deviation 1 of features, length 1 of rows, or neither.",
)
@options.setting(SvmOptions, "pca", help="Keep so many principal components.")
@options.setting(SvmOptions, "folds", help="Of the cross-validation.")
@click.option("--grid", type=Grid(), help="Values of C to try.", show_default="9 half-decades")
@options.setting(SvmOptions, "seed", help="Fixes folds and samples.")
@click.option(
    "--cv",
    "cross_validate",
    is_flag=True,
    help="Score each row by a machine that hasn't seen it, instead of on a test split.",
)
@click.option(
    "--memory",
    "memory_bytes",
    type=MemorySize(),
    default="2GiB",
    show_default=True,
    help="About how much may be used; features beyond it are read by blocks.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: artifact("svm.skops").parent,
    show_default="artifacts",
    help="The folder for svm.skops, svm.json, predictions.csv and confusion.png.",
)
@options.overwrite
@options.as_json
@pass_settings
def svm(
    settings: Settings,
    *,
    features: Path,
    layer: tuple[str, ...],
    kernel: Literal["linear", "rbf", "poly", "nystroem"],
    C: float | Literal["auto"],
    gamma: float | Literal["auto"],
    normalize: Literal["standard", "l2", "none"],
    pca: int | None,
    folds: int,
    grid: tuple[float, ...] | None,
    seed: int,
    cross_validate: bool,
    memory_bytes: int,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a support vector machine on the features of FEATURES.

    C is chosen on the training rows; the test rows are read once, at the end. With several
    layers, each gets its machine, and the best in cross-validation is saved.
    """
    from cnnfeat.svm import MachineOptions, svm_stage

    config = SvmOptions(layer, kernel, C, gamma, normalize, pca, folds, seed=seed)
    result = svm_stage(
        features,
        out,
        config=config,
        options=MachineOptions(grid=grid, memory_bytes=memory_bytes),
        cross_validate=cross_validate,
        overwrite=overwrite,
        extra_outputs=_pictures(layer),
        progress=console.progress(settings),
    )
    drawn = _draw(result, out)
    if as_json:
        console.show_json(result.to_json())
    else:
        _show(result, out, drawn)


def _pictures(layer: tuple[str, ...]) -> list[str]:
    """Name the pictures that may be drawn when these layers are asked for."""
    return [_CONFUSION, _LAYERS] if len(layer) > 1 or "all" in layer else [_CONFUSION]


def _draw(result: SvmResult, folder: Path) -> list[Path]:
    """Draw the confusion matrix, and the layers where several were compared."""
    from cnnfeat.report.charts import plot_confusion, plot_layers

    drawn = [folder / _CONFUSION]
    plot_confusion(result.confusion, result.classes, drawn[0], title=f"SVM on {result.best.layer}")
    if len(result.layers) > 1:
        drawn.append(folder / _LAYERS)
        plot_layers(
            result.layers,
            drawn[1],
            network_accuracy=result.network_test_accuracy,
            title="SVMs by layer",
        )
    return drawn


def _show(result: SvmResult, folder: Path, drawn: list[Path]) -> None:
    """Print the result for people."""
    best = result.best
    if len(result.layers) > 1:
        _show_layers(result)
    low, high = best.accuracy_interval
    where = {"test split": "test", "hold-out": "held-out", "cross-validation": "cross-validated"}
    facts = [
        ("layer", f"{best.layer}: {best.n_features:,} features"),
        (
            "accuracy",
            f"{best.accuracy:.2%} of {result.n_test:,} {where[result.evaluation]} rows "
            f"(95% interval {low:.2%} to {high:.2%})",
        ),
        ("balanced accuracy", f"{best.balanced_accuracy:.2%}"),
    ]
    if result.network_test_accuracy is not None:
        facts.append(("the network itself", f"{result.network_test_accuracy:.2%}"))
    facts.append(("time", f"{sum(score.elapsed_s or 0.0 for score in result.layers):.1f} s"))
    console.show_facts(facts)
    console.show_table(
        ("class", "precision", "recall", "F1", "rows"),
        [
            (c.name, f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.2%}", f"{c.support:,}")
            for c in result.per_class
        ],
        numeric=("precision", "recall", "F1", "rows"),
    )
    if len(result.classes) <= _CELLS:
        console.show_table(
            ("true \\ predicted", *result.classes),
            [
                (name, *(f"{count:,}" if count else "." for count in row))
                for name, row in zip(result.classes, result.confusion.tolist(), strict=True)
            ],
            numeric=result.classes,
        )
    names = ", ".join(path.name for path in drawn)
    console.show(f"{folder}: svm.skops, svm.json, predictions.csv, {names}")


def _show_layers(result: SvmResult) -> None:
    """One line a layer, and whether the difference of the two best may be chance."""
    rows = []
    for score in result.layers:
        low, high = score.accuracy_interval
        rows.append(
            (
                score.layer,
                f"{score.n_features:,}",
                f"{score.C:g}",
                "" if score.cv_accuracy is None else f"{score.cv_accuracy:.2%}",
                f"{score.accuracy:.2%}",
                f"{low:.2%} to {high:.2%}",
                f"{score.elapsed_s:.1f} s",
            )
        )
    columns = ("layer", "features", "C", "cross-validated", "accuracy", "95% interval", "time")
    console.show_table(columns, rows, numeric=columns[1:])
    test = result.mcnemar
    if test is not None:
        console.show(
            f"the two best layers: {test.only_first_right} rows only the first gets right, "
            f"{test.only_second_right} only the second; McNemar's p = {test.p_value:.2g}"
        )
