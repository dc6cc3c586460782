"""The SVM stage: a feature file in, a saved machine and what it is worth out."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import scipy
import sklearn
import skops
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from cnnfeat import __version__
from cnnfeat.errors import Interrupted, UsageError
from cnnfeat.features import FeatureTable, open_table
from cnnfeat.files import check_output, csv_lines, replacing
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part, pack_parts
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import Json
from cnnfeat.result import (
    CostSearch,
    LayerScore,
    Learned,
    McNemar,
    SvmResult,
    write_result,
)
from cnnfeat.svm.calibration import Calibration, fit_calibration
from cnnfeat.svm.classweight import weight_by_code
from cnnfeat.svm.division import Division, check_finite, divide, set_aside
from cnnfeat.svm.evaluation import Scores, interval_in_turn, mcnemar, mean_roc_auc, score
from cnnfeat.svm.lineage import file_facts, joined_columns, machine_metadata, network_accuracy
from cnnfeat.svm.machine import (
    Candidate,
    Decisions,
    FittedMachine,
    decide,
    fit_machine,
    make_candidate,
)
from cnnfeat.svm.matrix import SubsetRows, moments
from cnnfeat.svm.persistence import save_svm
from cnnfeat.svm.trials import TrialPlan

OUTPUTS = ("svm.skops", "svm.json", "predictions.csv")

_LOG = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class _Work:
    """What all layers of one run share."""

    file: FeatureTable
    division: Division
    options: SvmOptions
    plan: TrialPlan | None  # None: C is given, and there is nothing to compare
    turns: TrialPlan | None  # how rows are scored by cross-validation; None: they are not
    aside: NDArray[np.bool_] | None  # (n_train,) rows for probabilities; None: none are wanted
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Contender:
    """One layer, and what it is worth on the rows that choose."""

    layer: str
    candidate: Candidate
    compared: Scores | None  # None: nothing was tried
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class _Saved:
    """The machine that is saved, and what its decision values came to mean."""

    machine: FittedMachine
    candidate: Candidate  # the rows it was fitted to
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class _Answers:
    """What was said of the scored rows."""

    predicted: NDArray[np.intp]  # codes
    margin: NDArray[np.float64]
    roc_auc: float | None = None
    chances: NDArray[np.float64] | None = None  # of what was predicted; None: not calibrated
    log_loss: float | None = None


def svm_stage(
    features: Path | str | Sequence[Path | str],
    out: Path,
    *,
    options: SvmOptions | None = None,
    overwrite: bool = False,
    extra_outputs: Sequence[str] = (),
    progress: Progress = SILENT,
) -> SvmResult:
    """Choose a layer of those asked for, train a support vector machine on it, score and save it.

    Parameters
    ----------
    features : Path or str, or a sequence of them
        A feature file, or the address of one in a store. The rows of several are joined by id, and
        their layers stand side by side.
    out : Path
        The folder for `svm.skops`, `svm.json` and `predictions.csv`.
    options : SvmOptions, optional
        Layers ("all" names every one of the file, "conv2+fc1" two joined), kernel, C, whether rows
        are scored by cross-validation rather than on a test split or a hold-out, the memory allowed
        ...
    overwrite : bool
        Whether outputs that exist may be replaced.
    extra_outputs : sequence of str
        Names of files the caller will write beside these: refused likewise where they exist.
    progress : Progress
        Told of each layer's search, and of the training.

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
        with open_table(features) as file:
            for name in (*OUTPUTS, *extra_outputs):
                check_output(out / name, overwrite=overwrite)
            layers = _asked_layers(file, options)
            division = divide(file, options)
            tries = options.C == "auto" or len(layers) > 1
            turns = division.in_turn(options, seed=options.seed + 1) if options.cv else None
            plan = division.plan(options, may_fix_C=len(layers) == 1) if tries else None
            aside = set_aside(division, seed=options.seed) if options.probability else None
            work = _Work(file, division, options, plan, turns, aside, progress)
            contenders = [_try_layer(work, layer) for layer in layers]
            return _finish(work, out, contenders)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped: nothing was written, and an SVM can't be resumed; "
            "the next run starts from the beginning",
            hint="--C VALUE leaves the search out",
        ) from error


def _asked_layers(file: FeatureTable, options: SvmOptions) -> list[str]:
    asked: list[str] = []
    for name in options.layer:
        every = name == "all" and not any(name in one.layers for one in file.files)
        asked += file.layers if every else [file.find_layer(name)]
    if not asked:
        try:
            return [file.find_layer(None)]
        except UsageError as error:
            hint = f"{error.hint}; or --layer all, which compares them"
            raise UsageError(error.message, hint=hint) from error
    unique: dict[object, str] = {}  # two names may mean the same
    for name in asked:
        unique.setdefault(file.parts_of(name), name)
    return list(unique.values())


