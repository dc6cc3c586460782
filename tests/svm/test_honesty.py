"""A score never says more than is known: on random labels it says chance, or has words beside it.

Features are made as a network makes them that has learned its pictures by heart: of rows that its
weights were fitted to they tell the label, of all others they are noise.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.errors import DataError
from cnnfeat.features import FeatureFile
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part
from cnnfeat.result import FITTED, PICKED, UNKNOWN
from cnnfeat.svm import svm_stage
from cnnfeat.svm.division import divide

SEED = 4
GRID = (0.001, 0.1)


class Memory:
    """Rows of random labels, two classes, and what a network remembers of them."""

    def __init__(self, n_rows: dict[str, int]) -> None:
        random = np.random.default_rng(SEED)
        self.labels = {split: random.integers(0, 2, n) for split, n in n_rows.items()}
        self.parts = {split: np.zeros(n, np.uint8) for split, n in n_rows.items()}
        self.noise = {split: random.standard_normal((n, 16)) for split, n in n_rows.items()}

    def saw(self, split: str, rows: slice, part: Part) -> Memory:
        self.parts[split][rows] = part
        return self

    def layer(self, strength: float) -> dict[str, np.ndarray]:
        """Add the label to what the network was fitted to."""
        found = {}
        for split, labels in self.labels.items():
            fitted = self.parts[split] == Part.FITTED
            X = self.noise[split].copy()
            X[fitted, :4] += strength * (2 * labels[fitted, None] - 1)
            found[split] = X.astype(np.float32)
        return found

    def write(self, make_file, *, known: bool = True, layers: tuple[float, ...] = (3.0,)) -> Path:
        made = {f"layer{k}": self.layer(strength) for k, strength in enumerate(layers)}
        splits = {s: {name: layer[s] for name, layer in made.items()} for s in self.labels}
        return make_file(
            splits, self.labels, classes=("cat", "dog"), parts=self.parts if known else None
        )


def divided() -> Memory:
    """300 rows as `train` and `run` divide them: 216 fitted, 24 validation, 60 unseen."""
    memory = Memory({"train": 240, "test": 60})
    memory.saw("train", slice(None), Part.FITTED)
    return memory.saw("train", slice(0, 240, 10), Part.VALIDATION)


def holds_chance(result) -> bool:
    low, high = result.best.accuracy_interval
    return low <= 0.5 <= high


def test_parts_make_random_labels_chance(make_file, tmp_path):
    result = svm_stage(divided().write(make_file), tmp_path / "out", options=SvmOptions())
    assert result.evaluation == "test split"
    assert (result.n_train, result.n_test) == (240, 60)
    assert holds_chance(result)
    assert (result.caveat, result.note, result.score_name) == ("", "", "accuracy")
    # 24 rows are too few to choose by, and the others were seen: the choice says so.
    assert result.selection.on == (
        "5-fold cross-validation on 240 rows that the network was fitted to, which is too good"
    )


def test_the_same_rows_without_parts_have_words_beside_them(make_file, tmp_path):
    memory = Memory({"all": 300}).saw("all", slice(None), Part.FITTED)
    result = svm_stage(memory.write(make_file, known=False), tmp_path / "a", options=SvmOptions())
    assert result.accuracy > 0.9  # nothing can be done about it
    assert (result.evaluation, result.note, result.caveat) == ("hold-out", UNKNOWN, "")
    result = svm_stage(memory.write(make_file), tmp_path / "b", options=SvmOptions())
    assert result.evaluation == "hold-out"
    assert result.caveat == FITTED
    assert result.score_name == "score"
    assert result.score_words.endswith("; " + FITTED)


@pytest.mark.parametrize(
    "known", [{"network_source": "digits"}, {"network_source_fingerprint": "a1" * 32}]
)
def test_a_score_is_none_on_new_pictures_where_the_network_was_trained_on_the_source(
    make_file, tmp_path, known
):
    """By name or fingerprint it is the same source, and its division isn't known any more."""
    X = np.random.default_rng(SEED).standard_normal((300, 16)).astype(np.float32)
    y = np.arange(300) % 2
    path = make_file({"all": {"x": X}}, {"all": y}, classes=("cat", "dog"), **known)
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.1))
    assert (result.evaluation, result.caveat, result.note) == ("hold-out", UNKNOWN, "")
    assert result.score_name == "score"
    assert result.score_words.endswith("; " + UNKNOWN)
    elsewhere = dict.fromkeys(known, "other")
    path = make_file({"all": {"x": X}}, {"all": y}, classes=("cat", "dog"), **elsewhere)
    result = svm_stage(path, tmp_path / "other", options=SvmOptions(C=0.1))
    assert (result.score_name, result.caveat, result.note) == ("accuracy", "", UNKNOWN)


