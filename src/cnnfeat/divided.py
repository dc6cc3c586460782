"""A source with some of its rows: divided for a training, or without its rarest classes.

No row is copied or read twice: a split says which rows of the undivided source are its own, and
the source reads those. Names of rows stay what they were.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.parts import (
    TEST,
    TRAIN,
    VALIDATION,
    DivisionRule,
    Part,
    hold_out,
    split_trained_on,
)
from cnnfeat.records import (
    Batch,
    Fingerprint,
    Groups,
    ImageTarget,
    Json,
    Labels,
    OnError,
    Parts,
    RowNumbers,
    Source,
    SplitInfo,
    class_name,
    shown_source,
)

T = TypeVar("T", bound=np.generic)
DIGEST = "parts_sha256"  # beside a rule: what came of it
_ORDER = (TRAIN, VALIDATION, TEST)
_LISTED = 10  # classes in a message

_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Pick:
    """Which rows of another source's split make a split."""

    split: str  # of the other source
    rows: RowNumbers | None = None  # ascending; None: all of them
    parts: Parts | None = None  # of each row; None: unknown


class PickedSource:
    """Rows of another source, under the same names.

    Parameters
    ----------
    source : Source
        Stays open as long as this one; leaving this one's context closes it.
    picks : mapping of str to Pick
        By the name of the split that they make.
    division : mapping, optional
        The rule that made the picks, and the digest of what came of it.
    """

    def __init__(
        self,
        source: Source,
        picks: Mapping[str, Pick],
        *,
        division: Mapping[str, Json] | None = None,
    ) -> None:
        self.name, self.kind, self.labels_from = source.name, source.kind, source.labels_from
        self.options, self.classes = source.options, source.classes
        self.division: Mapping[str, Json] | None = division or source.division
        self._source, self._picks = source, picks
        self.splits: Mapping[str, SplitInfo] = {
            name: _described(source, name, pick) for name, pick in picks.items()
        }

    def fingerprint(self) -> Fingerprint:
        """See `records.Source`: that of the undivided one."""
        return self._source.fingerprint()

    def state(self) -> bytes:
        """See `records.Source`."""
        return self._source.state()

    def changed_since(self, state: bytes) -> str | None:
        """See `records.Source`."""
        return self._source.changed_since(state)

    def labels(self, split: str) -> Labels | None:
        """See `records.Source`."""
        pick = self._find(split)
        return _picked(self._source.labels(pick.split), pick)

    def parts(self, split: str) -> Parts | None:
        """See `records.Source`."""
        pick = self._find(split)
        return _picked(self._source.parts(pick.split), pick) if pick.parts is None else pick.parts

    def groups(self, split: str) -> Groups | None:
        """See `records.Source`."""
        pick = self._find(split)
        return _picked(self._source.groups(pick.split), pick)

    def channels(self, split: str) -> int:
        """See `records.Source`."""
        return self._source.channels(self._find(split).split)

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        rows: RowNumbers | None = None,
        target: ImageTarget | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Batch]:
        """See `records.Source`."""
        pick = self._find(split)
        chosen = rows if pick.rows is None else pick.rows if rows is None else pick.rows[rows]
        return self._source.batches(
            pick.split,
            batch_size=batch_size,
            start=start,
            stop=stop,
            rows=chosen,
            target=target,
            on_error=on_error,
        )

    def __repr__(self) -> str:
        return shown_source(self)

    def __enter__(self) -> PickedSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._source.__exit__(*exc_info)

    def _find(self, split: str) -> Pick:
        if split not in self._picks:
            raise UsageError(
                f"no split {split!r}; this source has: {', '.join(self._picks)}",
                hint=near_names(split, self._picks),
            )
        return self._picks[split]


def _picked(values: NDArray[T] | None, pick: Pick) -> NDArray[T] | None:
    return values if values is None or pick.rows is None else values[pick.rows]


def _described(source: Source, name: str, pick: Pick) -> SplitInfo:
    """Describe a split by its first image that can be read."""
    info = replace(source.splits[pick.split], name=name)
    if pick.rows is None:
        return info
    info = replace(info, n_samples=len(pick.rows))
    for place in range(len(pick.rows)):
        for batch in source.batches(
            pick.split,
            batch_size=1,
            start=place,
            stop=place + 1,
            rows=pick.rows,
            on_error="skip",
        ):
            if len(batch):
                height, width, channels = batch.images.shape[1:]
                return replace(info, image_shape=(height, width, channels))
    return info  # reading says what is wrong with them


