"""`svm.json`: what it holds, and that it is read back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.errors import FeatureFileError, MissingInputError
from cnnfeat.result import SvmResult, read_result, write_result

SCORE = {
    "layer": "fc1",
    "tensor": "fc1/relu/Relu:0",
    "n_features": 128,
    "C": 0.01,
    "gamma": None,
    "n_support": None,
    "objective": 12.5,
    "newton_steps": 7,
    "cv_accuracy": 0.875,
    "cv_standard_error": 0.0625,
    "accuracy": 0.75,
    "accuracy_interval": [0.3, 0.95],
    "balanced_accuracy": 0.75,
    "elapsed_s": 1.5,
    "macro": {"precision": 0.83, "recall": 0.75, "f1": 0.73, "roc_auc": 0.875},
    "compared_on": None,
}
TRIAL = {"C": 0.01, "gamma": None, "mean": 0.875, "standard_error": 0.125, "folds": [0.75, 1.0]}
DOCUMENT = {
    "format": "cnnfeat-svm",
    "format_version": 1,
    "created": "2026-01-02T03:04:05+00:00",
    **SCORE,
    "kernel": "linear",
    "normalize": "standard",
    "pca": None,
    "classes": ["cat", "dog"],
    "n_train": 8,
    "n_test": 4,
    "train_split": "train",
    "test_split": "test",
    "evaluation": "test split",
    "caveat": "",
    "note": "",
    "per_class": [
        {"class": "cat", "precision": 1.0, "recall": 0.5, "f1": 0.66, "support": 2},
        {"class": "dog", "precision": 0.66, "recall": 1.0, "f1": 0.8, "support": 2},
    ],
    "confusion": [[1, 1], [0, 2]],
    "selection": {
        "folds": 2,
        "seed": 0,
        "n_samples": 8,
        "on": "2-fold cross-validation on 8 training rows",
        "measure": "accuracy",
        "rule": "smallest C within one standard error of the best",
        "searched": "2 of 9 values from 0.01 to 100: outwards",
        "grid": [0.01, 0.1],
        "scores": [TRIAL, {**TRIAL, "C": 0.1}],
        "best": {**TRIAL, "C": 0.1},
        "chosen": TRIAL,
    },
    "features": {"path": "features.h5", "network": "model.keras", "precision": "float32"},
    "network_test_accuracy": 0.8,
    "layers": [
        {**SCORE, "layer": "conv2", "compared_on": "6 rows"},
        {**SCORE, "compared_on": "6 rows"},
    ],
    "mcnemar": {"only_first_right": 1, "only_second_right": 0, "p_value": 1.0},
    "versions": {"cnnfeat": "0.1.0"},
    "class_weight": {"cat": 2.0, "dog": 1.0},
    "calibration": {
        "method": "sigmoid",
        "n_samples": 9,
        "on": "9 validation rows",
        "log_loss": 0.5,
    },
}
# What a reader can't do without.
LEAST = ("format", "format_version", "layer", "accuracy", "accuracy_interval", "kernel", "classes",
         "n_train", "n_test", "confusion")  # fmt: skip


def test_a_document_comes_back_key_by_key(tmp_path: Path):
    path = tmp_path / "svm.json"
    path.write_text(json.dumps(DOCUMENT), "utf-8")
    write_result(read_result(path), tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    assert again == DOCUMENT
    assert list(again) == list(DOCUMENT)


def test_fields_are_read(tmp_path: Path):
    result = SvmResult.from_json(DOCUMENT, path=tmp_path)
    assert result.accuracy == result.best.accuracy == 0.75
    assert result.best.accuracy_interval == (0.3, 0.95)
    assert [score.layer for score in result.layers] == ["conv2", "fc1"]
    np.testing.assert_array_equal(result.confusion, [[1, 1], [0, 2]])
    assert [(c.name, c.recall, c.support) for c in result.per_class] == [
        ("cat", 0.5, 2),
        ("dog", 1.0, 2),
    ]
    assert result.selection is not None
    assert result.selection.best.C == 0.1
    assert result.selection.chosen.scores == (0.75, 1.0)
    assert result.mcnemar is not None and result.mcnemar.only_first_right == 1


def test_a_document_without_optional_keys_is_read(tmp_path: Path):
    result = SvmResult.from_json({key: DOCUMENT[key] for key in LEAST}, path=tmp_path)
    assert result.layers == (result.best,)
    assert result.evaluation == "test split"
    assert result.selection is result.mcnemar is result.network_test_accuracy is None
    assert result.features == {}


NEW = (
    "caveat",
    "note",
    "compared_on",
    "on",
    "measure",
    "searched",
    "calibration",
)  # keys that older documents lack


def _older(value: object) -> object:
    if isinstance(value, list):
        return [_older(item) for item in value]
    if isinstance(value, dict):
        return {key: _older(item) for key, item in value.items() if key not in NEW}
    return value


def test_older_documents_are_read(tmp_path: Path):
    result = SvmResult.from_json(_older(DOCUMENT), path=tmp_path)
    now = SvmResult.from_json(DOCUMENT, path=tmp_path).selection
    assert now.searched == "2 of 9 values from 0.01 to 100: outwards"
    assert result.selection == dataclasses.replace(now, searched="")
    assert (result.score_name, result.caveat) == ("accuracy", "")
    assert result.compared_on == "4 test rows"  # what older ones compared layers on


@pytest.mark.parametrize("evaluation", ["hold-out", "cross-validation"])
def test_what_older_documents_could_not_know_is_said(tmp_path: Path, evaluation: str):
    older = {**_older(DOCUMENT), "evaluation": evaluation}
    result = SvmResult.from_json(older, path=tmp_path)
    assert result.caveat == "it is not known which rows the network was fitted to"
    assert result.score_name.endswith("score")
    assert SvmResult.from_json({**older, "caveat": ""}, path=tmp_path).score_name == "accuracy"


def test_one_sentence_says_a_score_and_what_belongs_beside_it(tmp_path: Path):
    result = SvmResult.from_json(DOCUMENT, path=tmp_path)
    assert result.score_words == "75.00% of 4 test rows (95% interval 30.00% to 95.00%)"
    seen = {**DOCUMENT, "evaluation": "hold-out", "caveat": "seen before"}
    result = SvmResult.from_json(seen, path=tmp_path)
    assert result.score_name == "score"
    assert result.score_words == (
        "75.00% of 4 held-out rows (95% interval 30.00% to 95.00%); seen before"
    )
    assert result.scored_words == "4 held-out rows; seen before"


def test_a_score_of_rows_apart_keeps_its_error(tmp_path: Path):
    trial = {**TRIAL, "folds": [0.875], "standard_error": 0.03125}
    selection = {**DOCUMENT["selection"], "folds": 1, "chosen": trial, "on": "8 validation rows"}
    result = SvmResult.from_json({**DOCUMENT, "selection": selection}, path=tmp_path)
    assert result.selection.chosen.error == 0.03125
    assert result.to_json()["selection"]["chosen"] == trial


@pytest.mark.parametrize("key", LEAST[2:])
def test_a_missing_key_is_named(tmp_path: Path, key: str):
    damaged = {name: value for name, value in DOCUMENT.items() if name != key}
    with pytest.raises(FeatureFileError, match=f"damaged: it lacks {key}\\n"):
        SvmResult.from_json(damaged, path=tmp_path)


def _selection(**changes: object) -> dict[str, object]:
    return {"selection": {**DOCUMENT["selection"], **changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not an SVM result: its format is 'other'"),
        ({"format": ["x" * 1_000]}, "not an SVM result: its format is ['xxx"),
        ({"format_version": 2}, "format version 2; this cnnfeat reads 1"),
        ({"confusion": [[1]]}, "damaged: 2 classes, but a confusion matrix of (1, 1)"),
        ({"confusion": [[1, 1], [2]]}, "2 classes, but a confusion matrix of (2, 1, 2)"),
        ({"confusion": [[1, 1], 2]}, "confusion must be a list of lists, not [[1, 1], 2]"),
        ({"confusion": [[1, 1], [2, -1]]}, "confusion must hold numbers of rows, not [2, -1]"),
        ({"confusion": [[1, 1], [2, 0.5]]}, "confusion must hold numbers of rows, not [2, 0.5]"),
        ({"confusion": [[1, 1], [2, "7"]]}, "confusion must hold numbers of rows, not [2, '7']"),
        ({"confusion": [[1, 1], [2, 2**63]]}, "confusion must hold numbers of rows, not [2, 922"),
        ({"classes": []}, "damaged: classes names none"),
        ({"classes": ["cat", None]}, "classes[1] must be text"),
        ({"accuracy": "much"}, "accuracy must be a number (at least 0 and at most 1), not 'much'"),
        ({"accuracy": 75}, "accuracy must be a number (at least 0 and at most 1), not 75"),
        ({"accuracy_interval": [0.5]}, "accuracy_interval must have 2 items, not 1"),
        ({"accuracy_interval": [0.8, 0.9]}, "is 0.8 to 0.9, without the accuracy itself, 0.75"),
        ({"accuracy_interval": [0.9, 0.6]}, "is 0.9 to 0.6, without the accuracy itself, 0.75"),
        ({"layers": [{**SCORE, "accuracy": 0.1}]}, "of 'fc1' is 0.3 to 0.95, without the accuracy"),
        ({"C": 0}, "C must be a number (more than 0), not 0"),
        ({"n_train": 8.0}, "n_train must be a whole number (at least 0), not 8.0"),
        ({"n_test": -1}, "n_test must be a whole number (at least 0), not -1"),
        ({"layers": 3}, "layers must be a list or null, not 3"),
        ({"layers": [SCORE, {**SCORE, "layer": 1}]}, "layers[1].layer must be text"),
        ({"layers": [{"layer": "x"}]}, "layers[0] lacks accuracy, accuracy_interval"),
        ({"macro": {**SCORE["macro"], "f1": None}}, "macro.f1 must be a number"),
        ({"mcnemar": [1]}, "mcnemar must be a record or null, not [1]"),
        ({"mcnemar": {"only_first_right": 1}}, "mcnemar lacks only_second_right, p_value"),
        ({"per_class": DOCUMENT["per_class"][:1]}, "per_class is not of the classes, in their"),
        ({"per_class": [{"class": "cat"}]}, "per_class[0] lacks precision, recall, f1, support"),
        ({"features": {"path": ["x"]}}, "features['path'] must be "),
        ({"versions": {"numpy": 2}}, "versions['numpy'] must be text"),
        ({"class_weight": {"cat": -1}}, "class_weight['cat'] must be a number (more than 0)"),
        ({"calibration": {"method": "sigmoid"}}, "calibration lacks n_samples, on, log_loss"),
        (_selection(folds=0), "selection.folds must be a whole number (at least 1), not 0"),
        (_selection(scores=[{**TRIAL, "folds": []}]), "a trial of C without a score"),
        (_selection(scores=[{**TRIAL, "folds": [2]}]), "selection.scores[0].folds[0] must be"),
        (_selection(chosen=None), "selection.chosen must be a record, not None"),
        ({"kernel": "k" * 5_000}, "kernel must be text (at most 4,096 characters), not 'kkk"),
    ],
    ids=range(38),
)
def test_damage_is_said(tmp_path: Path, change: dict[str, object], message: str):
    with pytest.raises(FeatureFileError) as caught:
        SvmResult.from_json({**DOCUMENT, **change}, path=tmp_path / "svm.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'svm.json'}: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "it holds a list, and should hold a record"),
        ("[" * 100_000, "it nests more than 64 levels deep"),
        ('{"format": "cnnfeat-svm", "format_version": 1, "accuracy": NaN}', "it holds NaN"),
        ('{"n_train": ' + "1" * 5_000 + "}", "a whole number of 5,000 digits"),
        ('{"layer": "\\ud800"}', "half of a surrogate pair"),
    ],
    ids=range(6),
)
def test_what_is_no_document_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "svm.json").write_text(text, "utf-8")
    with pytest.raises(FeatureFileError, match=r"svm\.json: can't be read as JSON: ") as caught:
        read_result(tmp_path / "svm.json")
    assert message in str(caught.value)


def test_no_file_names_the_command(tmp_path: Path):
    with pytest.raises(MissingInputError, match="no SVM result") as caught:
        read_result(tmp_path / "svm.json")
    assert "cnnfeat svm" in str(caught.value.hint)


def test_records_are_read_without_the_large_libraries():
    code = (
        "import sys, cnnfeat.card, cnnfeat.result\n"
        "print({'tensorflow', 'sklearn', 'h5py', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_result_shows_itself_with_what_must_be_said(tmp_path: Path):
    path = tmp_path / "svm.json"
    path.write_text(json.dumps({**DOCUMENT, "caveat": "seen before"}), "utf-8")
    first, score, trained, layers = repr(read_result(path)).splitlines()
    assert first == "SvmResult of a linear machine on fc1, C = 0.01"
    assert score.startswith("  score  75.00% of 4 test rows (95% interval 30.00% to 95.00%)")
    assert score.endswith("; seen before")
    assert trained == "  trained   on 8 rows of 2 classes"
    assert layers.startswith("  layers    conv2 75.00%, fc1 75.00%, on ")
    path.write_text(json.dumps({**DOCUMENT, "note": "who knows"}), "utf-8")
    assert repr(read_result(path)).splitlines()[-1] == "  note      who knows"
