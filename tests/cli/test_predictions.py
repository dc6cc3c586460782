"""How predictions are printed and counted."""

from __future__ import annotations

import csv
import io
import json
import logging
from typing import Any

import pytest

from cnnfeat.cli.predictions import Tally, Wanted, write_csv, write_json, write_table
from cnnfeat.errors import DataError
from cnnfeat.prediction import Prediction

CLASSES = ("cat", "dog", "lynx")


def said(**values: Any) -> Prediction:
    return Prediction(
        **{
            "id": "1.png",
            "split": "test",
            "predicted": "dog",
            "margin": 0.75,
            "label": None,
            "scores": (-0.5, 1.0, 0.25),
            **values,
        }
    )


CALIBRATED = said(probability=0.7, probabilities=(0.1, 0.7, 0.2))


def test_json_has_what_is_wanted_and_the_old_keys_first(capsys):
    write_json([said()], Wanted(CLASSES))
    (item,) = json.loads(capsys.readouterr().out)
    assert list(item)[:5] == ["id", "split", "predicted", "margin", "label"]
    assert set(item) == {*list(item)[:5], "machine_part", "network_part"}
    write_json([CALIBRATED], Wanted(CLASSES, calibrated=True, top=2, scores=True))
    (item,) = json.loads(capsys.readouterr().out)
    assert item["probability"] == 0.7
    assert item["top"] == [
        {"class": "dog", "score": 1.0, "probability": 0.7},
        {"class": "lynx", "score": 0.25, "probability": 0.2},
    ]
    assert item["scores"] == {"cat": -0.5, "dog": 1.0, "lynx": 0.25}
    assert item["probabilities"] == {"cat": 0.1, "dog": 0.7, "lynx": 0.2}
    write_json([], Wanted(CLASSES))
    assert json.loads(capsys.readouterr().out) == []


def test_commas_have_a_column_for_each_value(capsys):
    write_csv([said()], Wanted(CLASSES, top=9, scores=True))
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(row)[:5] == ["id", "split", "label", "predicted", "margin"]
    assert [row[f"top{k}"] for k in (1, 2, 3)] == ["dog", "lynx", "cat"]
    assert row["top3_score"] == "-0.5"
    assert "top4" not in row
    assert row["score_lynx"] == "0.25"
    write_csv([CALIBRATED], Wanted(CLASSES, calibrated=True, top=1, scores=True))
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["probability"], row["top1_probability"]) == ("0.7", "0.7")
    assert [row[f"probability_{name}"] for name in CLASSES] == ["0.1", "0.7", "0.2"]


def test_csv_of_what_fails_at_once_has_no_header(capsys):
    def failing(*before: Prediction):
        yield from before
        raise DataError("no such picture")

    for before, n_lines in [((), 0), ((said(), said()), 3)]:
        with pytest.raises(DataError):
            write_csv(failing(*before), Wanted(CLASSES))
        assert len(capsys.readouterr().out.splitlines()) == n_lines
    write_csv([], Wanted(CLASSES))
    assert capsys.readouterr().out == "id,split,label,predicted,margin\n"


@pytest.mark.parametrize("wanted", [Wanted(CLASSES, top=3), Wanted(CLASSES, scores=True)])
def test_a_table_lists_classes_below_each(capsys, wanted: Wanted):
    write_table([said(), said()], wanted)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 2 * 4
    assert lines[2:5] == [["1.", "dog", "1.000"], ["2.", "lynx", "0.250"], ["3.", "cat", "-0.500"]]


def test_a_table_has_probabilities_where_there_are_some(capsys):
    write_table([CALIBRATED], Wanted(CLASSES, calibrated=True))
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["predicted", "margin", "probability", "label", "id"]
    assert line.split() == ["dog", "0.750", "70.00%", "1.png"]


def counted(*items: tuple[str, Prediction]) -> Tally:
    tally = Tally()
    for source, item in items:
        assert list(tally.counting([item], source=source)) == [item]
    return tally


def test_splits_and_what_was_fitted_to_them_are_told_apart(caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    seen = {"machine_part": "fitted", "network_part": "fitted", "split": "train"}
    new = {"machine_part": "unseen", "network_part": "unseen"}
    picked = {"machine_part": "validation", "network_part": "validation", "split": "train"}
    elsewhere = {"machine_part": "unseen", "split": "all"}
    counted(
        ("f.h5", said(label="dog", **seen)),
        ("f.h5", said(label="dog", **seen)),
        ("f.h5", said(label="dog", **picked)),
        ("f.h5", said(label="dog", **new)),
        ("f.h5", said(label="cat", **new)),
        ("f.h5", said(label="cat", **elsewhere)),
        ("f.h5", said(label=None, split="more")),
    ).say()
    assert caplog.messages == [
        "train: 2 of 2 right (100.00%); the machine was fitted to them; the network was fitted to "
        "them",
        "train: 1 of 1 right (100.00%); the machine's settings were chosen on them; the network's "
        "best epoch was picked by them",
        "test: 1 of 2 right (50.00%); neither the machine nor the network was fitted to them",
        "all: 0 of 1 right (0.00%); the machine was not fitted to them; what the network was "
        "fitted to isn't known",
    ]


def test_nothing_is_claimed_of_rows_of_which_nothing_is_known(caplog):
    caplog.set_level(logging.INFO, "cnnfeat")
    counted(("a", said(label="dog")), ("b", said(label="dog"))).say()
    assert caplog.messages == [
        "a, test: 1 of 1 right (100.00%)",
        "b, test: 1 of 1 right (100.00%)",
    ]
