"""The card beside a model: read back, and told from what is no card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cnnfeat.card import ModelCard, read_card, write_card
from cnnfeat.errors import NetworkError

EPOCH = {"epoch": 1, "loss": 0.5, "accuracy": 0.25, "val_loss": 2.5, "val_accuracy": 0.5}
CARD = ModelCard(
    cnnfeat="1",
    tensorflow="2",
    keras="3",
    created="2024-02-29T00:00:00+00:00",
    config={"train": {"seed": 0}},
    source={"name": "digits"},
    classes=("a", "b"),
    image_shape=(8, 8, 1),
    history=(EPOCH,),
    best_epoch=1,
    validation_accuracy=0.5,
    test_accuracy=None,
    n_train=1,
    n_validation=1,
    n_test=0,
    elapsed_s=1.0,
    model_sha256="ab",
)


def test_a_card_comes_back_as_it_was(tmp_path: Path):
    write_card(CARD, tmp_path / "model.json")
    card = read_card(tmp_path / "model.keras", sha256="ab")
    assert card is not None
    assert card.classes == ("a", "b")
    assert card.history == (EPOCH,)
    assert card.test_accuracy is None


def test_a_card_of_a_version_that_kept_less_is_read(tmp_path: Path):
    document = CARD.to_json()
    for name in ("division", "pixels", "members"):
        del document[name]
    (tmp_path / "model.json").write_text(json.dumps(document), "utf-8")
    card = read_card(tmp_path / "model.keras")
    assert (card.division, card.pixels, card.members) == (None, None, ())


def test_a_card_of_another_file_is_none(tmp_path: Path):
    write_card(CARD, tmp_path / "model.json")
    assert read_card(tmp_path / "model.keras", sha256="cd") is None
    assert read_card(tmp_path / "other.keras") is None


def test_json_that_is_no_card_is_none(tmp_path: Path):
    (tmp_path / "model.json").write_text('{"layers": []}', "utf-8")
    assert read_card(tmp_path / "model.keras") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format version 2; this version of cnnfeat reads 1"),
        ({"classes": "ab"}, "damaged: classes must be a list, not 'ab'"),
        ({"classes": ["a", 1]}, r"classes\[1\] must be text \(at most 4,096 characters\), not 1"),
        ({"classes": ["a" * 5_000]}, r"classes\[0\] must be text \(at most 4,096 characters\)"),
        ({"history": None}, "history must be a list"),
        ({"history": [{**EPOCH, "loss": "nan"}]}, r"history\[0\].loss must be a number, not 'nan'"),
        ({"history": [{"epoch": 0}]}, r"history\[0\].epoch must be a whole number \(at least 1\)"),
        ({"validation_accuracy": 1.5}, "validation_accuracy must be a number .*, not 1.5"),
        ({"test_accuracy": "x" * 10_000}, "test_accuracy must be a number .* or null, not 'xxx"),
        ({"n_train": -1}, r"n_train must be a whole number \(at least 0\), not -1"),
        ({"n_test": True}, r"n_test must be a whole number \(at least 0\), not True"),
        ({"n_test": 1.5}, r"n_test must be a whole number \(at least 0\), not 1.5"),
        ({"image_shape": [8, 8]}, "image_shape must have 3 items, not 2"),
        (
            {"image_shape": [8, 8, 0]},
            r"image_shape\[2\] must be a whole number \(at least 1\), not 0",
        ),
        ({"source": {"name": ["x"]}}, r"source\['name'\] must be text"),
        ({"config": {"data": []}}, r"config\['data'\] must be a record, not \[\]"),
        ({"division": {"seed": -1}}, "division.seed must be a whole number"),
        ({"pixels": {"mean": 0.5}}, "pixels lacks spread, colour, histogram"),
        (
            {"pixels": {"mean": 0.5, "spread": 0.1, "colour": 0, "histogram": [1]}},
            r"pixels.histogram must be a list \(16 items\), not \[1\]",
        ),
        ({"members": [{}]}, r"members\[0\] lacks seed, history"),
        ({"best_epoch": 0}, r"best_epoch must be a whole number \(at least 1\), not 0"),
    ],
    ids=range(21),
)
def test_a_card_that_cannot_be_is_refused(tmp_path: Path, change: dict, message: str):
    write_card(CARD, tmp_path / "model.json")
    document = json.loads((tmp_path / "model.json").read_text("utf-8")) | change
    (tmp_path / "model.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(NetworkError, match=message):
        read_card(tmp_path / "model.keras")


def test_a_damaged_card_is_named(tmp_path: Path):
    for text in ("{", "[" * 100_000, '{"n_train": NaN}', '{"cnnfeat": "\\ud800"}'):
        (tmp_path / "model.json").write_text(text, "utf-8")
        with pytest.raises(NetworkError, match=r"model\.json can't be read: "):
            read_card(tmp_path / "model.keras")
    (tmp_path / "model.json").write_text(
        '{"format": "cnnfeat-model", "format_version": 1}', "utf-8"
    )
    with pytest.raises(NetworkError, match="lacks cnnfeat, tensorflow"):
        read_card(tmp_path / "model.keras")


def test_a_card_keeps_the_division_and_reads_without_one(tmp_path: Path):
    division = {"test_fraction": 0.2, "seed": 1}
    write_card(dataclasses.replace(CARD, division=division), tmp_path / "model.json")
    assert read_card(tmp_path / "model.keras").division == division
    document = json.loads((tmp_path / "model.json").read_text("utf-8"))
    del document["division"]
    (tmp_path / "model.json").write_text(json.dumps(document), "utf-8")
    assert read_card(tmp_path / "model.keras").division is None
    (tmp_path / "model.json").write_text(json.dumps({**document, "division": "x"}), "utf-8")
    with pytest.raises(NetworkError, match="division must be a record or null, not 'x'"):
        read_card(tmp_path / "model.keras")


def test_a_card_shows_how_it_went():
    card = dataclasses.replace(CARD, test_accuracy=0.75, n_test=8, n_train=1_200, elapsed_s=61.4)
    assert repr(card).splitlines() == [
        "ModelCard of a network for 2 classes of images of 8×8×1",
        "  trained on  digits: 1,200 images, 61 s",
        "  validation  50.00% of 1 images, after epoch 1 of 1",
        "  test        75.00% of 8 images",
    ]
    assert repr(CARD).splitlines()[3] == "  test        none of 0 images"


def test_epochs_of_which_too_little_is_known_are_not_drawn():
    (only,) = CARD.curves
    assert only["history"] == (EPOCH,) and only["best_epoch"] == 1
    for lacking in ({"epoch": 2, "loss": 0.5}, {"epoch": 2, "loss": 0.5, "accuracy": 0.5}):
        assert dataclasses.replace(CARD, history=(EPOCH, lacking)).curves == ()


UNPICKED = {"epoch": 1, "loss": 0.5, "accuracy": 0.25}
MEMBER = {
    "seed": 3,
    "history": (UNPICKED,),
    "best_epoch": None,
    "validation_accuracy": None,
    "test_accuracy": 0.5,
    "elapsed_s": 2.0,
}


def test_a_card_of_several_networks_comes_back_as_it_was(tmp_path: Path):
    card = dataclasses.replace(
        CARD,
        history=(),
        best_epoch=None,
        validation_accuracy=None,
        members=(MEMBER, {**MEMBER, "seed": 4}),
    )
    write_card(card, tmp_path / "model.json")
    again = read_card(tmp_path / "model.keras")
    assert again.members == card.members == again.trainings == again.curves
    assert again.epochs == 2
    assert "none: all were trained on, the mean of 2 networks, after epochs 1 of 1, 1 of 1" in repr(
        again
    )
