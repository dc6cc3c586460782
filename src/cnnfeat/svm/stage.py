"""The SVM stage: a feature file in, a saved machine and what it is worth out."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import scipy
import sklearn
import skops
from numpy.typing import NDArray

from cnnfeat import __version__
from cnnfeat.errors import Interrupted
from cnnfeat.features import FeatureFile
from cnnfeat.files import check_output, csv_lines, replacing
from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Json
from cnnfeat.result import LayerScore, SvmResult, write_result
from cnnfeat.svm.division import Division, SplitRows, check_finite, divide
from cnnfeat.svm.evaluation import Scores, mcnemar, score, stratified_folds
from cnnfeat.svm.machine import Machine, decide, fit_machine
from cnnfeat.svm.matrix import SubsetRows, moments
from cnnfeat.svm.persistence import save_svm

OUTPUTS = ("svm.skops", "svm.json", "predictions.csv")

# What a feature file's attributes tell of its making, and machines and results repeat.
PROVENANCE = (
    "network",
    "network_sha256",
    "network_format",
    "source",
    "source_kind",
    "source_fingerprint",
    "source_fingerprint_method",
    "preprocessing",
    "precision",
    "options",
)

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class _LayerRun:
    """One layer's machine and its answers."""

    layer: str
    machine: Machine
    scores: Scores
    predicted: NDArray[np.intp]  # codes of the scored rows
    margin: NDArray[np.float64]
    n_features: int
    elapsed_s: float


def svm_stage(
    features: Path,
    out: Path,
    *,
    options: SvmOptions | None = None,
    overwrite: bool = False,
    extra_outputs: Sequence[str] = (),
    progress: Progress = SILENT,
) -> SvmResult:
    """Train a support vector machine on each asked layer and save the best one.

    Parameters
    ----------
    features : Path
        A feature file.
    out : Path
        The folder for `svm.skops`, `svm.json` and `predictions.csv`.
    options : SvmOptions, optional
        Layers ("all" names every one of the file), kernel, C, whether rows are scored by
        cross-validation rather than on a test split or a hold-out, the memory allowed ...
    overwrite : bool
        Whether outputs that exist may be replaced.
    extra_outputs : sequence of str
        Names of files the caller will write beside these: refused likewise where they exist.
    progress : Progress
        Told of each layer's search and training.

    Returns
    -------
    SvmResult

    Raises
    ------
    UsageError
        If an output exists, or the file has several layers and none was named.
    DataError
        If the labels or features can't be used; with the numbers.
    FeatureFileError
        If the file is damaged, or holds NaN or infinite features.
    Interrupted
        On Ctrl-C; nothing was written.
    """
    options = options or SvmOptions()
    try:
        with FeatureFile(features) as file:
            for name in (*OUTPUTS, *extra_outputs):
                check_output(out / name, overwrite=overwrite)
            layers = _asked_layers(file, options)
            division = divide(file, cross_validate=options.cv, seed=options.seed)
            if options.C == "auto" or options.cv:
                stratified_folds(division.train.codes, options.folds, seed=options.seed)
            work = _Work(file, division, options, progress)
            runs = [_run_layer(work, layer) for layer in layers]
            return _finish(file, out, division, runs, options)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped: nothing was written, and an SVM can't be resumed; "
            "the next run starts from the beginning",
            hint="--C VALUE leaves the search out",
        ) from error


def _asked_layers(file: FeatureFile, options: SvmOptions) -> list[str]:
    if any(name == "all" for name in options.layer) and "all" not in file.layers:
        return list(file.layers)
    if not options.layer:
        return [file.find_layer(None)]
    return list(dict.fromkeys(file.find_layer(name) for name in options.layer))


@dataclass(frozen=True, slots=True)
class _Work:
    """What all layers of one run share."""

    file: FeatureFile
    division: Division
    options: SvmOptions
    progress: Progress


def _run_layer(work: _Work, layer: str) -> _LayerRun:
    file, division = work.file, work.division
    started = time.monotonic()
    rows = division.train.features(file, layer)
    _LOG.info("%s: %s rows of %s features", layer, f"{rows.n_samples:,}", f"{rows.n_features:,}")
    seen = moments(rows)
    check_finite(file, layer, division.train, seen)
    if division.test is not None:
        check_finite(file, layer, division.test, moments(division.test.features(file, layer)))
    machine = fit_machine(
        rows,
        division.train.codes,
        seen=seen,
        n_classes=len(division.classes),
        options=work.options,
        progress=work.progress,
    )
    scored = division.test or division.train
    if division.test is not None:
        predicted, margin = decide(machine.pipeline, division.test.features(file, layer))
    else:
        predicted, margin = _cross_validated(work, layer, machine)
    return _LayerRun(
        layer=layer,
        machine=machine,
        scores=score(scored.codes, predicted, classes=division.classes),
        predicted=predicted,
        margin=margin,
        n_features=rows.n_features,
        elapsed_s=time.monotonic() - started,
    )


