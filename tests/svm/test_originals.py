"""Copies of rows only ever train: none chooses or is scored, and none helps with its own row.

Labels are random, and each row is far from all others, so a machine knows the label of a row that
it has seen a copy of, and of any other nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError
from cnnfeat.features import FeatureFile
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part
from cnnfeat.svm import svm_stage
from cnnfeat.svm.division import Division, divide
from cnnfeat.svm.originals import find_copies
from cnnfeat.svm.trials import APART

N_ROWS, N_TEST, N_COPIES = 150, 60, 2
FIXED = SvmOptions(C=1.0, normalize="none")
TRIED = SvmOptions(grid=(0.01, 1.0), normalize="none", folds=3)


@pytest.fixture
def copied_file(make_file):
    """Write 150 rows with two copies each, which are all but the rows themselves."""

    def make(*, test: bool = True, parts: bool = True, split: str = "train", **said) -> Path:
        random = np.random.default_rng(0)
        n_rows = {split: N_ROWS, **({"test": N_TEST} if test else {})}
        own = {name: random.standard_normal((n, 400)) for name, n in n_rows.items()}
        times = {name: 1 + N_COPIES * (name == split) for name in n_rows}
        layers, labels, seen, groups = {}, {}, {}, {}
        for number, (name, n) in enumerate(n_rows.items()):
            X = np.tile(own[name], (times[name], 1))
            noise = random.standard_normal(X.shape) * 0.01
            layers[name] = {"fc1": (X + noise).astype(np.float32)}
            labels[name] = np.tile(random.permutation(np.arange(n) % 2), times[name])
            part = np.full(n, Part.UNSEEN if name == "test" else Part.FITTED, np.uint8)
            if name != "test":
                part[:40] = Part.VALIDATION
            seen[name] = np.tile(part, times[name])
            groups[name] = np.tile(1_000 * number + np.arange(n), times[name])
        options = said or {"augment_copies": N_COPIES}
        return make_file(
            layers,
            labels,
            classes=("a", "b"),
            parts=seen if parts else None,
            groups=groups,
            options=f'{{"extract": {{"augment_copies": {options["augment_copies"]}}}}}',
        )

    return make


def division(path: Path, options: SvmOptions = FIXED) -> Division:
    with FeatureFile(path) as file:
        return divide(file, options)


def test_copies_are_the_rows_behind_the_others(copied_file):
    with FeatureFile(copied_file()) as file:
        found = find_copies(file, "train")
        assert not find_copies(file, "test").any()
    np.testing.assert_array_equal(found, np.arange(450) >= 150)


@pytest.mark.parametrize("said", [3, '"many"', -1, 2.5, "true"], ids=str)
def test_a_file_that_cant_have_so_many_copies_is_refused(copied_file, said):
    with pytest.raises(FeatureFileError, match="copies of each row, and it has 450 rows in all"):
        division(copied_file(augment_copies=said))


def test_a_test_split_is_scored_and_all_copies_train(copied_file):
    found = division(copied_file())
    assert (len(found.train), len(found.scored)) == (450, 60)


def test_no_copy_is_on_the_other_side_of_a_fold(copied_file):
    found = division(copied_file(), TRIED)
    plan = found.plan(TRIED, may_fix_C=True)
    assert plan.n_folds == 3
    for group in np.unique(found.train.groups):
        assert len(np.unique(plan.fold[found.train.groups == group])) == 1
    np.testing.assert_array_equal(plan.scored, np.arange(150))


def test_copies_of_validation_rows_are_left_out_with_them_and_dont_choose(copied_file):
    options = SvmOptions()
    found = division(copied_file(), options)
    plan = found.plan(options, may_fix_C=True)
    left_out = np.flatnonzero(plan.fold != APART)
    np.testing.assert_array_equal(left_out % 150, np.tile(np.arange(40), 3))
    np.testing.assert_array_equal(plan.scored, np.arange(40))
    assert plan.on.startswith("40 validation rows")


@pytest.mark.parametrize("parts", [True, False], ids=["parts", "no parts"])
def test_without_a_test_split_rows_alone_are_scored(copied_file, parts: bool):
    found = division(copied_file(test=False, parts=parts, split="all"))
    assert len(found.scored) == (40 if parts else 30)
    scored = found.scored.pieces[0].rows
    assert scored.max() < 150
    assert not np.isin(found.train.groups, scored).any()
    assert len(found.train) == 3 * (150 - len(scored))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_cross_validation_says_chance_where_labels_are_random(copied_file, tmp_path, kernel):
    path = copied_file(test=False, parts=False, split="all")
    options = SvmOptions(cv=True, folds=3, kernel=kernel, grid=(0.1, 1.0), normalize="none")
    result = svm_stage(path, tmp_path, options=options)
    assert result.n_test == 150 and result.confusion.sum() == 150
    assert result.accuracy < 0.62
    assert result.selection.chosen.mean < 0.62
    lines = (tmp_path / "predictions.csv").read_text("utf-8").splitlines()
    assert len(lines) == 151


def test_probabilities_are_learned_on_rows_alone(copied_file, tmp_path):
    options = SvmOptions(C=1.0, probability=True, normalize="none")
    result = svm_stage(copied_file(), tmp_path, options=options)
    assert result.calibration["n_samples"] == 40
    assert result.n_train == 3 * 110


def test_classes_are_as_large_as_their_rows_are_many(copied_file):
    from dataclasses import replace

    found = division(copied_file(), replace(FIXED, min_per_class=75))
    assert found.classes == ("a", "b")
    with pytest.raises(Exception, match="76 rows to train on"):
        division(copied_file(), replace(FIXED, min_per_class=76))
