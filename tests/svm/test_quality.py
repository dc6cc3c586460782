"""Averages over classes, factors of C and probabilities, from a feature file to what is saved."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize
from sklearn.svm import LinearSVC

from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import SvmOptions
from cnnfeat.parts import Part, hold_out, unpack_parts
from cnnfeat.prediction import predict_features
from cnnfeat.svm import load_svm, svm_stage

WHOLE = SvmOptions(layer=("whole",), C=0.01)
NAMES = tuple("0123456789")


def document(folder: Path) -> dict:
    return json.loads((folder / "svm.json").read_text("utf-8"))


def test_averages_over_classes_equal_scikit_learn(digits_file, pixels, tmp_path):
    X, y = pixels[0].reshape(-1, 64), pixels[1]
    svm_stage(digits_file, tmp_path, options=WHOLE)
    theirs = make_pipeline(
        StandardScaler(), LinearSVC(C=0.01, dual=False, tol=1e-8, max_iter=10_000)
    ).fit(X[:700], y[:700])
    truth, values = y[700:1000], theirs.decision_function(X[700:1000])
    expected = precision_recall_fscore_support(truth, values.argmax(axis=1), average="macro")
    found = document(tmp_path)["macro"]
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(expected[:3])
    area = roc_auc_score(label_binarize(truth, classes=range(10)), values)
    assert found["roc_auc"] == pytest.approx(area, abs=1e-5)


def test_in_turn_the_area_is_the_mean_of_the_folds(make_file, pixels, tmp_path):
    kept = pixels[1] < 2
    X, y = pixels[0][kept], pixels[1][kept]
    file = make_file({"all": {"whole": X}}, {"all": y}, classes=("0", "1"))
    result = svm_stage(file, tmp_path, options=SvmOptions(C=0.001, cv=True, folds=3))
    assert result.best.macro.roc_auc == pytest.approx(1.0, abs=1e-3)  # zeros and ones are apart


@pytest.mark.parametrize("weight", ["balanced", (("3", 4.0),)])
def test_factors_of_C_are_in_the_machine_and_the_result(make_file, pixels, tmp_path, weight):
    X, y = pixels
    rows = np.concatenate([np.flatnonzero(y == k)[: 100 - 20 * (k == 3) * 4] for k in range(4)])
    splits = {"train": rows[::2], "test": rows[1::2]}
    file = make_file(
        {split: {"whole": X[part]} for split, part in splits.items()},
        {split: y[part] for split, part in splits.items()},
        classes=NAMES,
    )
    result = svm_stage(file, tmp_path, options=SvmOptions(C=0.01, class_weight=weight))
    train = splits["train"]
    by_code = weight if weight == "balanced" else {3: 4.0}
    theirs = LinearSVC(C=0.01, dual=False, tol=1e-9, max_iter=10_000, class_weight=by_code)
    theirs.fit(StandardScaler().fit_transform(X[train].reshape(-1, 64)), y[train])
    saved = load_svm(tmp_path / "svm.skops").pipeline[-1]
    np.testing.assert_allclose(saved.coef_, theirs.coef_, atol=1e-4)
    counts = np.bincount(y[train])
    expected = len(train) / (4 * counts) if weight == "balanced" else [1, 1, 1, 4]
    assert list(result.class_weight) == ["0", "1", "2", "3"]
    assert list(document(tmp_path)["class_weight"].values()) == pytest.approx(list(expected))
    assert skops.io.get_untrusted_types(file=tmp_path / "svm.skops") == []


def test_a_class_that_is_none_is_refused_before_anything_is_written(digits_file, tmp_path):
    options = SvmOptions(layer=("whole",), C=0.01, class_weight=(("33", 2.0),))
    with pytest.raises(UsageError, match="class weight for '33', which is no class of these rows"):
        svm_stage(digits_file, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def theirs_calibrated(X, y, aside):
    """A machine on the rows that are not aside, calibrated on those that are."""
    machine = make_pipeline(
        StandardScaler(), LinearSVC(C=0.01, dual=False, tol=1e-8, max_iter=10_000)
    ).fit(X[~aside], y[~aside])
    return CalibratedClassifierCV(FrozenEstimator(machine), cv=2).fit(X[aside], y[aside])


def test_probabilities_are_learned_on_rows_the_machine_was_not_fitted_to(
    digits_file, pixels, tmp_path
):
    X, y = pixels[0].reshape(-1, 64), pixels[1]
    options = SvmOptions(layer=("whole",), C=0.01, probability=True)
    result = svm_stage(digits_file, tmp_path, options=options)
    aside = hold_out(y[:700], 0.2, seed=0)
    assert result.n_train == 700 - aside.sum()
    expected = theirs_calibrated(X[:700], y[:700], aside).predict_proba(X[700:1000])
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(lines))
    chosen = [expected[row, int(record["predicted"])] for row, record in enumerate(records)]
    found = [float(record["probability"]) for record in records]
    np.testing.assert_allclose(found, chosen, atol=1e-3)
    said = document(tmp_path)["calibration"]
    assert said["log_loss"] == pytest.approx(log_loss(y[700:1000], expected), abs=1e-3)
    assert said["on"] == f"{aside.sum()} training rows, held out from the machine"
    # The file stays one that loads with nothing to trust.
    assert skops.io.get_untrusted_types(file=tmp_path / "svm.skops") == []
    saved = load_svm(tmp_path / "svm.skops")
    items = list(predict_features(saved, digits_file, splits=["test"], scores=True))
    np.testing.assert_allclose([item.probabilities for item in items], expected, atol=1e-3)
    packed = saved.metadata["parts"]
    parts = unpack_parts(packed["train"], n_samples=700)
    np.testing.assert_array_equal(parts, np.where(aside, Part.VALIDATION, Part.FITTED))
    assert set(unpack_parts(packed["test"], n_samples=300)) == {Part.UNSEEN}
    assert {item.machine_part for item in items} == {"unseen"}


def test_validation_rows_are_those_that_probabilities_are_learned_on(make_file, pixels, tmp_path):
    X, y = pixels
    splits = {"train": slice(0, 700), "validation": slice(700, 900), "test": slice(900, 1200)}
    file = make_file(
        {split: {"whole": X[part]} for split, part in splits.items()},
        {split: y[part] for split, part in splits.items()},
    )
    result = svm_stage(file, tmp_path, options=SvmOptions(C=0.01, probability=True))
    assert result.n_train == 700
    assert result.calibration["on"] == "200 validation rows"
    aside = np.arange(900) >= 700
    flat = X.reshape(-1, 64)
    expected = theirs_calibrated(flat[:900], y[:900], aside).predict_proba(flat[900:1200])
    saved = load_svm(tmp_path / "svm.skops")
    items = list(predict_features(saved, file, splits=["test"], scores=True))
    np.testing.assert_allclose([item.probabilities for item in items], expected, atol=1e-3)
    seen = {item.split: item.machine_part for item in predict_features(saved, file)}
    assert seen == {"train": "fitted", "validation": "validation", "test": "unseen"}


@pytest.mark.parametrize("kernel", ["rbf", pytest.param("nystroem", marks=pytest.mark.slow)])
def test_other_machines_give_probabilities_too(digits_file, tmp_path, kernel):
    options = SvmOptions(
        layer=("whole",), kernel=kernel, probability=True, folds=2, grid=(1.0, 10.0)
    )
    result = svm_stage(digits_file, tmp_path, options=options)
    assert result.accuracy > 0.9
    # A machine that knew nothing would say 0.1 of each of ten classes: log 10 = 2.3.
    assert result.calibration["log_loss"] < 1
    saved = load_svm(tmp_path / "svm.skops")
    items = list(predict_features(saved, digits_file, splits=["test"], scores=True))
    np.testing.assert_allclose([sum(item.probabilities) for item in items], 1)


def test_a_class_of_one_row_gets_no_probabilities(make_file, pixels, tmp_path):
    X, y = pixels
    rows = np.append(np.flatnonzero(y < 2)[:60], np.flatnonzero(y == 2)[0])
    file = make_file(
        {"train": {"whole": X[rows]}, "test": {"whole": X[rows]}},
        {"train": y[rows], "test": y[rows]},
    )
    words = "holding rows out for probabilities needs 2 rows of each class; class '2' has 1"
    with pytest.raises(DataError, match=words) as caught:
        svm_stage(file, tmp_path / "out", options=SvmOptions(C=0.01, probability=True))
    assert "no --probability" in caught.value.hint