@pytest.mark.parametrize("layers", [(3.0,), (3.0, 2.0, 0.0)])
def test_cross_validation_takes_rows_that_were_not_fitted_to(make_file, tmp_path, layers):
    path = divided().write(make_file, layers=layers)
    options = SvmOptions(layer=("all",), cv=True, grid=GRID)
    result = svm_stage(path, tmp_path / "out", options=options)
    assert result.evaluation == "cross-validation"
    assert result.n_train == result.n_test == 84
    assert result.train_split == "train and test"
    assert holds_chance(result)
    assert (result.caveat, result.score_name) == ("", "accuracy")
    assert result.note == "the best epoch was picked by 24 of these rows"
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as lines:
        ids = [record["id"] for record in csv.DictReader(lines)]
    expected = [f"train/{row:05d}" for row in range(0, 240, 10)]
    assert ids == expected + [f"test/{row:05d}" for row in range(60)]


def test_cross_validation_of_seen_or_unknown_rows_is_no_accuracy(make_file, tmp_path):
    memory = Memory({"train": 100}).saw("train", slice(None), Part.FITTED)
    options = SvmOptions(cv=True, grid=GRID)
    result = svm_stage(memory.write(make_file), tmp_path / "a", options=options)
    assert (result.caveat, result.score_name) == (FITTED, "cross-validated score")
    result = svm_stage(memory.write(make_file, known=False), tmp_path / "b", options=options)
    assert (result.caveat, result.score_name) == (UNKNOWN, "cross-validated score")
    assert result.score_words.endswith("; " + UNKNOWN)


def test_validation_rows_score_where_there_is_nothing_else(make_file, tmp_path):
    memory = Memory({"train": 240}).saw("train", slice(None), Part.FITTED)
    memory.saw("train", slice(0, 240, 4), Part.VALIDATION)
    result = svm_stage(memory.write(make_file), tmp_path / "out", options=SvmOptions())
    assert (result.evaluation, result.n_train, result.n_test) == ("validation rows", 180, 60)
    assert holds_chance(result)
    assert (result.caveat, result.score_name) == (PICKED, "score")
    only = SvmOptions(cv=True, grid=GRID)
    result = svm_stage(memory.write(make_file), tmp_path / "cv", options=only)
    assert (result.n_test, result.caveat) == (60, PICKED)


def many() -> Memory:
    """Enough validation rows to choose by, in a split of their own and in `train`."""
    memory = Memory({"train": 300, "validation": 50, "test": 100})
    memory.saw("train", slice(None), Part.FITTED).saw("train", slice(0, 50), Part.VALIDATION)
    return memory.saw("validation", slice(None), Part.VALIDATION)


def test_validation_rows_choose_c_and_layer(make_file, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    memory = many()
    memory.parts = {split: np.ones_like(parts) for split, parts in memory.parts.items()}
    weak = memory.layer(0.7)
    memory.parts = many().parts
    first = memory.layer(6.0)
    path = make_file(
        {split: {"learned": first[split], "honest": weak[split]} for split in first},
        memory.labels,
        classes=("cat", "dog"),
        parts=memory.parts,
    )
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(layer=("all",)))
    assert result.best.layer == "honest"
    assert (result.n_train, result.n_test) == (350, 100)
    assert result.train_split == "train and validation"
    assert [score.compared_on for score in result.layers] == [
        "100 validation rows, by which the best epoch was picked"
    ] * 2
    learned, honest = result.layers
    assert learned.accuracy < 0.65 < honest.accuracy
    assert result.best.compared_on is None
    assert result.mcnemar.only_first_right > result.mcnemar.only_second_right
    assert result.mcnemar.p_value < 0.05
    assert "on 100 validation rows, by which the best epoch was picked" in caplog.text
    assert UNKNOWN not in caplog.text


