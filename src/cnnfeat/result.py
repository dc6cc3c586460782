"""What a machine is worth: `svm.json`, as one record to and from JSON.

Accuracies are fractions, 0 to 1; times are in seconds. Fields bear the names of their JSON keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from cnnfeat.documents import (
    Count,
    Duration,
    Length,
    Name,
    Positive,
    Range,
    Share,
    read_document,
    take_up,
)
from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.files import write_json
from cnnfeat.records import Json, some_of

SVM_FORMAT = "cnnfeat-svm"
SVM_VERSION = 1
_MOST_ROWS = 2**53  # as many as a double counts
RULE = "smallest C within one standard error of the best"
# What must stand beside a score on rows that the network has seen, or may have seen.
FITTED = "the network was fitted to these rows: this is no accuracy on new pictures"
PICKED = "the best epoch was picked by these rows"
UNKNOWN = "it is not known which rows the network was fitted to"
# Rows that were scored, by `SvmResult.evaluation`.
SCORED = {
    "test split": "test",
    "hold-out": "held-out",
    "validation rows": "validation",
    "cross-validation": "cross-validated",
}


Deviation = Annotated[float, Range(0)]
Fact: TypeAlias = "bool | int | float | str | None"


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting, tried on all folds, or on rows that stand apart."""

    C: float
    scores: tuple[float, ...]  # on each fold held out
    gamma: float | None = None
    binomial_error: float | None = None  # of a score on rows that stand apart

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        if self.binomial_error is not None:
            return self.binomial_error
        return float(np.std(self.scores, ddof=1) / np.sqrt(len(self.scores)))


@dataclass(frozen=True, slots=True)
class CostSearch:
    """What was tried, and what was chosen."""

    trials: tuple[Trial, ...]  # by growing C
    best: Trial  # of the highest mean
    chosen: Trial  # of the smallest C within one standard error of the best
    folds: int  # 1: rows that stand apart were scored once
    seed: int
    n_samples: int  # rows used, scored ones among them
    on: str  # which rows were scored, in words
    measure: str  # "accuracy" or "balanced accuracy"
    searched: str = ""  # which values were tried, and why no more; "": all that were asked for


@dataclass(frozen=True, slots=True)
class MacroScores:
    """Averages over the classes that occur or are predicted, each counting the same."""

    precision: Share
    recall: Share
    f1: Share
    roc_auc: Share | None = None  # of one against the rest; None: no decision values, or one class


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """One of the layers that are joined, and whose they are."""

    layer: Name
    tensor: Name
    n_features: Length
    file: Count = 0  # a place in `SvmResult.files`


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """How well a machine does on one layer.

    Of several layers, the scores are those they were compared by.
    """

    layer: Name
    tensor: Name | None = None
    n_features: Length | None = None
    C: Positive | None = None
    gamma: Positive | None = None
    n_support: Count | None = None  # of kernel machines
    objective: float | None = None
    newton_steps: Count | None = None  # of linear machines
    cv_accuracy: Share | None = None  # None: not cross-validated
    cv_standard_error: Deviation | None = None
    accuracy: Share
    accuracy_interval: tuple[Share, Share]  # 95 %
    balanced_accuracy: Share | None = None  # mean recall of the classes that occur
    elapsed_s: Duration | None = None
    macro: MacroScores | None = None  # None: written before there were any
    compared_on: Name | None = None  # which rows, in words; None: those the result is scored on
    joined: tuple[LayerColumns, ...] = ()  # what the features are of, side by side; (): one layer


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class is found. Fractions are 0 where nothing was counted."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # rows whose true class it is


@dataclass(frozen=True, slots=True)
class McNemar:
    """Which of two machines is right more often on the same rows, and whether by chance."""

    only_first_right: Count  # rows only the first machine gets right
    only_second_right: Count
    p_value: Share


class Learned(TypedDict):
    """What is to be known of probabilities."""

    method: Name
    n_samples: Count
    on: Name  # which rows they were learned on, in words
    log_loss: float | None  # on the scored rows


