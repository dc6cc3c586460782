"""What a machine is worth: `svm.json`, as one record to and from JSON.

Accuracies are fractions, 0 to 1; times are in seconds. Fields bear the names of their JSON keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.files import write_json
from cnnfeat.records import Json, some_of

SVM_FORMAT = "cnnfeat-svm"
SVM_VERSION = 1
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


@dataclass(frozen=True, slots=True)
class MacroScores:
    """Averages over the classes that occur or are predicted, each counting the same."""

    precision: float
    recall: float
    f1: float
    roc_auc: float | None  # of one against the rest; None: no decision values, or one class


@dataclass(frozen=True, slots=True)
class LayerScore:
    """How well a machine does on one layer.

    Of several layers, the scores are those they were compared by.
    """

    layer: str
    tensor: str | None
    n_features: int | None
    C: float | None
    gamma: float | None
    n_support: int | None  # of kernel machines
    objective: float | None
    newton_steps: int | None  # of linear machines
    cv_accuracy: float | None  # None: not cross-validated
    cv_standard_error: float | None
    accuracy: float
    accuracy_interval: tuple[float, float]  # 95 %
    balanced_accuracy: float | None  # mean recall of the classes that occur
    elapsed_s: float | None
    macro: MacroScores | None = None  # None: written before there were any
    compared_on: str | None = None  # which rows, in words; None: those the result is scored on


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

    only_first_right: int  # rows only the first machine gets right
    only_second_right: int
    p_value: float


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
    features: Mapping[str, Json]  # the feature file's path and provenance
    network_test_accuracy: float | None
    layers: tuple[LayerScore, ...]  # all that were compared, in the feature file's order
    mcnemar: McNemar | None  # of the two best layers, on the rows they were compared on
    versions: Mapping[str, Json]
    class_weight: Mapping[str, float] | None = None  # factors of C; None: 1 for each class
    calibration: Mapping[str, Json] | None = None  # of probabilities; None: there are none

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
    def compared_on(self) -> str:
        """Which rows the scores in `layers` are of, and what must be said of them."""
        return self.layers[0].compared_on or self.scored_words

    def to_json(self) -> dict[str, Json]:
        """Make the document: the saved machine's scores stand at its top level."""
        named = {name: getattr(self, name) for name in SvmResult.__slots__}
        return {
            "format": SVM_FORMAT,
            "format_version": SVM_VERSION,
            "created": named.pop("created"),
            **dataclasses.asdict(named.pop("best")),
            **named,
            "per_class": [
                {("class" if key == "name" else key): value for key, value in fields.items()}
                for fields in map(dataclasses.asdict, self.per_class)
            ],
            "confusion": self.confusion.tolist(),
            "selection": None if self.selection is None else _selection_json(self.selection),
            "layers": [dataclasses.asdict(score) for score in self.layers],
            "mcnemar": None if self.mcnemar is None else dataclasses.asdict(self.mcnemar),
        }

    @classmethod
    def from_json(cls, document: object, *, path: Path) -> SvmResult:
        """Check and take up a document.

        Parameters
        ----------
        document : object
            What JSON holds.
        path : Path
            Where it stood, for messages.

        Raises
        ------
        FeatureFileError
            If it is damaged, foreign or of another version.
        """
        found = document.get("format") if isinstance(document, dict) else None
        if not isinstance(document, dict) or found != SVM_FORMAT:
            raise FeatureFileError(f"{path}: not an SVM result: its format is {found!r}")
        version = document.get("format_version")
        if version != SVM_VERSION:
            raise FeatureFileError(
                f"{path}: format version {version!r}; this cnnfeat reads {SVM_VERSION}"
            )
        try:
            return _parse(document)
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureFileError(
                f"{path}: damaged: {type(error).__name__}: {error}",
                hint="run cnnfeat svm --overwrite",
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
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"no SVM result {path}", hint="cnnfeat svm makes it") from error
    except (OSError, ValueError) as error:
        raise FeatureFileError(f"{path}: can't be read as JSON: {error}") from error
    return SvmResult.from_json(document, path=path)


