"""A stage is redone when its inputs, its outputs or cnnfeat's version have changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnfeat import stages
from cnnfeat.errors import OutputExistsError, UsageError
from cnnfeat.stages import StageBook

INPUTS = {"seed": 1, "data": "abc"}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder in which one stage is done."""
    (tmp_path / "model.keras").write_text("model", "utf-8")
    StageBook(tmp_path / "run.json").record("train", INPUTS, [tmp_path / "model.keras"])
    return tmp_path


def test_a_stage_is_current_until_something_changes(done: Path, monkeypatch: pytest.MonkeyPatch):
    assert StageBook(done / "run.json").is_current("train", INPUTS)
    assert not StageBook(done / "run.json").is_current("train", INPUTS | {"seed": 2})
    assert not StageBook(done / "run.json").is_current("extract", INPUTS)
    monkeypatch.setattr(stages, "__version__", "9")
    assert not StageBook(done / "run.json").is_current("train", INPUTS)


def test_a_changed_or_lost_output_is_redone(done: Path):
    (done / "model.keras").write_text("other", "utf-8")
    assert not StageBook(done / "run.json").is_current("train", INPUTS)
    (done / "model.keras").unlink()
    assert not StageBook(done / "run.json").is_current("train", INPUTS)


def test_only_its_own_outputs_are_replaced(done: Path):
    outputs = [done / "model.keras", done / "absent.json"]
    StageBook(done / "run.json").check_owned("train", outputs, overwrite=False)
    (done / "model.keras").write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match=r"model\.keras exists and is not what"):
        StageBook(done / "run.json").check_owned("train", outputs, overwrite=False)
    StageBook(done / "run.json").check_owned("train", outputs, overwrite=True)
    with pytest.raises(OutputExistsError, match="exists"):
        StageBook(done / "other.json").check_owned("train", outputs, overwrite=False)


def test_what_a_stage_that_failed_wrote_is_its_own_and_nothing_else(tmp_path: Path):
    half, later = tmp_path / "svm.skops", tmp_path / "svm.json"
    book = StageBook(tmp_path / "run.json")
    book.begin("svm", [half, later])
    half.write_text("half", "utf-8")
    book.leave("svm", [half, later])
    again = StageBook(tmp_path / "run.json")
    assert not again.is_current("svm", INPUTS)
    again.check_owned("svm", [half, later], overwrite=False)
    later.write_text("precious", "utf-8")
    with pytest.raises(OutputExistsError, match=r"svm\.json exists and is not what"):
        again.check_owned("svm", [half, later], overwrite=False)


def test_a_stage_that_failed_before_it_wrote_is_as_it_was(done: Path):
    book = StageBook(done / "run.json")
    book.begin("train", [done / "model.keras"])
    book.leave("train", [done / "model.keras"])
    assert StageBook(done / "run.json").is_current("train", INPUTS)


def book_of(*, format: str = "cnnfeat-run", format_version: int = 1, **stages: object) -> str:
    return json.dumps({"format": format, "format_version": format_version, "stages": stages})


SOUND = {"inputs": "ab", "outputs": {"model.keras": [5, 1]}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "it holds a list, and should hold a record"),
        ("[" * 100_000, "it nests more than 64 levels deep"),
        ('{"format": "else"}', "it lacks format_version, stages"),
        (book_of(format="else"), "format must be 'cnnfeat-run', not 'else'"),
        (book_of(format_version=2), "format_version must be a whole number (at least 1 and at "),
        (book_of(train=1), "stages['train'] must be a record, not 1"),
        (book_of(train={"inputs": "ab"}), "stages['train'] lacks outputs"),
        (book_of(train={**SOUND, "inputs": 3}), "stages['train'].inputs must be text"),
        (book_of(train={**SOUND, "outputs": []}), "outputs must be a record, not []"),
        (
            book_of(train={**SOUND, "outputs": {"a": ["5", 1]}}),
            "outputs['a'][0] must be a whole number (at least 0), not '5'",
        ),
        (book_of(train={**SOUND, "begun": [1]}), "stages['train'].begun[0] must be text"),
        (book_of(train={**SOUND, "begun": "ab"}), "stages['train'].begun must be a list"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "run.json").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=r"run\.json is no record of an earlier run") as caught:
        StageBook(tmp_path / "run.json")
    assert words in str(caught.value)
