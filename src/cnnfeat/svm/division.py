"""What the SVM stage reads from a feature file: the rows to train on, and those to score on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, FeatureFileError
from cnnfeat.features import FeatureFile
from cnnfeat.svm.evaluation import stratified_folds
from cnnfeat.svm.matrix import FEW, Floats, Indices, Moments, RowBlocks, SubsetRows

HOLD_OUT_FOLDS = 5  # one of them is held out where the source has no test split

_LOG = logging.getLogger("cnnfeat")


class FeatureRows:
    """Rows of one layer in a feature file, flattened in C order (the last axis runs fastest).

    Parameters
    ----------
    features : FeatureFile
    split, layer : str
    rows_per_block : int, optional
        By default the blocks of the file.
    """

    dtype: np.dtype[np.floating] = np.dtype(np.float32)

    def __init__(
        self, features: FeatureFile, split: str, *, layer: str, rows_per_block: int | None = None
    ) -> None:
        self._features, self._split, self._layer = features, split, layer
        self._step = rows_per_block
        self.n_samples = features.n_rows(split)
        self.n_features = int(np.prod(features.layer(split, layer).shape[1:], dtype=np.int64))

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Read the file once, in its own order."""
        for start, block in self._features.blocks(self._split, self._layer, rows=self._step):
            yield start, self._flat(block)

    def take(self, rows: Indices) -> Floats:
        """Collect some rows: few of them one by one, many in one sequential read."""
        if len(rows) <= FEW * self.n_samples:
            return self._flat(self._features.take(self._split, self._layer, rows))
        taken = np.empty((len(rows), self.n_features), self.dtype)
        done = 0
        for start, block in self.blocks():
            stop = done + int(np.searchsorted(rows[done:], start + len(block)))
            taken[done:stop] = block[rows[done:stop] - start]
            done = stop
        return taken

    def _flat(self, block: NDArray[np.generic]) -> Floats:
        return block.reshape(len(block), -1).astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of one split, some or all."""

    split: str
    rows: NDArray[np.intp]  # of the split, ascending
    n_split: int
    codes: NDArray[np.intp]  # class of each row: a place in the division's classes

    def features(self, file: FeatureFile, layer: str) -> RowBlocks:
        """Make these rows readable by blocks."""
        whole = FeatureRows(file, self.split, layer=layer)
        if len(self.rows) == self.n_split:
            return whole
        keep = np.zeros(self.n_split, np.bool_)
        keep[self.rows] = True
        return SubsetRows(whole, keep)


@dataclass(frozen=True, slots=True)
class Division:
    """The rows to train on, those to score on, and the classes both hold."""

    train: SplitRows
    test: SplitRows | None  # None: scored by cross-validation
    classes: tuple[str, ...]  # names
    labels: tuple[int, ...]  # the file's label of each class
    how: str  # "test split", "hold-out" or "cross-validation"


def divide(file: FeatureFile, *, cross_validate: bool, seed: int) -> Division:
    """Decide what is trained and scored on.

    Raises
    ------
    DataError
        If a split has no labels or no rows, if there is one class, or one that stands in the
        training or the test rows alone.
    """
    train_split = "train" if "train" in file.splits else file.splits[0]
    labels = _labels(file, train_split)
    names = file.classes
    if "test" in file.splits and train_split != "test" and not cross_validate:
        test_labels = _labels(file, "test")
        present = _classes(labels, names)
        _check_same_classes(labels, test_labels, names)
        return _division(
            file,
            present,
            train=(train_split, np.arange(len(labels)), labels),
            test=("test", np.arange(len(test_labels)), test_labels),
            how="test split",
        )
    present = _classes(labels, names)
    everything = np.arange(len(labels))
    if cross_validate:
        train = (train_split, everything, labels)
        return _division(file, present, train=train, test=None, how="cross-validation")
    folds = stratified_folds(np.searchsorted(present, labels), HOLD_OUT_FOLDS, seed=seed)
    held, kept = np.flatnonzero(folds == 0), np.flatnonzero(folds != 0)
    _LOG.info(
        "no test split: trained on %s rows of %r, scored on %s held out (stratified, seed %d); "
        "--cv scores on all of them in turn",
        f"{len(kept):,}",
        train_split,
        f"{len(held):,}",
        seed,
    )
    return _division(
        file,
        present,
        train=(train_split, kept, labels[kept]),
        test=(train_split, held, labels[held]),
        how="hold-out",
    )


def check_finite(file: FeatureFile, layer: str, part: SplitRows, seen: Moments) -> None:
    """Refuse NaN and infinite features.

    Raises
    ------
    FeatureFileError
        With the layer, the first such row and their number.
    """
    if seen.bad_rows:
        row = int(part.rows[seen.first_bad_row])
        raise FeatureFileError(
            f"{file.path}: {part.split}/{layer} has NaN or infinite features in "
            f"{seen.bad_rows:,} of {len(part.rows):,} rows; the first is row {row} "
            f"({file.ids(part.split, start=row, stop=row + 1)[0]})",
            hint="look at the network and its weights; extract again with cnnfeat extract",
        )


def class_name(label: int, names: Sequence[str]) -> str:
    """Name a label; the number itself where the file has no names."""
    return names[label] if 0 <= label < len(names) else str(label)


def _labels(file: FeatureFile, split: str) -> NDArray[np.int64]:
    labels = file.labels(split)
    if labels is None:
        raise DataError(
            f"{file.path}: split {split!r} has no labels, and an SVM needs one for each row",
            hint="extract from a source with labels: a folder for each class, or --labels FILE",
        )
    if not len(labels):
        raise DataError(f"{file.path}: split {split!r} has no rows")
    return labels


def _classes(labels: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
    present, counts = np.unique(labels, return_counts=True)
    if len(present) < 2:
        raise DataError(
            f"the training rows hold one class: {class_name(int(present[0]), names)!r} "
            f"({counts[0]:,} rows); an SVM needs at least two",
            hint="extract more of the source (--limit takes the first rows)",
        )
    return present


def _check_same_classes(
    train: NDArray[np.int64], test: NDArray[np.int64], names: Sequence[str]
) -> None:
    for here, there, words in ((train, test, "training"), (test, train, "test")):
        missing = np.setdiff1d(there, here)
        if len(missing):
            rows = int(np.isin(there, missing).sum())
            listed = ", ".join(repr(class_name(int(k), names)) for k in missing[:10])
            other = "test" if words == "training" else "training"
            raise DataError(
                f"{len(missing)} of {len(np.union1d(here, there))} classes have no {words} row, "
                f"but {rows:,} {other} rows: {listed}",
                hint="extract more of the source (--limit takes the first rows), or use --cv",
            )


def _division(
    file: FeatureFile,
    present: NDArray[np.int64],
    *,
    train: tuple[str, NDArray[np.intp], NDArray[np.int64]],
    test: tuple[str, NDArray[np.intp], NDArray[np.int64]] | None,
    how: str,
) -> Division:
    def part(given: tuple[str, NDArray[np.intp], NDArray[np.int64]]) -> SplitRows:
        split, rows, labels = given
        return SplitRows(split, rows, file.n_rows(split), np.searchsorted(present, labels))

    return Division(
        train=part(train),
        test=None if test is None else part(test),
        classes=tuple(class_name(int(k), file.classes) for k in present),
        labels=tuple(int(k) for k in present),
        how=how,
    )
