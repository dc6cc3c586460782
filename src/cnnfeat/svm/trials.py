"""Which training rows settings are tried on, what a trial is worth, and which setting is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnfeat.errors import DataError
from cnnfeat.result import CostSearch, Trial

APART = -1  # no machine leaves the row out: it is trained on by all, and scored by none
_MORE = "add pictures of these classes"
_MORE_GROUPS = (
    "add pictures of these classes that are of other groups; "
    "with a network from elsewhere: cnnfeat extract without --group-by"
)
UNEVEN = 1.5  # times as many rows as the rarest class has, from which the commonest outweighs it

Measure = Literal["accuracy", "balanced accuracy"]


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """Which machine leaves out which of the training rows, and is scored on them."""

    fold: NDArray[np.intp]  # (n_samples,) number of the machine; APART: none
    n_folds: int  # 1: rows that stand apart, scored once
    seed: int
    rows: str  # what is scored, in words
    measure: Measure = "accuracy"
    copies: NDArray[np.bool_] | None = None  # (n_samples,) rows that are left out, and not scored

    @property
    def scored(self) -> NDArray[np.intp]:
        """The rows that a machine leaves out and is scored on, ascending."""
        return np.flatnonzero((self.fold != APART) & self._counts)

    @property
    def _counts(self) -> NDArray[np.bool_]:
        return np.ones(len(self.fold), np.bool_) if self.copies is None else ~self.copies

    @property
    def on(self) -> str:
        """Where the scores come from, in words."""
        words = f"{len(self.scored):,} {self.rows}"
        return words if self.n_folds == 1 else f"{self.n_folds}-fold cross-validation on {words}"

    def of(self, rows: NDArray[np.intp]) -> TrialPlan:
        """The same for some of the rows."""
        copies = None if self.copies is None else self.copies[rows]
        return replace(self, fold=self.fold[rows], copies=copies)

    def sample(self, codes: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
        """Pick at most about `limit` rows, ascending; rows that stand apart go before others."""
        if self.n_folds > 1 or len(codes) <= limit:
            return subsample(codes, limit, seed=self.seed, least=2 * self.n_folds)
        apart, others = self.scored, np.flatnonzero(self.fold == APART)
        apart = apart[subsample(codes[apart], max(1, limit // 2), seed=self.seed)]
        room = max(1, limit - len(apart))
        others = others[subsample(codes[others], room, seed=self.seed)]
        return np.sort(np.concatenate([apart, others]))

    def trial(
        self,
        codes: NDArray[np.intp],
        predicted: NDArray[np.intp],
        *,
        C: float,
        gamma: float | None = None,
    ) -> Trial:
        """Score what was said of the rows left out.

        Parameters
        ----------
        codes, predicted : ndarray of shape (n_samples,)
            Classes of all rows; of those that none leaves out, `predicted` isn't looked at.
        C, gamma : float
            The setting.
        """
        sides = [(self.fold == k) & self._counts for k in range(self.n_folds)]
        found = [_worth(codes[side], predicted[side], self.measure) for side in sides if side.any()]
        error = found[0][1] if len(found) == 1 else None
        return Trial(C, tuple(score for score, _ in found), gamma, error)

    def choose(self, trials: Sequence[Trial], *, searched: str = "") -> CostSearch:
        """Apply the one-standard-error rule; `searched` says why these were tried.

        L. Breiman, J. Friedman, R. Olshen and C. Stone, "Classification and Regression Trees"
        (1984).
        """
        best = max(trials, key=lambda trial: trial.mean)
        enough = [trial for trial in trials if near(trial, best)]
        chosen = min(enough, key=lambda trial: (trial.C, -trial.mean))
        n_samples = len(self.fold)
        return CostSearch(
            tuple(trials),
            best,
            chosen,
            self.n_folds,
            self.seed,
            n_samples,
            self.on,
            self.measure,
            searched,
        )


def near(trial: Trial, best: Trial) -> bool:
    """Whether a trial is within one standard error of the best."""
    return trial.mean >= best.mean - best.error


@dataclass(frozen=True, slots=True)
class Tried:
    """What trials found out, and what the machines of the chosen setting said."""

    selection: CostSearch
    rows: NDArray[np.intp]  # of the training rows, those that a machine left out, ascending
    predicted: NDArray[np.intp]  # their classes, by that machine
    weights: NDArray[np.float64] | None = None  # to start the final fit from


def _worth(
    codes: NDArray[np.intp], predicted: NDArray[np.intp], measure: Measure
) -> tuple[float, float]:
    """Score some rows; also the score's standard error, that of a binomial share."""
    right = codes == predicted
    if measure == "accuracy":
        share = right.mean()
        return float(share), float(np.sqrt(share * (1 - share) / len(right)))
    counts = np.bincount(codes)
    recall = np.bincount(codes, weights=right)[counts > 0] / counts[counts > 0]
    variance = (recall * (1 - recall) / counts[counts > 0]).sum() / len(recall) ** 2
    return float(recall.mean()), float(np.sqrt(variance))


def measure_for(codes: NDArray[np.intp]) -> Measure:
    """Say what settings are compared by: the classes' mean recall where they are uneven."""
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    return "balanced accuracy" if counts.max() > UNEVEN * counts.min() else "accuracy"