@dataclass(frozen=True, slots=True)
class SvmResult:
    """What `svm.json` says."""

    created: str | None  # UTC, ISO 8601
    best: LayerScore  # of the machine that was saved
    kernel: str
    normalize: str | None
    pca: int | None
    classes: tuple[str, ...]
    n_train: int
    n_test: int
    train_split: str | None  # splits of the feature file
    test_split: str | None
    evaluation: str  # "test split", "hold-out", "validation rows" or "cross-validation"
    caveat: str  # what must stand beside the score; "": an accuracy on new pictures
    note: str  # what else there is to know
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]  # (n_classes, n_classes), true classes down
    selection: CostSearch | None  # None: C was given
    features: Mapping[str, Fact]  # the feature file's path and provenance
    network_test_accuracy: float | None
    layers: tuple[LayerScore, ...]  # all that were compared, in the feature file's order
    mcnemar: McNemar | None  # of the two best layers, on the rows they were compared on
    versions: Mapping[str, str]
    class_weight: Mapping[str, float] | None = None  # factors of C; None: 1 for each class
    calibration: Learned | None = None  # of probabilities; None: there are none
    files: tuple[Mapping[str, Fact], ...] = ()  # all of them, where the features are of several

    @property
    def accuracy(self) -> float:
        """Share of the scored rows that the saved machine gets right; see `caveat`."""
        return self.best.accuracy

    def __repr__(self) -> str:
        best = self.best
        cost = "" if best.C is None else f", C = {best.C:g}"
        others = [f"{one.layer} {one.accuracy:.2%}" for one in self.layers]
        compared = f"\n  layers    {some_of(others)}, on {self.compared_on}" if others[1:] else ""
        return (
            f"SvmResult of a {self.kernel} machine on {best.layer}{cost}\n"
            f"  {self.score_name}  {self.score_words}\n"
            f"  trained   on {self.n_train:,} rows of {len(self.classes)} classes{compared}"
            + (f"\n  note      {self.note}" if self.note else "")
        )

    @property
    def score_name(self) -> str:
        """What the share of right rows may be called."""
        if not self.caveat:
            return "accuracy"
        return "cross-validated score" if self.evaluation == "cross-validation" else "score"

    @property
    def scored_rows(self) -> str:
        """Which rows were scored, in words: `10,000 test rows`."""
        return f"{self.n_test:,} {SCORED.get(self.evaluation, self.evaluation)} rows"

    @property
    def score_words(self) -> str:
        """The score and all that belongs beside it: rows, interval, caveat."""
        low, high = self.best.accuracy_interval
        words = f"{self.accuracy:.2%} of {self.scored_rows} (95% interval {low:.2%} to {high:.2%})"
        return f"{words}; {self.caveat}" if self.caveat else words

    @property
    def scored_words(self) -> str:
        """Which rows were scored, and what must be said of a score on them."""
        return f"{self.scored_rows}; {self.caveat}" if self.caveat else self.scored_rows

    @property
    def joined_words(self) -> str:
        """Say which layers, networks and files the features are joined of; "": one layer."""
        said = []
        for number, file in enumerate(self.files or (self.features,)):
            own = [one for one in self.best.joined if one.file == number]
            through = f", through {file['network']}" if file.get("network") else ""
            layers = ", ".join(f"{one.layer} ({one.n_features:,} features)" for one in own)
            said += [f"{layers} of {file.get('path')}{through}"] if own else []
        return "; ".join(said)

    @property
    def compared_on(self) -> str:
        """Which rows the scores in `layers` are of, and what must be said of them."""
        return self.layers[0].compared_on or self.scored_words

    def to_json(self) -> dict[str, Json]:
        """Make the document: the saved machine's scores stand at its top level."""
        named = {name: getattr(self, name) for name in SvmResult.__slots__}
        if not self.files:
            del named["files"]  # of one file, as `features`
        return {
            "format": SVM_FORMAT,
            "format_version": SVM_VERSION,
            "created": named.pop("created"),
            **_score_json(named.pop("best")),
            **named,
            "per_class": [
                {("class" if key == "name" else key): value for key, value in fields.items()}
                for fields in map(dataclasses.asdict, self.per_class)
            ],
            "confusion": self.confusion.tolist(),
            "selection": None if self.selection is None else _selection_json(self.selection),
            "layers": list(map(_score_json, self.layers)),
            "mcnemar": None if self.mcnemar is None else dataclasses.asdict(self.mcnemar),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object], *, path: Path) -> SvmResult:
        """Check and take up a document.

        Parameters
        ----------
        document : mapping
            What JSON holds.
        path : Path
            Where it stood, for messages.

        Raises
        ------
        FeatureFileError
            If it is damaged, foreign or of another version.
        """
        found = document.get("format")
        if found != SVM_FORMAT:
            raise FeatureFileError(f"{path}: not an SVM result: its format is {found!r:.60}")
        version = document.get("format_version")
        if version != SVM_VERSION:
            raise FeatureFileError(
                f"{path}: format version {version!r:.60}; this cnnfeat reads {SVM_VERSION}"
            )
        try:
            return _parse(document)
        except ValueError as error:
            raise FeatureFileError(
                f"{path}: damaged: {error}", hint="run cnnfeat svm --overwrite"
            ) from error