def _try_layer(work: _Work, layer: str) -> _Contender:
    file, division = work.file, work.division
    started = time.monotonic()
    rows = division.train.features(file, layer)
    _LOG.info("%s: %s rows of %s features", layer, f"{rows.n_samples:,}", f"{rows.n_features:,}")
    seen = moments(rows)
    check_finite(file, layer, division.train, seen)
    if division.test is not None:
        check_finite(file, layer, division.test, moments(division.test.features(file, layer)))
    codes = division.train.codes
    candidate = make_candidate(
        rows,
        codes,
        seen=seen,
        plan=work.plan,
        classes=division.classes,
        options=work.options,
        progress=work.progress,
    )
    compared = None
    if candidate.tried is not None:
        _say_choice(candidate.tried.selection)
        compared = score(
            codes[candidate.tried.rows], candidate.tried.predicted, classes=division.classes
        )
    return _Contender(layer, candidate, compared, time.monotonic() - started)


def _say_choice(selection: CostSearch) -> None:
    best, chosen = selection.best, selection.chosen
    gamma = "" if chosen.gamma is None else f", gamma = {chosen.gamma:.3g}"
    share = "" if selection.measure == "accuracy" else f" {selection.measure}"
    rule = ""
    if len(selection.trials) > 1:
        rule = (
            f"; the best is C = {best.C:g} with {best.mean:.2%} ± {100 * best.error:.2f}, and the "
            "smallest within one standard error is taken"
        )
    if selection.searched:
        rule += f"; tried: {selection.searched}"
    where = f"{'on' if selection.folds == 1 else 'in'} {selection.on}"
    _LOG.info("C = %g%s: %.2f%%%s %s%s", chosen.C, gamma, 100 * chosen.mean, share, where, rule)
    if best.gamma is None and rule and best == selection.trials[-1] and best.mean < 1:
        _LOG.warning("the best C is the grid's largest: a wider --grid may find a better one")


def _scored_in_turn(work: _Work, turns: TrialPlan, layers: Sequence[str]) -> _Answers:
    """Predict each row by a machine that has not seen it, chosen and fitted without it.

    C and the layer are chosen anew without each fold, so the score is that of the whole way of
    making a machine; S. Varma and R. Simon, "Bias in error estimation when using cross-validation
    for model selection", BMC Bioinformatics 7 (2006) 91.
    """
    train, options = work.division.train, work.options
    predicted, margin = np.empty(len(train), np.intp), np.empty(len(train))
    own, areas = ~train.copies, list[float | None]()
    with work.progress.task("scoring in turn", total=turns.n_folds, unit="folds") as task:
        for fold in range(turns.n_folds):
            held = turns.fold == fold
            plan = None if work.plan is None else train.in_turn(options, ~held)
            candidates = {layer: _without(work, layer, held, plan) for layer in layers}
            layer, best = max(candidates.items(), key=lambda item: _rank(item[1]))
            scored = held & own
            rows = SubsetRows(train.features(work.file, layer), scored)
            found = decide(fit_machine(best).pipeline, rows)
            predicted[scored], margin[scored] = found.predicted, found.margin
            areas.append(_area(train.codes[scored], found))
            task.advance()
    known = [area for area in areas if area is not None]
    return _Answers(predicted[own], margin[own], float(np.mean(known)) if known else None)


def _without(
    work: _Work,
    layer: str,
    held: NDArray[np.bool_],
    plan: TrialPlan | None,
    options: SvmOptions | None = None,
) -> Candidate:
    """Try one layer on the rows that are not held out."""
    train = work.division.train
    kept = SubsetRows(train.features(work.file, layer), ~held)
    return make_candidate(
        kept,
        train.codes[~held],
        seen=moments(kept),
        plan=plan,
        classes=work.division.classes,
        options=options or work.options,
    )


def _rank(candidate: Candidate) -> float:
    """What layers are chosen by: never a score of the rows that the result is scored on."""
    return 0.0 if candidate.tried is None else candidate.tried.selection.chosen.mean