def apart(
    chooses: NDArray[np.bool_],
    codes: NDArray[np.intp],
    *,
    seed: int,
    rows: str,
    copies: NDArray[np.bool_] | None = None,
) -> TrialPlan:
    """Plan to score some rows once, by a machine fitted to all others."""
    fold = np.where(chooses, 0, APART).astype(np.intp)
    return TrialPlan(fold, 1, seed, rows, measure_for(codes), copies)


def in_turn(
    codes: NDArray[np.intp],
    n_folds: int,
    *,
    seed: int,
    rows: str,
    groups: NDArray[np.int64] | None = None,
    copies: NDArray[np.bool_] | None = None,
) -> TrialPlan:
    """Plan to score every row but copies, by a machine fitted to the rows of other folds."""
    fold = deal(codes, n_folds, seed=seed, groups=groups)
    return TrialPlan(fold, n_folds, seed, rows, measure_for(codes), copies)


def deal(
    codes: NDArray[np.intp],
    n_folds: int,
    *,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.intp]:
    """Deal the rows of each class out to folds, shuffled; whole groups, where there are groups.

    Returns
    -------
    ndarray of shape (n_samples,)
        The fold of each row.
    """
    random = np.random.default_rng(seed)
    if groups is not None:
        return _deal_groups(codes, n_folds, random, groups)
    folds = np.empty(len(codes), np.intp)
    dealt = 0
    for k in np.unique(codes):
        rows = random.permutation(np.flatnonzero(codes == k))
        folds[rows] = (dealt + np.arange(len(rows))) % n_folds
        dealt += len(rows)
    return folds


def _deal_groups(
    codes: NDArray[np.intp],
    n_folds: int,
    random: np.random.Generator,
    groups: NDArray[np.int64],
) -> NDArray[np.intp]:
    """Give each group, large ones first, to the fold that has least of its classes."""
    counts, of_row = _by_group(codes, groups, int(codes.max(initial=0)) + 1)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = random.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    given, n_rows = np.zeros((n_folds, counts.shape[1])), np.zeros(n_folds)
    fold_of_group = np.empty(len(counts), np.intp)
    for group in order:
        load = given @ shares[group]
        fold = int(np.lexsort((n_rows, load))[0])
        fold_of_group[group] = fold
        given[fold] += shares[group]
        n_rows[fold] += counts[group].sum()
    return fold_of_group[of_row]


def _by_group(
    codes: NDArray[np.intp], groups: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Count each group's rows by class; also the place of each row's group."""
    names, of_row = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), n_classes), np.int64)
    np.add.at(counts, (of_row, codes), 1)
    return counts, of_row


def check_classes(
    codes: NDArray[np.intp],
    least: int,
    *,
    need: str,
    names: Sequence[str],
    totals: NDArray[np.integer],
    groups: NDArray[np.int64] | None = None,
    ways: Sequence[str] = (),
    folds: bool = False,
) -> None:
    """Refuse classes of too few rows, or that are in too few groups.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        The class of each row: a place in `names`.
    least : int
        Rows, or groups, that each class must have.
    need : str
        What needs them, such as "5 folds need 5".
    names : sequence of str
        The classes, for messages.
    totals : ndarray of shape (n_classes,)
        The rows of each that --min-per-class looks at.
    groups : ndarray of shape (n_samples,), optional
        Which rows stay together.
    ways : sequence of str
        What the user may do, besides leaving classes out.
    folds : bool
        Whether fewer folds are a way, too.

    Raises
    ------
    DataError
        Naming the classes that have fewer, with the ways on.
    """
    rows = np.bincount(codes, minlength=len(names))
    units = rows if groups is None else (_by_group(codes, groups, len(names))[0] > 0).sum(axis=0)
    few = np.flatnonzero((units < least) & (rows > 0))
    if not len(few):
        return
    fewest, enough = int(units[few].min()), int(totals[few].max()) + 1
    possible = [f"--folds {fewest}"] if folds and fewest > 1 else []
    possible += ways
    if np.count_nonzero(totals >= enough) > 1:
        possible.append(f"--min-per-class {enough}, which leaves out classes of fewer rows")
    raise DataError(
        f"{need} {'rows' if groups is None else 'groups'} of each class; "
        f"{list_classes(few, units, names)}",
        hint=" or ".join(possible) or (_MORE if groups is None else _MORE_GROUPS),
    )


def list_classes(codes: NDArray[np.intp], counts: NDArray[np.integer], names: Sequence[str]) -> str:
    """Say how many some classes have, the first five by name."""
    listed = [f"class {names[int(k)]!r} has {int(counts[k]):,}" for k in codes[:5]]
    more = f" and {len(codes) - 5:,} more classes are alike" if len(codes) > 5 else ""
    return ", ".join(listed) + more


def subsample(
    codes: NDArray[np.intp], limit: int, *, seed: int, least: int = 2
) -> NDArray[np.intp]:
    """Pick at most about `limit` rows, the same share of each class but `least`, ascending."""
    if len(codes) <= limit:
        return np.arange(len(codes))
    random = np.random.default_rng(seed)
    share = limit / len(codes)
    picked = []
    for k in np.unique(codes):
        rows = np.flatnonzero(codes == k)
        count = max(min(len(rows), least), round(share * len(rows)))
        picked.append(random.permutation(rows)[:count])
    return np.sort(np.concatenate(picked))