def write_result(result: SvmResult, path: Path) -> None:
    """Write `svm.json`, whole or not at all."""
    write_json(path, result.to_json())


def read_result(path: Path) -> SvmResult:
    """Read `svm.json`.

    Raises
    ------
    MissingInputError
        If there is none.
    FeatureFileError
        If it is damaged, foreign or of another version.
    """
    try:
        document = read_document(path)
    except FileNotFoundError as error:
        raise MissingInputError(f"no SVM result {path}", hint="cnnfeat svm makes it") from error
    except (OSError, ValueError) as error:
        raise FeatureFileError(f"{path}: can't be read as JSON: {error}") from error
    return SvmResult.from_json(document, path=path)


def _score_json(score: LayerScore) -> dict[str, Json]:
    document: dict[str, Json] = dataclasses.asdict(score)
    if not score.joined:
        del document["joined"]
    return document


def _selection_json(selection: CostSearch) -> dict[str, Json]:
    return {
        "folds": selection.folds,
        "seed": selection.seed,
        "n_samples": selection.n_samples,
        "on": selection.on,
        "measure": selection.measure,
        "rule": RULE,
        "searched": selection.searched or None,
        "grid": sorted({trial.C for trial in selection.trials}),
        "scores": [_trial_json(trial) for trial in selection.trials],
        "best": _trial_json(selection.best),
        "chosen": _trial_json(selection.chosen),
    }


def _trial_json(trial: Trial) -> dict[str, Json]:
    return {
        "C": trial.C,
        "gamma": trial.gamma,
        "mean": trial.mean,
        "standard_error": trial.error,
        "folds": list(trial.scores),
    }


class _TrialWritten(TypedDict):
    C: Positive
    gamma: NotRequired[Positive | None]
    standard_error: Deviation
    folds: tuple[Share, ...]


class _SelectionWritten(TypedDict):
    folds: Length
    seed: Count
    n_samples: Count
    on: NotRequired[Name | None]
    measure: NotRequired[Name | None]
    searched: NotRequired[Name | None]
    scores: tuple[_TrialWritten, ...]
    best: _TrialWritten
    chosen: _TrialWritten