def _cross_validated(
    work: _Work, layer: str, machine: Machine
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Predict each row with a machine that has not seen it, all with the same C."""
    part, options = work.division.train, work.options
    rows = part.features(work.file, layer)
    folds = stratified_folds(part.codes, options.folds, seed=options.seed + 1)
    fixed = dataclasses.replace(options, C=machine.C, gamma=machine.gamma or "auto")
    predicted, margin = np.empty(len(folds), np.intp), np.empty(len(folds))
    for fold in range(options.folds):
        kept, held = SubsetRows(rows, folds != fold), SubsetRows(rows, folds == fold)
        fitted = fit_machine(
            kept,
            part.codes[folds != fold],
            seen=moments(kept),
            n_classes=len(work.division.classes),
            options=fixed,
        )
        predicted[folds == fold], margin[folds == fold] = decide(fitted.pipeline, held)
    return predicted, margin


def _finish(
    file: FeatureFile, out: Path, division: Division, runs: list[_LayerRun], options: SvmOptions
) -> SvmResult:
    """Write everything; the record comes last."""
    ranked = sorted(runs, key=_quality, reverse=True)
    result = _result(file, division, ranked=ranked, runs=runs, options=options)
    best = ranked[0]
    save_svm(
        best.machine.pipeline,
        out / "svm.skops",
        metadata=machine_metadata(file, division, layer=best.layer, n_features=best.n_features),
    )
    scored = division.test or division.train
    _write_predictions(out / "predictions.csv", file, scored, best, division.classes)
    write_result(result, out / "svm.json")
    return result


def _result(
    file: FeatureFile,
    division: Division,
    *,
    ranked: list[_LayerRun],
    runs: list[_LayerRun],
    options: SvmOptions,
) -> SvmResult:
    """Fill the record; `ranked` has the best run first, `runs` is in the file's order."""
    scored = division.test or division.train
    right = [run.predicted == scored.codes for run in ranked[:2]]
    best = ranked[0]
    return SvmResult(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        best=_layer_score(file, division, best),
        kernel=options.kernel,
        normalize=options.normalize,
        pca=options.pca,
        classes=division.classes,
        n_train=len(division.train.rows),
        n_test=len(scored.rows),
        train_split=division.train.split,
        test_split=scored.split,
        evaluation=division.how,
        per_class=best.scores.per_class,
        confusion=best.scores.confusion,
        selection=best.machine.selection,
        features={"path": str(file.path), **_provenance(file)},
        network_test_accuracy=_network_accuracy(file),
        layers=tuple(_layer_score(file, division, run) for run in runs),
        mcnemar=mcnemar(right[0], right[1]) if len(right) == 2 else None,
        versions={
            "cnnfeat": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
            "skops": skops.__version__,
        },
    )


def _layer_score(file: FeatureFile, division: Division, run: _LayerRun) -> LayerScore:
    machine, scores = run.machine, run.scores
    chosen = None if machine.selection is None else machine.selection.chosen
    return LayerScore(
        layer=run.layer,
        tensor=file.layer(division.train.split, run.layer).tensor,
        n_features=run.n_features,
        C=machine.C,
        gamma=machine.gamma,
        n_support=machine.n_support,
        objective=machine.objective,
        newton_steps=machine.steps,
        cv_accuracy=None if chosen is None else chosen.mean,
        cv_standard_error=None if chosen is None else chosen.error,
        accuracy=scores.accuracy,
        accuracy_interval=scores.interval,
        balanced_accuracy=scores.balanced_accuracy,
        elapsed_s=run.elapsed_s,
    )


def machine_metadata(
    file: FeatureFile, division: Division, *, layer: str, n_features: int
) -> dict[str, Json]:
    """What a saved machine says of itself: enough to refuse pictures it wasn't made for."""
    stored = file.layer(division.train.split, layer)
    return {
        "layer": layer,
        "layer_name": stored.layer,
        "tensor": stored.tensor,
        "pooling": stored.pooling,
        "shape": [int(length) for length in stored.shape[1:]],
        "n_features": n_features,
        "classes": list(division.classes),
        "labels": list(division.labels),
        "cnnfeat": __version__,
        **_provenance(file),
    }


def _provenance(file: FeatureFile) -> dict[str, Json]:
    return {name: _plain(file.attributes.get(name)) for name in PROVENANCE}


def _plain(value: object) -> Json:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return cast("Json", value.item())
    return str(value)


def _network_accuracy(file: FeatureFile) -> float | None:
    value = file.attributes.get("network_test_accuracy")
    if value is None or value != value:  # noqa: PLR0124 - NaN stands for unknown
        return None
    return float(cast("float", value))


def _quality(run: _LayerRun) -> float:
    """What layers are ranked by: cross-validation where there was one, so not the test rows."""
    chosen = run.machine.selection
    return chosen.chosen.mean if chosen is not None else run.scores.accuracy


def _write_predictions(
    path: Path, file: FeatureFile, part: SplitRows, run: _LayerRun, classes: Sequence[str]
) -> None:
    """Write a line for each scored row."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as lines,
    ):
        lines.writelines(csv_lines([("id", "label", "predicted", "margin")]))
        lines.writelines(csv_lines(_prediction_rows(file, part, run, classes)))


def _prediction_rows(
    file: FeatureFile, part: SplitRows, run: _LayerRun, classes: Sequence[str], step: int = 10_000
) -> Iterator[tuple[str, str, str, str]]:
    """Read ids a part at a time, and put each beside what was said of its row."""
    for start in range(0, len(part.rows), step):
        rows = part.rows[start : start + step]
        first = int(rows[0])
        ids = file.ids(part.split, start=first, stop=int(rows[-1]) + 1)
        for place, row in enumerate(rows, start=start):
            yield (
                ids[int(row) - first],
                classes[part.codes[place]],
                classes[run.predicted[place]],
                f"{run.margin[place]:.6g}",
            )
