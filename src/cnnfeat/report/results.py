"""The answers of the SVM stage for single images: `predictions.csv`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.features import FeatureFile
from cnnfeat.result import SvmResult

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