def _finish(work: _Work, out: Path, contenders: Sequence[_Contender]) -> SvmResult:
    """Fit the best layer's machine, score it, write everything; the record comes last."""
    started = time.monotonic()
    file, division = work.file, work.division
    best = max(contenders, key=lambda contender: _rank(contender.candidate))
    saved = _fit_saved(work, best)
    if work.turns is not None:
        answers = _scored_in_turn(work, work.turns, [item.layer for item in contenders])
    else:
        answers = _answers(work, saved, best.layer)
    best = replace(best, elapsed_s=best.elapsed_s + time.monotonic() - started)
    result = _result(work, contenders, best=best, saved=saved, answers=answers)
    _say_never_predicted(result)
    metadata = machine_metadata(file, division, layer=best.layer)
    metadata["parts"] = _parts(work)
    if saved.calibration is not None:
        metadata["calibration"] = saved.calibration.to_json()
    save_svm(saved.machine.pipeline, out / "svm.skops", metadata=metadata)
    _write_predictions(out / "predictions.csv", file, division, answers)
    write_result(result, out / "svm.json")
    return result


def _say_never_predicted(result: SvmResult) -> None:
    """Warn of classes that no row is said to be of, though some are."""
    said = result.confusion.sum(axis=0)
    silent = {one.name: one.support for one, n in zip(result.per_class, said, strict=True) if not n}
    rows = [f"{name!r} ({support:,} rows)" for name, support in silent.items() if support]
    if rows:
        more = "" if result.class_weight else "; class weights make rare classes count: balanced"
        _LOG.warning("never predicted, though rows are of it: %s%s", ", ".join(rows[:10]), more)


def _fit_saved(work: _Work, best: _Contender) -> _Saved:
    """Fit the machine that is saved; where probabilities are wanted, without the rows set aside."""
    train, candidate = work.division.train, best.candidate
    if work.aside is None:
        return _Saved(fit_machine(candidate, progress=work.progress), candidate, None)
    gamma = None if candidate.tried is None else candidate.tried.selection.chosen.gamma
    fixed = replace(work.options, C=candidate.cost, gamma=gamma or work.options.gamma)
    smaller = _without(work, best.layer, work.aside, None, fixed)
    machine = fit_machine(smaller, progress=work.progress)
    asked = work.aside & ~train.copies
    rows = SubsetRows(train.features(work.file, best.layer), asked)
    found = decide(machine.pipeline, rows, most_bytes=math.inf)
    calibration = fit_calibration(
        cast("NDArray[np.float64]", found.values),
        train.codes[asked],
        classes=work.division.classes,
    )
    return _Saved(machine, smaller, calibration)


def _answers(work: _Work, saved: _Saved, layer: str) -> _Answers:
    """Ask the saved machine about the scored rows."""
    scored = work.division.scored
    found = decide(saved.machine.pipeline, scored.features(work.file, layer))
    answers = _Answers(found.predicted, found.margin, _area(scored.codes, found))
    if saved.calibration is None or found.values is None:
        return answers
    chances = saved.calibration.probabilities(found.values)
    return replace(
        answers,
        chances=chances[np.arange(len(chances)), found.predicted],
        log_loss=float(log_loss(scored.codes, chances, labels=np.arange(chances.shape[1]))),
    )


def _area(codes: NDArray[np.intp], found: Decisions) -> float | None:
    return None if found.values is None else mean_roc_auc(codes, found.values)


def _parts(work: _Work) -> dict[str, Json]:
    """What the saved machine saw of each row of the file, by split."""
    file, train = work.file, work.division.train
    parts = {split: np.full(file.n_rows(split), Part.UNSEEN, np.uint8) for split in file.splits}
    aside = np.zeros(len(train), np.bool_) if work.aside is None else work.aside
    done = 0
    for piece in train.pieces:
        here = aside[done : done + len(piece.rows)]
        parts[piece.split][piece.rows] = np.where(here, Part.VALIDATION, Part.FITTED)
        done += len(piece.rows)
    return {split: pack_parts(found) for split, found in parts.items()}


def _class_weight(division: Division, candidate: Candidate) -> dict[str, float] | None:
    """Name the factors of C; None where all are 1."""
    factors = weight_by_code(candidate.factors)
    if factors is None:
        return None
    return {division.classes[code]: factor for code, factor in factors.items()}


def _calibration(work: _Work, saved: _Saved, answers: _Answers) -> Learned | None:
    """What is to be known of the probabilities."""
    if saved.calibration is None:
        return None
    division, n_samples = work.division, saved.calibration.n_samples
    how = "" if division.chooses is not None else ", held out from the machine"
    return {
        "method": "sigmoid",
        "n_samples": n_samples,
        "on": f"{n_samples:,} {division.choosers or division.rows}{how}",
        "log_loss": answers.log_loss,  # on the scored rows
    }