def test_folds_that_are_asked_for_choose_in_place_of_validation_rows(make_file, tmp_path):
    path = many().write(make_file, layers=(0.0,))
    asked = SvmOptions(grid=GRID, folds=4, probability=True)
    result = svm_stage(path, tmp_path / "asked", options=asked)
    assert result.selection.folds == 4
    assert all(len(trial.scores) == 4 for trial in result.selection.trials)
    assert result.selection.on == (
        "4-fold cross-validation on 350 rows that the network was fitted to, which is too good"
    )
    # Probabilities are still learned on rows that the network was not fitted to.
    assert result.calibration["on"] == ("100 validation rows, by which the best epoch was picked")
    result = svm_stage(path, tmp_path / "not", options=SvmOptions(grid=GRID))
    assert result.selection.folds == 1


def test_the_machine_is_fitted_to_validation_rows_in_the_end(make_file, tmp_path):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    memory = many()
    path = memory.write(make_file, layers=(0.5,))
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(grid=(0.001, 0.01)))
    X, y = memory.layer(0.5), memory.labels
    theirs = make_pipeline(
        StandardScaler(), LinearSVC(C=result.best.C, dual=False, tol=1e-8, max_iter=10_000)
    ).fit(np.vstack([X["train"], X["validation"]]), np.concatenate([y["train"], y["validation"]]))
    assert result.accuracy == theirs.score(X["test"], y["test"])


def test_what_is_not_known_is_said_once(make_file, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    path = many().write(make_file, known=False, layers=(0.0, 0.0))
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(layer=("all",), C=0.1))
    assert result.note == result.to_json()["note"] == UNKNOWN
    assert (result.caveat, result.score_name) == ("", "accuracy")
    assert caplog.text.count(UNKNOWN) == 1
    assert result.layers[0].compared_on == "50 validation rows"


def test_the_hold_out_is_the_rule_s(make_file, pixels, tmp_path):
    from cnnfeat.parts import hold_out

    X, y = pixels[0][:400], pixels[1][:400]
    groups = np.arange(400) // 5
    path = make_file({"all": {"whole": X}}, {"all": y}, groups={"all": groups})
    options = SvmOptions(C=0.01, test_fraction=0.3, seed=5)
    svm_stage(path, tmp_path / "out", options=options)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as lines:
        rows = [int(record["id"].removeprefix("all/")) for record in csv.DictReader(lines)]
    expected = np.flatnonzero(hold_out(y, 0.3, seed=5, groups=groups))
    assert rows == expected.tolist()
    assert not set(groups[rows]) & set(np.delete(groups, rows))


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (("train", "test"), "the score is that of the test rows"),
        (("train",), "the score is that of the cross-validation"),
        (("train", "validation"), "the score is that of the validation rows"),
        (("all",), ""),
    ],
    ids=["test-split", "cv", "validation", "hold-out"],
)
def test_a_test_fraction_that_is_not_used_is_told(make_file, pixels, caplog, splits, said):
    X, y = pixels[0][:200], pixels[1][:200]
    path = make_file({name: {"whole": X} for name in splits}, dict.fromkeys(splits, y))
    cv = splits == ("train",)
    with FeatureFile(path) as file:
        divide(file, SvmOptions(cv=cv))
        assert "--test-fraction" not in caplog.text
        divide(file, SvmOptions(cv=cv, test_fraction=0.3))
    assert ("--test-fraction is not used" in caplog.text) == bool(said)
    assert said in caplog.text


def test_groups_are_scored_in_turn_as_wholes(make_file, tmp_path):
    """Rows of one group are all alike, and labels random: only a leak could tell them."""
    random = np.random.default_rng(SEED)
    of_group = random.integers(0, 2, 60)
    X = np.repeat(random.standard_normal((60, 8)), 5, axis=0).astype(np.float32)
    y, groups = np.repeat(of_group, 5), np.repeat(np.arange(60), 5)
    options = SvmOptions(C=1.0, kernel="rbf", gamma=1.0, cv=True)
    for known, least, most in ((groups, 0.2, 0.8), (None, 0.95, 1.0)):
        path = make_file(
            {"all": {"x": X}},
            {"all": y},
            classes=("cat", "dog"),
            groups=None if known is None else {"all": known},
        )
        result = svm_stage(path, tmp_path / f"{least}", options=options)
        assert least <= result.accuracy <= most