def _selection_json(selection: CostSearch) -> dict[str, Json]:
    return {
        "folds": selection.folds,
        "seed": selection.seed,
        "n_samples": selection.n_samples,
        "on": selection.on,
        "measure": selection.measure,
        "rule": RULE,
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


def _parse(document: Mapping[str, object]) -> SvmResult:
    classes = tuple(str(name) for name in _list(document["classes"]))
    confusion = np.asarray(document["confusion"], dtype=np.int64)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes, but a confusion matrix of {confusion.shape}")
    best = _layer_score(document)
    compared = tuple(_layer_score(_mapping(item)) for item in _list(document.get("layers") or []))
    selection, mcnemar = document.get("selection"), document.get("mcnemar")
    return SvmResult(
        created=_text(document.get("created")),
        best=best,
        kernel=str(document["kernel"]),
        normalize=_text(document.get("normalize")),
        pca=_count(document.get("pca")),
        classes=classes,
        n_train=_whole(document["n_train"]),
        n_test=_whole(document["n_test"]),
        train_split=_text(document.get("train_split")),
        test_split=_text(document.get("test_split")),
        evaluation=str(document.get("evaluation") or "test split"),
        caveat=_caveat(document),
        note=str(document.get("note") or ""),
        per_class=tuple(
            _class_score(_mapping(item)) for item in _list(document.get("per_class") or [])
        ),
        confusion=confusion,
        selection=None if selection is None else _selection(_mapping(selection)),
        features=cast("Mapping[str, Json]", _mapping(document.get("features") or {})),
        network_test_accuracy=_number(document.get("network_test_accuracy")),
        layers=compared or (best,),
        mcnemar=None if mcnemar is None else _mcnemar(_mapping(mcnemar)),
        versions=cast("Mapping[str, Json]", _mapping(document.get("versions") or {})),
        class_weight=_factors(document.get("class_weight")),
        calibration=_record(document.get("calibration")),
    )


def _caveat(document: Mapping[str, object]) -> str:
    """Read the caveat; older documents had none, whatever rows they were of."""
    if document.get("evaluation") in ("hold-out", "cross-validation"):
        return str(document.get("caveat", UNKNOWN))
    return str(document.get("caveat") or "")


def _factors(item: object) -> Mapping[str, float] | None:
    return None if item is None else {name: _real(one) for name, one in _mapping(item).items()}


def _record(item: object) -> Mapping[str, Json] | None:
    return None if item is None else cast("Mapping[str, Json]", _mapping(item))


def _layer_score(item: Mapping[str, object]) -> LayerScore:
    low, high = (_real(end) for end in _list(item["accuracy_interval"]))
    return LayerScore(
        layer=str(item["layer"]),
        tensor=_text(item.get("tensor")),
        n_features=_count(item.get("n_features")),
        C=_number(item.get("C")),
        gamma=_number(item.get("gamma")),
        n_support=_count(item.get("n_support")),
        objective=_number(item.get("objective")),
        newton_steps=_count(item.get("newton_steps")),
        cv_accuracy=_number(item.get("cv_accuracy")),
        cv_standard_error=_number(item.get("cv_standard_error")),
        accuracy=_real(item["accuracy"]),
        accuracy_interval=(low, high),
        balanced_accuracy=_number(item.get("balanced_accuracy")),
        elapsed_s=_number(item.get("elapsed_s")),
        macro=_macro(item.get("macro")),
        compared_on=_text(item.get("compared_on")),
    )


def _macro(item: object) -> MacroScores | None:
    if item is None:
        return None
    found = _mapping(item)
    precision, recall, f1 = (_real(found[key]) for key in ("precision", "recall", "f1"))
    return MacroScores(precision, recall, f1, _number(found.get("roc_auc")))


def _class_score(item: Mapping[str, object]) -> ClassScore:
    precision, recall, f1 = (_number(item[key]) or 0.0 for key in ("precision", "recall", "f1"))
    return ClassScore(str(item["class"]), precision, recall, f1, _whole(item["support"]))


def _selection(item: Mapping[str, object]) -> CostSearch:
    folds, n_samples = _whole(item["folds"]), _whole(item["n_samples"])
    said = f"{folds}-fold cross-validation on {n_samples:,} training rows"  # by older ones, always
    return CostSearch(
        trials=tuple(_trial(_mapping(trial)) for trial in _list(item["scores"])),
        best=_trial(_mapping(item["best"])),
        chosen=_trial(_mapping(item["chosen"])),
        folds=folds,
        seed=_whole(item["seed"]),
        n_samples=n_samples,
        on=str(item.get("on") or said),
        measure=str(item.get("measure") or "accuracy"),
    )


def _trial(item: Mapping[str, object]) -> Trial:
    scores = tuple(_real(score) for score in _list(item["folds"]))
    error = _real(item["standard_error"]) if len(scores) == 1 else None
    return Trial(_real(item["C"]), scores, _number(item.get("gamma")), error)


def _mcnemar(item: Mapping[str, object]) -> McNemar:
    return McNemar(
        _whole(item["only_first_right"]), _whole(item["only_second_right"]), _real(item["p_value"])
    )


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a record, found {value!r}")
    return value


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {value!r}")
    return value


def _real(value: object) -> float:
    number = _number(value)
    if number is None:
        raise TypeError(f"expected a number, found {value!r}")
    return number


def _whole(value: object) -> int:
    return int(_real(value))


def _count(value: object) -> int | None:
    return None if _number(value) is None else _whole(value)


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
