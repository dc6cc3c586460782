"""Which rows of a feature file machines are fitted to, which choose, and which are scored.

Where the file says what the network has seen of each row, a machine is fitted to the rows that the
weights were fitted to, C and layers are chosen on rows that they weren't fitted to, and what is
scored the network has never seen. Where that can't be had, the result says so: see `Division`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, FeatureFileError
from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part, hold_out
from cnnfeat.pixels import LARGEST
from cnnfeat.records import VALIDATION_WORDS, Groups, Labels, Parts, class_name
from cnnfeat.result import FITTED, PICKED, UNKNOWN
from cnnfeat.svm.featurerows import FeatureRows
from cnnfeat.svm.matrix import ChainedRows, Moments, RowBlocks, SubsetRows
from cnnfeat.svm.originals import find_copies
from cnnfeat.svm.trials import TrialPlan, apart, check_classes, in_turn, list_classes

ENOUGH_TO_CHOOSE = 30  # rows; on fewer, C would be chosen by chance
SET_ASIDE = 0.2  # of the training rows, for probabilities where no others are there for it
_MORE_ROWS = "extract more of the source: cnnfeat extract --limit takes its first rows alone"

_LOG = logging.getLogger("cnnfeat")
Mask: TypeAlias = NDArray[np.bool_]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of one split, some or all."""

    split: str
    rows: NDArray[np.intp]  # of the split, ascending
    n_split: int

    def features(self, file: FeatureTable, layer: str) -> RowBlocks:
        """Make these rows readable by blocks."""
        whole = FeatureRows(file, self.split, layer=layer)
        if len(self.rows) == self.n_split:
            return whole
        keep = np.zeros(self.n_split, np.bool_)
        keep[self.rows] = True
        return SubsetRows(whole, keep)


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows of one split or of several, one below the other."""

    pieces: tuple[SplitRows, ...]
    codes: NDArray[np.intp]  # (n_samples,) class of each row: a place in the division's classes
    groups: Groups | None  # (n_samples,) rows of one number stay together
    copies: Mask  # (n_samples,) augmented copies: they train, and neither choose nor are scored

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def splits(self) -> str:
        """Where they stand, in words."""
        return " and ".join(piece.split for piece in self.pieces)

    def features(self, file: FeatureTable, layer: str) -> RowBlocks:
        """Make these rows readable by blocks."""
        parts = [piece.features(file, layer) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else ChainedRows(parts)

    def in_turn(self, options: SvmOptions, kept: Mask) -> TrialPlan:
        """Plan to score some of the rows in turn, however few a class has."""
        return in_turn(
            self.codes[kept],
            options.n_folds,
            seed=options.seed,
            rows="rows",
            groups=None if self.groups is None else self.groups[kept],
            copies=self.copies[kept],
        )

    def without_copies(self) -> RowSet:
        """The rows that are no copies."""
        if not self.copies.any():
            return self
        own, pieces, done = ~self.copies, list[SplitRows](), 0
        for piece in self.pieces:
            here = own[done : done + len(piece.rows)]
            pieces.append(replace(piece, rows=piece.rows[here]))
            done += len(piece.rows)
        groups = None if self.groups is None else self.groups[own]
        return RowSet(tuple(pieces), self.codes[own], groups, self.copies[own])

    def place(self, row: int) -> tuple[str, int]:
        """Find the split of a row, and its number there."""
        for piece in self.pieces:
            if row < len(piece.rows):
                return piece.split, int(piece.rows[row])
            row -= len(piece.rows)
        raise IndexError(row)


@dataclass(frozen=True, slots=True)
class Division:
    """What each row is for, and what must be said of the score."""

    train: RowSet  # what the saved machine is fitted to in the end
    rows: str  # those of `train`, in words
    test: RowSet | None  # None: scored by cross-validation
    classes: tuple[str, ...]  # names
    labels: tuple[int, ...]  # the file's label of each class
    totals: NDArray[np.intp]  # (n_classes,) rows before the division
    how: str  # "test split", "hold-out", "validation rows" or "cross-validation"
    caveat: str = ""  # what must stand beside the score; "": it is an accuracy on new pictures
    note: str = ""  # what else there is to know
    chooses: Mask | None = None  # (n_train,) rows C and layers are chosen on, but for `folds`
    choosers: str = ""  # these rows, in words

    @property
    def scored(self) -> RowSet:
        """The rows that are scored."""
        return self.test or self.train.without_copies()

    def plan(self, options: SvmOptions, *, may_fix_C: bool) -> TrialPlan:
        """Say how settings are tried on the training rows.

        Raises
        ------
        DataError
            If a class has too few rows for it; the hint says what to do.
        """
        if self.chooses is not None and options.folds is None:
            return apart(
                self.chooses,
                self.train.codes,
                seed=options.seed,
                rows=self.choosers,
                copies=self.train.copies,
            )
        ways = ["a fixed --C"] if may_fix_C and not options.cv else []
        return self.in_turn(options, seed=options.seed, ways=ways)

    def in_turn(self, options: SvmOptions, *, seed: int, ways: Sequence[str] = ()) -> TrialPlan:
        """Plan to score all training rows, each by a machine that hasn't seen it.

        Raises
        ------
        DataError
            If a class has too few rows for it; the hint says what to do, `ways` among it.
        """
        train, folds = self.train, options.n_folds
        check_classes(
            train.codes,
            folds,
            need=f"{folds} folds need {folds} training",
            names=self.classes,
            totals=self.totals,
            groups=train.groups,
            ways=ways,
            folds=True,
        )
        return in_turn(
            train.codes,
            folds,
            seed=seed,
            rows=self.rows,
            groups=train.groups,
            copies=train.copies,
        )


@dataclass(frozen=True, slots=True)
class _Sheet:
    """All rows that have labels, one below the other, and what is known of them."""

    file: FeatureTable
    splits: tuple[str, ...]
    split: NDArray[np.intp]  # (n_samples,) place in `splits`
    row: NDArray[np.intp]
    labels: Labels
    parts: Parts | None  # None: unknown
    groups: Groups | None
    copies: Mask
    strangers: tuple[FeatureFile, ...]  # files that don't say what their network has seen

    def of(self, *names: str) -> Mask:
        """Mark the rows of splits."""
        return np.isin(self.split, [k for k, name in enumerate(self.splits) if name in names])

    def name(self, label: int) -> str:
        """Name a label."""
        return class_name(label, self.file.classes)

    def row_set(self, mask: Mask, labels: Labels) -> RowSet:
        """Make a set of the rows marked; `labels` are its classes, ascending."""
        pieces = [
            SplitRows(name, self.row[mask & (self.split == k)], self.file.n_rows(name))
            for k, name in enumerate(self.splits)
            if (mask & (self.split == k)).any()
        ]
        codes = np.searchsorted(labels, self.labels[mask])
        groups = None if self.groups is None else self.groups[mask]
        return RowSet(tuple(pieces), codes, groups, self.copies[mask])


def divide(features: FeatureFile | FeatureTable, options: SvmOptions) -> Division:
    """Decide what machines are fitted to, what chooses, and what is scored.

    Raises
    ------
    DataError
        If a split has no labels, if there is one class, one that stands in the
        training or the test rows alone, or one of too few rows.
    """
    file = FeatureTable.of(features)
    train, validation, test = _roles(file)
    splits = file.splits if options.cv else (train, *validation, *test)
    sheet = _read_sheet(file, splits, needed=train)
    pool = sheet.of(train, *validation)
    if options.cv:
        pool = sheet.of(train) if sheet.parts is None else _unfitted(sheet.parts)
    pool, kept = _leave_small_out(sheet, pool, options.min_per_class)
    if options.cv:
        division = _scored_in_turn(sheet, pool)
    elif (tested := kept & sheet.of(*test)).any():
        division = _scored_on_test(sheet, pool, tested, chooses=sheet.of(*validation))
    else:
        division = _scored_apart(sheet, pool, sheet.of(*validation), options)
    if division.how != "hold-out" and options.test_fraction != SvmOptions().test_fraction:
        _LOG.warning(
            "--test-fraction is not used: the score is that of the %s",
            division.how if options.cv else f"{division.scored.splits} rows",
        )
    if division.caveat:
        _LOG.warning("%s", division.caveat)
    if division.note:
        _LOG.info("%s", division.note)
    return division


def _roles(file: FeatureTable) -> tuple[str, list[str], list[str]]:
    """Say what the splits are for: the training's, those of validation, those of testing."""
    others = [name for name in file.splits if name not in ("test", *VALIDATION_WORDS)]
    train = "train" if "train" in file.splits else (others or file.splits)[0]
    validation = [name for name in file.splits if name in VALIDATION_WORDS and name != train]
    test = [name for name in file.splits if name == "test" and name != train]
    return train, validation, test