def _result(
    work: _Work,
    contenders: Sequence[_Contender],
    *,
    best: _Contender,
    saved: _Saved,
    answers: _Answers,
) -> SvmResult:
    """Fill the record; the contenders are in the order they were asked for."""
    division, options, file = work.division, work.options, work.file
    scores = score(
        division.scored.codes,
        answers.predicted,
        classes=division.classes,
        roc_auc=answers.roc_auc,
    )
    finished = _layer_score(work, best, scores, saved.machine)
    compared = [
        _layer_score(work, item, item.compared or scores, compared=True) for item in contenders
    ]
    return SvmResult(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        best=finished,
        kernel=options.kernel,
        normalize=options.normalize,
        pca=options.pca,
        classes=division.classes,
        n_train=saved.candidate.rows.n_samples,
        n_test=len(division.scored),
        train_split=division.train.splits,
        test_split=division.scored.splits,
        evaluation=division.how,
        caveat=division.caveat,
        note=division.note,
        per_class=scores.per_class,
        confusion=scores.confusion,
        selection=best.candidate.selection,
        features=file_facts(file.files[0]),
        network_test_accuracy=network_accuracy(file),
        layers=tuple(compared) if len(contenders) > 1 else (finished,),
        mcnemar=_compared_best(work, contenders) if len(contenders) > 1 else None,
        versions={
            "cnnfeat": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
            "skops": skops.__version__,
        },
        class_weight=_class_weight(division, saved.candidate),
        calibration=_calibration(work, saved, answers),
        files=tuple(map(file_facts, file.files)) if len(file.files) > 1 else (),
    )


def _layer_score(
    work: _Work,
    contender: _Contender,
    scores: Scores,
    machine: FittedMachine | None = None,
    *,
    compared: bool = False,
) -> LayerScore:
    """Say what is known of a layer; only the saved one has a machine."""
    candidate, layer = contender.candidate, contender.layer
    split = work.division.train.pieces[0].split
    tried, selection = candidate.tried, candidate.selection
    crossed = None if selection is None or selection.folds == 1 else selection.chosen
    gamma = None if tried is None else tried.selection.chosen.gamma
    folds = 1 if work.turns is None else work.turns.n_folds
    if compared and tried is not None:
        folds = tried.selection.folds
    interval = scores.interval
    if folds > 1:
        interval = interval_in_turn(scores.accuracy, scores.n_samples, folds=folds)
    return LayerScore(
        layer=layer,
        tensor=work.file.layer(split, layer).tensor or None,
        n_features=candidate.rows.n_features,
        C=candidate.cost,
        gamma=gamma if machine is None else machine.gamma,
        n_support=None if machine is None else machine.n_support,
        objective=None if machine is None else machine.objective,
        newton_steps=None if machine is None else machine.steps,
        cv_accuracy=None if crossed is None else crossed.mean,
        cv_standard_error=None if crossed is None else crossed.error,
        accuracy=scores.accuracy,
        accuracy_interval=interval,
        balanced_accuracy=scores.balanced_accuracy,
        elapsed_s=contender.elapsed_s,
        macro=scores.macro,
        compared_on=tried.selection.on if compared and tried is not None else None,
        joined=joined_columns(work.file, split, layer=layer),
    )


def _compared_best(work: _Work, contenders: Sequence[_Contender]) -> McNemar | None:
    """Hold the two best layers against each other, on the rows that both were tried on."""
    ranked = sorted(contenders, key=lambda item: _rank(item.candidate), reverse=True)
    first, second = (item.candidate.tried for item in ranked[:2])
    if first is None or second is None:
        return None
    rows, here, there = np.intersect1d(
        first.rows, second.rows, assume_unique=True, return_indices=True
    )
    codes = work.division.train.codes[rows]
    return mcnemar(first.predicted[here] == codes, second.predicted[there] == codes)


def _write_predictions(
    path: Path, file: FeatureTable, division: Division, answers: _Answers
) -> None:
    """Write a line for each scored row."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as lines,
    ):
        chance = [] if answers.chances is None else ["probability"]
        lines.writelines(csv_lines([["id", "label", "predicted", "margin", *chance]]))
        lines.writelines(csv_lines(_prediction_rows(file, division, answers)))


def _prediction_rows(
    file: FeatureTable, division: Division, answers: _Answers, step: int = 10_000
) -> Iterator[list[str]]:
    """Read ids a part at a time, and put each beside what was said of its row."""
    codes, classes = division.scored.codes, division.classes
    place = 0
    for piece in division.scored.pieces:
        for start in range(0, len(piece.rows), step):
            rows = piece.rows[start : start + step]
            first = int(rows[0])
            ids = file.ids(piece.split, start=first, stop=int(rows[-1]) + 1)
            for row in rows.tolist():
                chance = [] if answers.chances is None else [f"{answers.chances[place]:.6g}"]
                yield [
                    ids[row - first],
                    classes[codes[place]],
                    classes[answers.predicted[place]],
                    f"{answers.margin[place]:.6g}",
                    *chance,
                ]
                place += 1