def training_split(source: Source) -> str:
    """Name the split that a network is trained on.

    Raises
    ------
    DataError
        If all there is was set aside for testing or validating.
    """
    found = split_trained_on(source.splits)
    if found is None:
        raise DataError(
            f"{source.name} has nothing to train on: all it has is {' and '.join(source.splits)}",
            hint="name a source with a split called train, or one without splits",
        )
    return found


def rule_for(source: Source, *, test_fraction: float, validation: float, seed: int) -> DivisionRule:
    """Say how a source is divided for a training: its own splits are kept as they are.

    A split without labels can neither test nor validate. With a `validation` of 0 none is held
    back, and a split of that name is left alone.
    """
    group_by = source.options.get("group_by")
    labelled = {name for name, info in source.splits.items() if info.has_labels}
    return DivisionRule(
        test_fraction=None if TEST in labelled else test_fraction,
        validation=None if VALIDATION in labelled and validation else validation,
        seed=seed,
        group_by=None if group_by is None else str(group_by),
        min_per_class=int(str(source.options.get("min_per_class", 1))),
    )


def divide_source(source: Source, rule: DivisionRule) -> PickedSource:
    """Divide a source for a training; the same source and rule give the same rows.

    Rows to test on are taken out first, where the source has no such split: `test`. Of the others,
    which are `train`, some validate, unless the source has a split for that. A split that is called
    so but has no labels gets another name.

    Parameters
    ----------
    source : Source
        With labels.
    rule : DivisionRule
        Opened by the same `group_by` and `min_per_class`.

    Raises
    ------
    DataError
        If there is nothing to train on, no labels, or a class too small to be divided.
    """
    base = training_split(source)
    labels = source.labels(base)
    if labels is None:
        raise DataError(
            f"{source.name} has no labels, and training needs them",
            hint="put the images into a folder a class, or give labels in a manifest",
        )
    groups = source.groups(base)
    _check_sizes(source, rule, labels=labels, groups=groups)
    picks = {
        _name_beside(name, info, source): Pick(name, parts=_parts_of(name, info, rule))
        for name, info in source.splits.items()
        if name != base
    }
    rows = np.arange(len(labels))
    if rule.test_fraction is not None:
        keep = 2 if rule.validation else 1
        held = _held(source, rule, rule.test_fraction, labels=labels, groups=groups, keep=keep)
        rows, tested = np.flatnonzero(~held), np.flatnonzero(held)
        picks[TEST] = Pick(base, tested, np.full(len(tested), Part.UNSEEN, np.uint8))
    parts = np.full(len(rows), Part.FITTED, np.uint8)
    if rule.validation:
        inside = None if groups is None else groups[rows]
        held = _held(source, rule, rule.validation, labels=labels[rows], groups=inside)
        parts[held] = Part.VALIDATION
    divided = len(rows) < len(labels)
    picks[TRAIN if divided else base] = Pick(base, rows if divided else None, parts)
    picks = {name: picks[name] for name in sorted(picks, key=_place)}
    return PickedSource(source, picks, division={**rule.to_json(), DIGEST: _digest(picks)})


def _place(split: str) -> int:
    return _ORDER.index(split) if split in _ORDER else len(_ORDER)


def _name_beside(split: str, info: SplitInfo, source: Source) -> str:
    """Name a split of its own that stands beside what is trained on."""
    if info.has_labels or split not in (VALIDATION, TEST):
        return split
    _log.warning(
        "%s: its split %s has no labels, and is called unlabelled-%s here",
        source.name,
        split,
        split,
    )
    return f"unlabelled-{split}"


def _parts_of(split: str, info: SplitInfo, rule: DivisionRule) -> Parts:
    validates = split == VALIDATION and info.has_labels and rule.validation is None
    return np.full(info.n_samples, Part.VALIDATION if validates else Part.UNSEEN, np.uint8)


def _held(
    source: Source,
    rule: DivisionRule,
    fraction: float,
    *,
    labels: Labels,
    groups: Groups | None,
    keep: int = 1,
) -> NDArray[np.bool_]:
    try:
        return hold_out(
            labels, fraction, seed=rule.seed, classes=source.classes, groups=groups, keep=keep
        )
    except DataError as error:
        raise DataError(f"{source.name}: {error.message}", hint=_GROUPS_HINT) from error


_GROUPS_HINT = "group by what divides the classes further, or leave --group-by out"