def _read_sheet(file: FeatureTable, splits: Sequence[str], *, needed: str) -> _Sheet:
    labels = {split: _labels(file, split, needed=split == needed) for split in splits}
    known = {split: found for split, found in labels.items() if found is not None}
    counts = [len(found) for found in known.values()]
    parts = _all_known([file.parts(split) for split in known])
    groups = _all_known([file.groups(split) for split in known])
    return _Sheet(
        file,
        tuple(known),
        np.repeat(np.arange(len(known)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        np.concatenate(list(known.values())),
        None if parts is None else np.concatenate(parts),
        None if groups is None else np.concatenate(groups),
        np.concatenate([find_copies(file, split) for split in known]),
        tuple({id(one): one for split in known for one in file.unknown(split)}.values()),
    )


def _all_known(arrays: Sequence[T | None]) -> list[T] | None:
    """Hand on what every split has; None where one lacks it."""
    known = [array for array in arrays if array is not None]
    return known if len(known) == len(arrays) else None


def _unfitted(parts: Parts) -> Mask:
    """Mark the rows that the network wasn't fitted to; all, where there are none."""
    unfitted: Mask = parts != Part.FITTED
    return unfitted if unfitted.any() else np.ones(len(parts), np.bool_)


def _leave_small_out(sheet: _Sheet, pool: Mask, min_per_class: int) -> tuple[Mask, Mask]:
    """Take classes of few rows in the pool out of it, and out of all rows."""
    everything = np.ones(len(pool), np.bool_)
    if min_per_class == 1:
        return pool, everything
    labels, codes = np.unique(sheet.labels, return_inverse=True)
    counts = np.bincount(codes[pool & ~sheet.copies], minlength=len(labels))
    small = counts < min_per_class
    if small.any():
        listed = list_classes(np.flatnonzero(small), counts, [sheet.name(int(k)) for k in labels])
        if np.count_nonzero(~small) < 2:
            raise DataError(
                f"fewer than two classes have {min_per_class} rows to train on or more: {listed}",
                hint=_MORE_ROWS
                if np.count_nonzero(counts) < 2
                else "give --min-per-class a smaller number",
            )
        _LOG.warning("left out, with fewer than %d rows: %s", min_per_class, listed)
    kept = ~small[codes]
    return pool & kept, kept


def _scored_on_test(sheet: _Sheet, pool: Mask, test: Mask, *, chooses: Mask) -> Division:
    """Score the test split."""
    _check_classes(sheet, pool, test)
    division = _division(sheet, pool, pool=pool, test=test, how="test split")
    if sheet.parts is not None:
        chooses = sheet.parts != Part.FITTED
        division = replace(division, caveat=_caveat(sheet.parts[test]))
    return _with_choice(division, sheet, pool, chooses[pool])


def _with_choice(division: Division, sheet: _Sheet, pool: Mask, chooses: Mask) -> Division:
    """Let rows that the network wasn't fitted to choose, where there are enough of them."""
    codes, n_classes = division.train.codes, len(division.classes)
    choosing = chooses & ~division.train.copies
    complete = all(len(np.unique(codes[side])) == n_classes for side in (choosing, ~chooses))
    if complete and np.count_nonzero(choosing) >= ENOUGH_TO_CHOOSE:
        picked = sheet.parts is not None and (sheet.parts[pool][chooses] == Part.VALIDATION).any()
        rows = (
            "validation rows, by which the best epoch was picked" if picked else "validation rows"
        )
        return replace(division, chooses=chooses, choosers=rows)
    if sheet.parts is not None and chooses.any() and not chooses.all():
        _LOG.info(
            "%s validation rows are too few to choose by: all training rows choose in turn",
            f"{np.count_nonzero(choosing):,}",
        )
    return division


def _scored_apart(sheet: _Sheet, pool: Mask, validation: Mask, options: SvmOptions) -> Division:
    """Without a test split, score rows that the network wasn't fitted to, or hold some out."""
    parts = sheet.parts
    apart_rows = pool & (validation if parts is None else parts != Part.FITTED)
    how = "validation rows"
    if not apart_rows.any() or apart_rows[pool].all():
        apart_rows, how = _held_out(sheet, pool, options), "hold-out"
    train = pool & ~apart_rows
    _check_classes(sheet, train, apart_rows)
    apart_rows &= ~sheet.copies
    division = _division(sheet, train, pool=pool, test=apart_rows, how=how)
    if parts is not None:
        division = replace(division, caveat=_caveat(parts[apart_rows]))
    if division.caveat != FITTED and any(map(_trained_on_source, sheet.strangers)):
        division = replace(division, caveat=UNKNOWN, note="")
    _LOG.info(
        "no test split: trained on %s rows of %s, scored on %s %s; --cv scores all of them in turn",
        f"{len(division.train):,}",
        division.train.splits,
        f"{len(division.scored):,}",
        f"held out (stratified, seed {options.seed})" if how == "hold-out" else how,
    )
    return division


def _trained_on_source(file: FeatureFile) -> bool:
    """Whether the network was trained on rows of the file's source, that these may be among."""
    said = file.provenance
    same_name = bool(said.network_source) and said.network_source == said.source
    trained_on = said.network_source_fingerprint
    return same_name or (bool(trained_on) and trained_on == said.source_fingerprint)


def _held_out(sheet: _Sheet, pool: Mask, options: SvmOptions) -> Mask:
    """Mark the rows that are held out."""
    labels = _classes(sheet, pool)
    rows = sheet.row_set(pool, labels)
    names = [sheet.name(int(k)) for k in labels]
    check_classes(
        rows.codes,
        2,
        need="holding rows out for the score needs 2",
        names=names,
        totals=np.bincount(rows.codes),
        groups=rows.groups,
    )
    held = np.zeros(len(pool), np.bool_)
    held[pool] = hold_out(
        rows.codes.astype(np.int64),
        options.test_fraction,
        seed=options.seed,
        classes=names,
        groups=rows.groups,
    )
    return held


def _scored_in_turn(sheet: _Sheet, pool: Mask) -> Division:
    """Score all rows of the pool by cross-validation."""
    division = _division(sheet, pool, pool=pool, test=None, how="cross-validation")
    if sheet.parts is None:
        return replace(division, caveat=UNKNOWN, note="")
    without = np.setdiff1d(sheet.labels, sheet.labels[pool])
    if len(without):
        _LOG.warning(
            "left out, as the network was fitted to all their rows: %s",
            _named(sheet, without),
        )
    picked = np.count_nonzero(sheet.parts[pool & ~sheet.copies] == Part.VALIDATION)
    caveat = _caveat(sheet.parts[pool])
    if caveat != FITTED and sheet.strangers:
        caveat = UNKNOWN
    note = "" if caveat or not picked else f"the best epoch was picked by {picked:,} of these rows"
    return replace(division, caveat=caveat, note=note)


def _caveat(parts: Parts) -> str:
    """Say what must stand beside a score on rows of these parts."""
    if (parts == Part.FITTED).any():
        return FITTED
    return PICKED if len(parts) and (parts == Part.VALIDATION).all() else ""


def set_aside(division: Division, *, seed: int) -> Mask:
    """Mark training rows that the saved machine isn't fitted to: probabilities are learned on them.

    They are those that C and layers are chosen on, where such stand apart; else a share of all.

    Raises
    ------
    DataError
        If a class has too few rows for it.
    """
    if division.chooses is not None:
        return division.chooses
    train = division.train
    check_classes(
        train.codes,
        2,
        need="holding rows out for probabilities needs 2",
        names=division.classes,
        totals=division.totals,
        groups=train.groups,
        ways=["no --probability"],
    )
    return hold_out(
        train.codes.astype(np.int64),
        SET_ASIDE,
        seed=seed,
        classes=division.classes,
        groups=train.groups,
    )


def check_finite(file: FeatureTable, layer: str, rows: RowSet, seen: Moments) -> None:
    """Refuse features that are NaN, infinite, or too large for sums of their squares.

    Raises
    ------
    FeatureFileError
        With the layer, the first such row and their number.
    """
    if seen.bad_rows:
        split, row = rows.place(seen.first_bad_row)
        path, name, own = file.unusable_part(split, layer, row)
        raise FeatureFileError(
            f"{path}: {split}/{name} has NaN, infinite or immense features "
            f"(beyond {LARGEST:g}) in {seen.bad_rows:,} of {len(rows):,} rows; the first is row "
            f"{own} ({file.ids(split, start=row, stop=row + 1)[0]})",
            hint="look at the network and its weights; extract again with cnnfeat extract",
        )


def _labels(file: FeatureTable, split: str, *, needed: bool) -> Labels | None:
    """Read a split's labels; None where they are none and the split can do without."""
    labels = file.labels(split)
    if labels is not None:
        return labels
    if not needed:
        _LOG.warning("split %r has no labels, and is not used", split)
        return None
    raise DataError(
        f"{file.path}: split {split!r} has no labels, and an SVM needs one for each row",
        hint=_ways_to_labels(file.provenance.source_kind),
    )


def _ways_to_labels(source_kind: str) -> str:
    """Say how features of the same images can have labels."""
    if source_kind in ("folder", "image", "manifest"):
        return (
            "cnnfeat extract of a folder for each class, or of a list.csv of pictures and their "
            "classes, has labels"
        )
    return "cnnfeat extract with --labels FILE, an array with a label for each image, has labels"


def _classes(sheet: _Sheet, mask: Mask) -> Labels:
    present, counts = np.unique(sheet.labels[mask], return_counts=True)
    if len(present) < 2:
        one = (
            f"one class: {sheet.name(int(present[0]))!r} ({counts[0]:,} rows)"
            if len(present)
            else "no class"
        )
        raise DataError(
            f"the training rows hold {one}; an SVM needs at least two",
            hint=_MORE_ROWS,
        )
    return present


def _check_classes(sheet: _Sheet, train: Mask, test: Mask) -> None:
    """Refuse scored rows of classes that nothing is known of; say which classes none are of."""
    here, there = sheet.labels[train], sheet.labels[test]
    unknown = np.setdiff1d(there, here)
    if len(unknown):
        ways = [_MORE_ROWS, "use --cv"]
        if np.count_nonzero(np.unique(here, return_counts=True)[1] >= 2) >= 2:
            ways.append("--min-per-class 2, which leaves them out")
        raise DataError(
            f"{len(unknown)} of {len(np.union1d(here, there))} classes have no training row, "
            f"but {int(np.isin(there, unknown).sum()):,} test rows: {_named(sheet, unknown)}",
            hint="; or ".join(ways),
        )
    unscored = np.setdiff1d(here, there)
    if len(unscored):
        _LOG.warning(
            "%d of %d classes have no row to be scored on, and count in no score: %s",
            len(unscored),
            len(np.unique(here)),
            _named(sheet, unscored),
        )


def _named(sheet: _Sheet, labels: Labels) -> str:
    return ", ".join(repr(sheet.name(int(k))) for k in labels[:10])


def _division(sheet: _Sheet, train: Mask, *, pool: Mask, test: Mask | None, how: str) -> Division:
    """Make the record, with a cross-validated choice and what is to be said of it."""
    labels = _classes(sheet, train)
    fitted = sheet.parts is not None and (sheet.parts[train] == Part.FITTED).any()
    totals = np.searchsorted(labels, sheet.labels[pool])
    return Division(
        train=sheet.row_set(train, labels),
        rows="rows that the network was fitted to, which is too good"
        if fitted
        else "training rows",
        test=None if test is None else sheet.row_set(test, labels),
        classes=tuple(sheet.name(int(k)) for k in labels),
        labels=tuple(int(k) for k in labels),
        totals=np.bincount(totals, minlength=len(labels)),
        how=how,
        note=UNKNOWN if sheet.strangers else "",
    )