_ClassWritten = TypedDict(
    "_ClassWritten",
    {
        "class": Name,
        "precision": Share | None,
        "recall": Share | None,
        "f1": Share | None,
        "support": Count,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What stands in the document besides the scores of the machine that was saved."""

    created: Name | None = None
    kernel: Name
    normalize: Name | None = None
    pca: Length | None = None
    classes: tuple[Name, ...]
    n_train: Count
    n_test: Count
    train_split: Name | None = None
    test_split: Name | None = None
    evaluation: Name | None = None
    caveat: Name | None = None
    note: Name | None = None
    per_class: tuple[_ClassWritten, ...] | None = None
    confusion: Json
    selection: _SelectionWritten | None = None
    features: Mapping[str, Fact] | None = None
    network_test_accuracy: Share | None = None
    layers: tuple[LayerScore, ...] | None = None
    mcnemar: McNemar | None = None
    versions: Mapping[str, Name] | None = None
    class_weight: Mapping[str, Positive] | None = None
    calibration: Learned | None = None
    files: tuple[Mapping[str, Fact], ...] | None = None


def _parse(document: Mapping[str, object]) -> SvmResult:
    best, written = take_up(LayerScore, document), take_up(_Written, document)
    if not written.classes:
        raise ValueError("classes names none")
    for score in (best, *(written.layers or ())):
        low, high = score.accuracy_interval
        if not low <= score.accuracy <= high:
            raise ValueError(
                f"accuracy_interval of {score.layer!r:.60} is {low:g} to {high:g}, without the "
                f"accuracy itself, {score.accuracy:g}"
            )
        _check_joined(score, n_files=len(written.files or ()) or 1)
    return SvmResult(
        created=written.created,
        best=best,
        kernel=written.kernel,
        normalize=written.normalize,
        pca=written.pca,
        classes=written.classes,
        n_train=written.n_train,
        n_test=written.n_test,
        train_split=written.train_split,
        test_split=written.test_split,
        evaluation=written.evaluation or "test split",
        caveat=_caveat(written, said="caveat" in document),
        note=written.note or "",
        per_class=_class_scores(written),
        confusion=_confusion(written.confusion, len(written.classes)),
        selection=None if written.selection is None else _selection(written.selection),
        features=written.features or {},
        network_test_accuracy=written.network_test_accuracy,
        layers=written.layers or (best,),
        mcnemar=written.mcnemar,
        versions=written.versions or {},
        class_weight=written.class_weight,
        calibration=written.calibration,
        files=written.files or (),
    )


def _check_joined(score: LayerScore, *, n_files: int) -> None:
    for columns in score.joined:
        if columns.file >= n_files:
            raise ValueError(
                f"{columns.layer!r:.60} is of file {columns.file}, and there are {n_files:,} files"
            )


def _caveat(written: _Written, *, said: bool) -> str:
    """Read the caveat; older documents had none, whatever rows they were of."""
    if not said and written.evaluation in ("hold-out", "cross-validation"):
        return UNKNOWN
    return written.caveat or ""


def _confusion(rows: Json, n_classes: int) -> NDArray[np.int64]:
    """Check each count without a record's machinery: there may be millions."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"confusion must be a list of lists, not {rows!r:.60}")
    lengths = {len(row) for row in rows}
    if len(rows) != n_classes or lengths - {n_classes}:
        shape = (len(rows), *sorted(lengths))
        raise ValueError(f"{n_classes} classes, but a confusion matrix of {shape!s:.60}")
    for row in rows:
        if not all(type(count) is int and 0 <= count < _MOST_ROWS for count in row):
            raise ValueError(f"confusion must hold numbers of rows, not {row!r:.60}")
    return np.array(rows, np.int64).reshape(n_classes, n_classes)


def _class_scores(written: _Written) -> tuple[ClassScore, ...]:
    found = tuple(
        ClassScore(
            item["class"],
            item["precision"] or 0.0,
            item["recall"] or 0.0,
            item["f1"] or 0.0,
            item["support"],
        )
        for item in written.per_class or ()
    )
    if found and tuple(one.name for one in found) != written.classes:
        raise ValueError("per_class is not of the classes, in their order")
    return found


def _selection(item: _SelectionWritten) -> CostSearch:
    folds, n_samples = item["folds"], item["n_samples"]
    said = f"{folds}-fold cross-validation on {n_samples:,} training rows"  # by older ones, always
    return CostSearch(
        trials=tuple(map(_trial, item["scores"])),
        best=_trial(item["best"]),
        chosen=_trial(item["chosen"]),
        folds=folds,
        seed=item["seed"],
        n_samples=n_samples,
        on=item.get("on") or said,
        measure=item.get("measure") or "accuracy",
        searched=item.get("searched") or "",
    )


def _trial(item: _TrialWritten) -> Trial:
    scores = item["folds"]
    if not scores:
        raise ValueError("a trial of C without a score")
    error = item["standard_error"] if len(scores) == 1 else None
    return Trial(item["C"], scores, item.get("gamma"), error)
