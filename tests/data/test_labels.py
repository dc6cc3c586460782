"""What is no class is refused, with what was found: several labels an image, measured numbers."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.data.labels import check_texts, first_few, one_hot
from cnnfeat.errors import DataError

# Class names with the marks that lists have, and without a proof that they are lists.
NAMES = [
    ["T-shirt/top", "Trouser", "Ankle boot", "Ankle sock"],
    ["golden retriever", "labrador retriever", "boxer"],
    ["Smith, John", "Smith, Anna", "Lee, Bo"],
    ["hot dog", "dog", "cat"],
    ["0", "1", "2"],
    ["1.0", "2.0", "10"],
    ["v1.5", "v2.5"],
    ["[a]", "b"],
    ["a|b"],
    ["a|b", "c|d"],
]
LISTS = [
    (["cat|dog", "dog", "cat"], "cat|dog"),
    (["cat|dog", "cat|mouse"], "cat|dog"),
    (["Effusion", "Cardiomegaly|Effusion", "Hernia"], "Cardiomegaly|Effusion"),
    (["scab", "rust", "scab rust", "healthy"], "scab rust"),
    (["left right", "right left", "up"], "left right"),
    (["a,b", "a", "b"], "a,b"),
    (["['a', 'b']", "['a']"], "['a', 'b']"),
]


@pytest.mark.parametrize("labels", NAMES, ids=str)
def test_names_are_classes(labels):
    check_texts(labels, name="here")


@pytest.mark.parametrize(("labels", "example"), LISTS, ids=str)
def test_lists_of_classes_are_refused_where_that_is_provable(labels, example):
    with pytest.raises(DataError, match=r"here: multi-label, \d of \d different labels") as caught:
        check_texts(labels, name="here")
    assert repr(example) in str(caught.value)
    assert "one class an image" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("labels", [["0.5", "1", "2"], ["-3.25", "1e-3"], [".5", "1."]])
def test_numbers_with_fractions_are_no_classes(labels):
    with pytest.raises(DataError, match="here: continuous targets, ") as caught:
        check_texts(labels, name="here")
    assert "numpy.digitize" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.5, 1.25, 7.0, 7.0]), r"continuous targets, 3 different numbers from 0.5 to 7"),
        (np.array([0.0, 1.0, np.nan, np.inf]), "2 of 4 labels are NaN, infinite or"),
        (np.array([[1, 0], [1, 1], [0, 1], [1, 1]]), r"multi-label, 2 of 4 rows have several ones"),
        (np.array([[1, 0], [0, 0], [0, 1], [1, 0]]), r"1 of 4 rows have no 1 \(rows 1\)"),
        (np.array([[0.2, 0.8]] * 4), r"labels of shape \(4, 2\); \(n,\) is needed"),
        (np.array([[2, 3]] * 4), r"labels of shape \(4, 2\)"),
        (np.array(["cat|dog", "cat", "dog", "cat"]), "multi-label, 1 of 3 different labels"),
    ],
)
def test_arrays_that_are_no_classes_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 3, 3), np.uint8), labels=labels)
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(tmp_path / "d.npz"))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_one_hot_rows_are_classes_and_that_is_said(tmp_path, caplog, dtype):
    wanted = [2, 0, 1, 2]
    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((4, 3, 3), np.uint8),
        labels=np.eye(3, dtype=dtype)[wanted],
    )
    with caplog.at_level("INFO", "cnnfeat"), open_source(str(tmp_path / "d.npz")) as source:
        assert source.labels("all").tolist() == wanted
        assert source.classes == ("0", "1", "2")
    assert "labels of shape (4, 3): one 1 a row: taken as 3 classes" in caplog.text


def test_the_first_five_are_listed_with_their_number():
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few(range(1_234)) == "0, 1, 2, 3, 4, … (1,234 in all)"
    table = np.ones((7, 2))
    with pytest.raises(DataError, match=r"lines 10, 11, 12, 13, 14, … \(7 in all\)"):
        one_hot(table, name="t.csv", lines=range(10, 17))
