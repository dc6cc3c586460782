"""The SVM stage: a feature file in, a saved machine and what it is worth out."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import Interrupted
from cnnfeat.features import FeatureFile
from cnnfeat.files import check_output, csv_lines, replacing, write_json
from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Json
from cnnfeat.svm.division import Division, Part, check_finite, divide
from cnnfeat.svm.document import layer_record, machine_metadata, result_document
from cnnfeat.svm.evaluation import McNemar, Scores, mcnemar, score
from cnnfeat.svm.machine import Machine, MachineOptions, decide, fit_machine
from cnnfeat.svm.matrix import SubsetRows, moments
from cnnfeat.svm.persistence import save_svm
from cnnfeat.svm.selection import stratified_folds

OUTPUTS = ("svm.skops", "svm.json", "predictions.csv")

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One layer's machine and its answers."""

    layer: str
    machine: Machine
    scores: Scores
    predicted: NDArray[np.intp]  # codes of the scored rows
    margin: NDArray[np.float64]
    n_features: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class SvmResult:
    """What the stage made."""

    folder: Path
    document: Mapping[str, Json]  # what svm.json holds
    best: LayerRun  # whose machine was saved
    runs: tuple[LayerRun, ...]  # one a layer, in the file's order
    classes: tuple[str, ...]
    comparison: McNemar | None  # of the two best layers
    how: str  # "test split", "hold-out" or "cross-validation"
    network_accuracy: float | None

    @property
    def accuracy(self) -> float:
        """Accuracy of the saved machine, 0 to 1."""
        return self.best.scores.accuracy


def svm_stage(
    features: Path,
    out: Path,
    *,
    config: SvmOptions | None = None,
    options: MachineOptions | None = None,
    cross_validate: bool = False,
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
    config : SvmOptions, optional
        Layers ("all" names every one of the file), kernel, C ...
    options : MachineOptions, optional
        The grid of C, and the memory allowed.
    cross_validate : bool
        Whether rows are scored by cross-validation rather than on a test split or a hold-out.
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
    config = config or SvmOptions()
    options = options or MachineOptions()
    for name in (*OUTPUTS, *extra_outputs):
        check_output(out / name, overwrite=overwrite)
    try:
        with FeatureFile(features) as file:
            layers = _asked_layers(file, config)
            division = divide(file, cross_validate=cross_validate, seed=config.seed)
            if config.C == "auto" or cross_validate:
                stratified_folds(division.train.codes, config.folds, seed=config.seed)
            work = _Work(file, division, config, options, progress)
            runs = [_run_layer(work, layer) for layer in layers]
            return _finish(file, out, division, runs, config)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped: nothing was written, and an SVM can't be resumed; "
            "the next run starts from the beginning",
            hint="--C VALUE leaves the search out",
        ) from error


def _asked_layers(file: FeatureFile, config: SvmOptions) -> list[str]:
    if any(name == "all" for name in config.layer) and "all" not in file.layers:
        return list(file.layers)
    if not config.layer:
        return [file.find_layer(None)]
    return list(dict.fromkeys(file.find_layer(name) for name in config.layer))


@dataclass(frozen=True, slots=True)
class _Work:
    """What all layers of one run share."""

    file: FeatureFile
    division: Division
    config: SvmOptions
    options: MachineOptions
    progress: Progress


def _run_layer(work: _Work, layer: str) -> LayerRun:
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
        config=work.config,
        options=work.options,
        progress=work.progress,
    )
    scored = division.test or division.train
    if division.test is not None:
        predicted, margin = decide(machine.pipeline, division.test.features(file, layer))
    else:
        predicted, margin = _cross_validated(work, layer, machine)
    return LayerRun(
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
    part, config = work.division.train, work.config
    rows = part.features(work.file, layer)
    folds = stratified_folds(part.codes, config.folds, seed=config.seed + 1)
    fixed = dataclasses.replace(config, C=machine.C, gamma=machine.gamma or "auto")
    predicted, margin = np.empty(len(folds), np.intp), np.empty(len(folds))
    for fold in range(config.folds):
        kept, held = SubsetRows(rows, folds != fold), SubsetRows(rows, folds == fold)
        fitted = fit_machine(
            kept,
            part.codes[folds != fold],
            seen=moments(kept),
            n_classes=len(work.division.classes),
            config=fixed,
            options=work.options,
        )
        predicted[folds == fold], margin[folds == fold] = decide(fitted.pipeline, held)
    return predicted, margin


def _finish(
    file: FeatureFile, out: Path, division: Division, runs: list[LayerRun], config: SvmOptions
) -> SvmResult:
    """Write everything; the record comes last."""
    ranked = sorted(runs, key=_quality, reverse=True)
    best = ranked[0]
    scored = division.test or division.train
    right = [run.predicted == scored.codes for run in ranked[:2]]
    comparison = mcnemar(right[0], right[1]) if len(right) == 2 else None
    document = result_document(
        file, division, best=best, runs=runs, comparison=comparison, config=config
    )
    save_svm(
        best.machine.pipeline,
        out / "svm.skops",
        metadata=machine_metadata(file, division, layer=best.layer, n_features=best.n_features),
    )
    _write_predictions(out / "predictions.csv", file, scored, best, division.classes)
    write_json(out / "svm.json", document)
    return SvmResult(
        folder=out,
        document=document,
        best=best,
        runs=tuple(runs),
        classes=division.classes,
        comparison=comparison,
        how=division.how,
        network_accuracy=cast("float | None", document["network_test_accuracy"]),
    )


def _quality(run: LayerRun) -> float:
    """What layers are ranked by: cross-validation where there was one, so not the test rows."""
    chosen = run.machine.selection
    return chosen.chosen.mean if chosen is not None else run.scores.accuracy


def _write_predictions(
    path: Path, file: FeatureFile, part: Part, run: LayerRun, classes: Sequence[str]
) -> None:
    """Write a line for each scored row."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as lines,
    ):
        lines.writelines(csv_lines([("id", "label", "predicted", "margin")]))
        lines.writelines(csv_lines(_prediction_rows(file, part, run, classes)))


def _prediction_rows(
    file: FeatureFile, part: Part, run: LayerRun, classes: Sequence[str], step: int = 10_000
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


__all__ = ["OUTPUTS", "LayerRun", "SvmResult", "layer_record", "svm_stage"]