def test_a_class_of_few_rows_is_left_out_by_name(make_file, pixels, tmp_path, caplog):
    X, y = pixels[0][:300].copy(), pixels[1][:300] % 3
    y[7] = 3
    classes = ("ant", "bee", "cow", "dodo")
    path = make_file({"all": {"whole": X}}, {"all": y}, classes=classes)
    with pytest.raises(DataError) as caught:
        svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01))
    assert "class 'dodo' has 1" in str(caught.value)
    assert "--min-per-class 2" in caught.value.hint
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01, min_per_class=2))
    assert result.classes == ("ant", "bee", "cow")
    assert result.n_train + result.n_test == 299
    assert "left out, with fewer than 2 rows: class 'dodo' has 1" in caplog.text


@pytest.mark.parametrize("way", [{"folds": 2}, {"C": 0.01}, {"min_per_class": 4}])
def test_every_way_on_that_is_offered_works(make_file, pixels, tmp_path, way):
    X, y = pixels[0][:300].copy(), pixels[1][:300] % 3
    y[[7, 8, 9]] = 3
    path = make_file({"all": {"whole": X}}, {"all": y}, classes=("ant", "bee", "cow", "dodo"))
    with pytest.raises(DataError, match=r"5 folds need 5 training rows.*'dodo' has 2") as caught:
        svm_stage(path, tmp_path / "out", options=SvmOptions())
    assert caught.value.hint == (
        "--folds 2 or a fixed --C or --min-per-class 4, which leaves out classes of fewer rows"
    )
    assert svm_stage(path, tmp_path / "out", options=SvmOptions(**way)).n_train > 200


def test_a_group_that_is_a_whole_class_is_named(make_file, pixels, tmp_path):
    X, y = pixels[0][:100], np.arange(100) % 2
    groups = np.where(y == 0, np.arange(100), 1000)
    path = make_file(
        {"all": {"whole": X}}, {"all": y}, classes=("cat", "dog"), groups={"all": groups}
    )
    with pytest.raises(
        DataError, match="needs 2 groups of each class; class 'dog' has 1"
    ) as caught:
        svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01))
    assert "of other groups" in caught.value.hint
    assert "cnnfeat extract without --group-by" in caught.value.hint


def test_too_high_a_least_number_of_rows_is_said(make_file, pixels, tmp_path):
    y = np.where(np.arange(100) < 90, 0, 1)
    path = make_file({"all": {"whole": pixels[0][:100]}}, {"all": y}, classes=("cat", "dog"))
    words = "fewer than two classes have 50 rows to train on or more: class 'dog' has 10"
    with pytest.raises(DataError, match=words) as caught:
        svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01, min_per_class=50))
    assert caught.value.hint == "give --min-per-class a smaller number"


def test_leaving_classes_out_is_offered_only_where_two_are_left(make_file, pixels, tmp_path):
    X, y = pixels[0][:30], np.arange(30) % 3
    for trained_on, offered in (([0], False), ([0, 1], True)):
        rows = np.flatnonzero(np.isin(y, trained_on))
        path = make_file({"train": {"x": X[rows]}, "test": {"x": X}}, {"train": y[rows], "test": y})
        with pytest.raises(DataError, match="have no training row") as caught:
            svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01))
        assert ("--min-per-class 2" in caught.value.hint) == offered


def test_a_test_split_without_labels_is_not_scored(make_file, pixels, tmp_path, caplog):
    X, y = pixels
    path = make_file(
        {"train": {"whole": X[:300]}, "test": {"whole": X[300:350]}}, {"train": y[:300]}
    )
    result = svm_stage(path, tmp_path / "out", options=SvmOptions(C=0.01))
    assert result.evaluation == "hold-out"
    assert "split 'test' has no labels, and is not used" in caplog.text