def _check_sizes(
    source: Source, rule: DivisionRule, *, labels: Labels, groups: Groups | None
) -> None:
    """Refuse classes that are too small to be on every side, by name and with their sizes."""
    sides = ["one to train on"]
    sides += ["one to pick the best epoch by"] if rule.validation else []
    sides += ["one to test on"] if rule.test_fraction is not None else []
    sizes = {int(label): labels == label for label in np.unique(labels)}
    rare = {label: int(rows.sum()) for label, rows in sizes.items() if rows.sum() < len(sides)}
    wanted = f"{', '.join(sides[:-1])} and {sides[-1]}" if sides[1:] else sides[0]
    if rare:
        raise DataError(
            f"each class needs {len(sides)} pictures or more, {wanted}; {source.name} has "
            + _listed(source.classes, rare),
            hint=f"--min-per-class {len(sides)} leaves smaller classes out",
        )
    if groups is None:
        return
    few = {
        label: n
        for label, rows in sizes.items()
        if (n := len(np.unique(groups[rows]))) < len(sides)
    }
    if few:
        label, n = next(iter(few.items()))
        name = class_name(label, source.classes)
        raise DataError(
            f"each class needs {len(sides)} groups or more, {wanted}; all "
            f"{int(sizes[label].sum()):,} pictures of class {name!r} in "
            f"{source.name} are in {n} by --group-by {rule.group_by}",
            hint=_GROUPS_HINT,
        )


def _listed(classes: Sequence[str], counts: Mapping[int, int]) -> str:
    """Name classes with their sizes: "'bus': 1, 'cat': 2 and 3 more"."""
    words = [f"{class_name(label, classes)!r}: {n}" for label, n in list(counts.items())[:_LISTED]]
    more = len(counts) - len(words)
    return ", ".join(words) + (f" and {more:,} more" if more else "")


def _digest(picks: Mapping[str, Pick]) -> str:
    """Digest which rows are in which split and part, hexadecimal SHA-256."""
    total = hashlib.sha256()
    for name, pick in picks.items():
        total.update(f"{name}\0{pick.split}\0".encode())
        for numbers in (pick.rows, pick.parts):
            found = np.array([-1] if numbers is None else numbers, "<i8").tobytes()
            total.update(len(found).to_bytes(8, "little") + found)
    return total.hexdigest()


def redivide(source: Source, division: Mapping[str, object]) -> PickedSource | None:
    """Divide a source as it was before, or not at all: None where that comes to other rows.

    Parameters
    ----------
    source : Source
        With the same fingerprint as then.
    division : mapping
        What was kept: a rule, and the digest of what came of it.
    """
    try:
        divided = divide_source(source, DivisionRule.from_json(division))
    except ValueError as error:
        _log.debug("%s can't be divided as before: %s", source.name, error)
        return None
    return divided if (divided.division or {}).get(DIGEST) == division.get(DIGEST) else None


def leave_out_rare(source: Source, min_per_class: int) -> Source:
    """Leave out the rows of classes that have fewer rows to train on; say which.

    Raises
    ------
    UsageError
        If the source has no labels.
    DataError
        If nothing is left.
    """
    if min_per_class <= 1:
        return source
    base = TRAIN if TRAIN in source.splits else next(iter(source.splits))
    labels = {name: source.labels(name) for name in source.splits}
    counted = labels[base]
    if counted is None:
        raise UsageError(f"--min-per-class {min_per_class}: {source.name} has no labels")
    counts = np.bincount(counted, minlength=len(source.classes))
    rare = {label: int(n) for label, n in enumerate(counts) if 0 < n < min_per_class}
    present = np.unique(np.concatenate([found for found in labels.values() if found is not None]))
    gone = [label for label in present if counts[label] < min_per_class]
    if not gone:
        return source
    if len(gone) == len(present):
        raise DataError(
            f"every class of {source.name} has fewer than {min_per_class} pictures: "
            + _listed(source.classes, rare),
            hint="give --min-per-class a smaller number",
        )
    _log.info(
        "left out: classes of fewer than %d pictures in %r: %s",
        min_per_class,
        base,
        _listed(source.classes, {int(label): int(counts[label]) for label in gone}),
    )
    picks = {}
    for name, found in labels.items():
        rows = None if found is None else np.flatnonzero(~np.isin(found, gone))
        if rows is None or len(rows):
            picks[name] = Pick(name, rows)
    return PickedSource(source, picks)
