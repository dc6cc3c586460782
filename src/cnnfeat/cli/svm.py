"""`cnnfeat svm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfeat.cli import console, flags, manual
from cnnfeat.cli.option import option
from cnnfeat.cli.places import FeaturePath, LocalPath
from cnnfeat.cli.session import Settings, artifact, pass_settings, typed
from cnnfeat.options import RunOptions

if TYPE_CHECKING:
    from cnnfeat.result import MacroScores, SvmResult

_CELLS = 20  # classes up to which the confusion matrix is printed


@manual.command(
    "The machine",
    "cnnfeat svm --layer fc1",
    "cnnfeat svm features.h5 --layer all --kernel rbf -o machines/",
)
@click.argument("features", metavar="[FEATURES]...", type=FeaturePath(), nargs=-1)
@flags.common
@flags.tables("svm")
@option(
    "-o",
    "--output",
    "out",
    type=LocalPath(file_okay=False),
    default=lambda: artifact("svm.skops").parent,
    show_default="artifacts",
    help="The folder for svm.skops, svm.json, predictions.csv and confusion.png.",
)
@flags.overwrite
@flags.as_json
@pass_settings
def svm(
    settings: Settings,
    *,
    features: tuple[Path, ...],
    options: RunOptions,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a support vector machine on the features of FEATURES, by default artifacts/features.h5.

    --layer conv2+fc1 joins layers: one machine on the columns of conv2 and then of fc1. Of several
    FEATURES, whose rows are joined by their ids, the first layer is the first file's and the second
    the second's; one layer alone is meant in each of them.

    C is chosen on rows that the network wasn't fitted to, else by cross-validation. Several layers
    are compared by the same rows; the test rows are scored once, for the best layer.
    """
    from cnnfeat.pipeline import SVM, fit_svm, svm_files

    result = fit_svm(
        features or artifact("features.h5"),
        out,
        options=options.svm,
        overwrite=overwrite,
        progress=console.progress(settings),
    )
    if as_json:
        console.show_json(result.to_json())
    else:
        _show(result)
        console.show(f"{out}: {', '.join(svm_files(options.svm))}")
        console.show(f"next: {typed('predict', 'PICTURE', svm=out / SVM)}")


def _show(result: SvmResult) -> None:
    """Print the result for people."""
    best = result.best
    if len(result.layers) > 1:
        _show_layers(result)
    facts = [
        ("layer", f"{best.layer}: {best.n_features:,} features"),
        *([("joined of", result.joined_words)] if best.joined else []),
        (result.score_name, result.score_words),
        (f"balanced {result.score_name}", f"{best.balanced_accuracy:.2%}"),
    ]
    facts += _averages(best.macro)
    if result.class_weight is not None:
        named = sorted(result.class_weight.items(), key=lambda item: -item[1])[:_CELLS]
        facts.append(("C by class", ", ".join(f"{name} × {value:.3g}" for name, value in named)))
    if result.calibration is not None:
        facts.append(("probabilities", f"learned on {result.calibration['on']}"))
    if result.network_test_accuracy is not None:
        facts.append(("the network itself", f"{result.network_test_accuracy:.2%}"))
    others = [score.elapsed_s or 0.0 for score in result.layers if score.layer != best.layer]
    facts.append(("time", f"{sum(others, best.elapsed_s or 0.0):.1f} s"))
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
        _show_confusion(result)


def _show_confusion(result: SvmResult) -> None:
    """The confusion matrix, its columns numbered where the classes' names are too wide."""
    names, heads = list(result.classes), list(result.classes)
    counts = [
        [f"{count:,}" if count else "." for count in row] for row in result.confusion.tolist()
    ]

    def table() -> tuple[list[str], list[list[str]]]:
        rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
        return ["true \\ predicted", *heads], rows

    if not console.fits_table(*table()):
        heads = [f"{number}" for number in range(1, len(names) + 1)]
        names = [f"{head} {name}" for head, name in zip(heads, names, strict=True)]
    console.show_table(*table(), numeric=heads)


def _averages(macro: MacroScores | None) -> list[tuple[str, str]]:
    """Averages over the classes, as facts."""
    if macro is None:
        return []
    facts = [
        (
            "mean over classes",
            f"precision {macro.precision:.2%}, recall {macro.recall:.2%}, F1 {macro.f1:.2%}",
        )
    ]
    if macro.roc_auc is not None:
        facts.append(("ROC AUC", f"{macro.roc_auc:.4f}, mean of each class against the rest"))
    return facts


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
                f"{score.accuracy:.2%}",
                f"{score.balanced_accuracy:.2%}",
                f"{low:.2%} to {high:.2%}",
                f"{score.elapsed_s:.1f} s",
            )
        )
    columns = ("layer", "features", "C", "right", "balanced", "95% interval", "time")
    console.show(f"layers compared on {result.compared_on}:")
    spare = ("time", "features", "balanced")
    console.show_table(columns, rows, numeric=columns[1:], spare=spare)
    test = result.mcnemar
    if test is not None:
        console.show(
            f"the two best layers there: {test.only_first_right} rows only the first gets right, "
            f"{test.only_second_right} only the second; McNemar's p = {test.p_value:.2g}"
        )
