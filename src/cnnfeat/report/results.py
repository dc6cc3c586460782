"""Reading what the SVM stage wrote: `svm.json` and `predictions.csv`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.features import FeatureFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

SVM_FORMAT = "cnnfeat-svm"
SVM_VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerScore:
    """How well an SVM does on one layer. Accuracies are fractions, 0 to 1."""

    layer: str
    n_features: int | None
    C: float | None
    accuracy: float
    low: float  # of the 95 % interval
    high: float
    cv_accuracy: float | None
    elapsed_s: float | None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class is found."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class SvmResult:
    """What `svm.json` says."""

    path: Path
    best: LayerScore  # of the SVM that was saved
    layers: tuple[LayerScore, ...]  # all that were compared
    kernel: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]  # (n_classes, n_classes), true classes down
    per_class: tuple[ClassScore, ...]
    balanced_accuracy: float | None
    network_accuracy: float | None
    n_train: int
    n_test: int
    evaluation: str  # "test split", "hold-out" or "cross-validation"
    test_split: str | None  # the split of the feature file that was scored
    p_value: float | None  # of McNemar's test between the two best layers
    document: Mapping[str, object]  # all of it


@dataclass(frozen=True, slots=True)
class Predictions:
    """The SVM's answers for rows of a feature file."""

    split: str
    rows: NDArray[np.int64]  # (n_samples,) rows of the split
    labels: NDArray[np.int64]  # true classes
    predicted: NDArray[np.int64]
    margins: NDArray[np.float64]

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Places of the misclassified samples, the surest mistakes first."""
        places = np.flatnonzero(self.labels != self.predicted)
        return places[np.argsort(-self.margins[places], kind="stable")]


def read_svm(path: Path) -> SvmResult:
    """Read `svm.json`.

    Raises
    ------
    MissingInputError
        If there is none.
    FeatureFileError
        If it is damaged, foreign or of another version.
    """
    document = _read_document(path)
    try:
        return _parse(document, path)
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(
            f"{path}: damaged: {type(error).__name__}: {error}", hint="run cnnfeat svm --overwrite"
        ) from error


def _read_document(path: Path) -> Mapping[str, object]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"no SVM result {path}", hint="cnnfeat svm makes it") from error
    except (OSError, ValueError) as error:
        raise FeatureFileError(f"{path}: can't be read as JSON: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != SVM_FORMAT:
        raise FeatureFileError(f"{path}: not an SVM result: its format is {found!r}")
    version = document.get("format_version")
    if version != SVM_VERSION:
        raise FeatureFileError(
            f"{path}: format version {version!r}; this cnnfeat reads {SVM_VERSION}"
        )
    return cast("Mapping[str, object]", document)


def _parse(document: Mapping[str, object], path: Path) -> SvmResult:
    classes = tuple(str(name) for name in _list(document["classes"]))
    confusion = np.asarray(document["confusion"], dtype=np.int64)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes, but a confusion matrix of {confusion.shape}")
    best = _layer_score(document)
    compared = tuple(_layer_score(_mapping(item)) for item in _list(document.get("layers") or []))
    return SvmResult(
        path=path,
        best=best,
        layers=compared or (best,),
        kernel=str(document["kernel"]),
        classes=classes,
        confusion=confusion,
        per_class=tuple(
            _class_score(_mapping(item)) for item in _list(document.get("per_class") or [])
        ),
        balanced_accuracy=_number(document.get("balanced_accuracy")),
        network_accuracy=_number(document.get("network_test_accuracy")),
        n_train=int(cast("int", document["n_train"])),
        n_test=int(cast("int", document["n_test"])),
        evaluation=str(document.get("evaluation") or "test split"),
        test_split=cast("str | None", document.get("test_split")),
        p_value=_number(_mapping(document.get("mcnemar") or {}).get("p_value")),
        document=document,
    )


def _layer_score(item: Mapping[str, object]) -> LayerScore:
    low, high = (float(cast("float", end)) for end in _list(item["accuracy_interval"]))
    return LayerScore(
        layer=str(item["layer"]),
        n_features=cast("int | None", item.get("n_features")),
        C=_number(item.get("C")),
        accuracy=float(cast("float", item["accuracy"])),
        low=low,
        high=high,
        cv_accuracy=_number(item.get("cv_accuracy")),
        elapsed_s=_number(item.get("elapsed_s")),
    )


def _class_score(item: Mapping[str, object]) -> ClassScore:
    precision, recall, f1 = (_number(item[key]) or 0.0 for key in ("precision", "recall", "f1"))
    return ClassScore(str(item["class"]), precision, recall, f1, int(cast("int", item["support"])))


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a record, found {value!r}")
    return value


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {value!r}")
    return value


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def read_predictions(path: Path, *, file: FeatureFile, result: SvmResult) -> Predictions:
    """Read the `predictions.csv` of a result and find each line's row in the feature file.

    Raises
    ------
    MissingInputError
        If there is none.
    FeatureFileError
        If it is damaged, or not of this feature file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            records = list(csv.DictReader(lines))
    except FileNotFoundError as error:
        raise MissingInputError(f"no predictions {path}", hint="cnnfeat svm makes them") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FeatureFileError(f"{path}: can't be read as CSV: {error}") from error
    numbers = {name: number for number, name in enumerate(result.classes)}
    try:
        ids = [record["id"] for record in records]
        split, rows = _find_rows(ids, file, path, first=result.test_split or "test")
        return Predictions(
            split,
            rows,
            np.array([numbers[record["label"]] for record in records], np.int64),
            np.array([numbers[record["predicted"]] for record in records], np.int64),
            np.array([float(record["margin"]) for record in records], np.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(
            f"{path}: damaged: {type(error).__name__}: {error}", hint="run cnnfeat svm --overwrite"
        ) from error


def _find_rows(
    ids: Sequence[str], file: FeatureFile, path: Path, *, first: str
) -> tuple[str, NDArray[np.int64]]:
    """Find the split that has all of these ids, and their rows in it."""
    for split in sorted(file.splits, key=lambda name: name != first):
        place = {name: row for row, name in enumerate(file.ids(split))}
        if all(name in place for name in ids):
            return split, np.array([place[name] for name in ids], np.int64)
    raise FeatureFileError(
        f"{path} has predictions for images that {file.path} does not have",
        hint="run cnnfeat svm --overwrite on this feature file",
    )
