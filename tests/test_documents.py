"""JSON of strangers: read within bounds, taken up by the annotations of records."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import pytest

from cnnfeat import documents
from cnnfeat.documents import (
    Count,
    Longest,
    Range,
    Share,
    parse_document,
    parse_toml,
    parse_value,
    read_document,
    take_up,
)
from cnnfeat.records import Json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, -2.5, true, null, "é"]}', {"a": [1, -2.5, True, None, "é"]}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "\\\\u0000"}', {"a": "\\u0000"}),
        ('{"a": "[[[[" }', {"a": "[[[["}),
        ('{"a": 18446744073709551615}', {"a": 2**64 - 1}),
        ('{"a": ' + "[" * 63 + "]" * 63 + "}", None),
    ],
    ids=["kinds", "twice", "pair", "no NUL", "brackets in text", "64 bits", "64 levels"],
)
def test_sound_documents_are_read(text, value):
    assert parse_document(text) == (value or json.loads(text))
    assert parse_document(text.encode()) == (value or json.loads(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ('{"a": ' + "[" * 64 + "]" * 64 + "}", "it nests more than 64 levels deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "it nests more than 64 levels deep"),
        ("[" * 100_000, "it nests more than 64 levels deep"),
        ('{"\\"' + '": [{"\\"[' * 65, "it nests more than 64 levels deep"),
        ('{"a": NaN}', "it holds NaN, which is no number in JSON"),
        ('{"a": -Infinity}', "it holds -Infinity, which is no number in JSON"),
        ('{"a": 1e999}', "it holds 1e999, a number too large"),
        ('{"a": ' + "9" * 5000 + "}", "it holds 999999999999…, a whole number of 5,000 digits"),
        ('{"a": 18446744073709551616}', "a whole number of 20 digits"),
        ('{"a": "\\ud800"}', "it holds half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "it holds half of a surrogate pair"),
        ('{"a": [{"b": "x\\u0000"}]}', "it holds a text with the character NUL"),
        ("[1]", "it holds a list, and should hold a record"),
        ("null", "it holds null, and should hold a record"),
        ("1.5", "it holds a number, and should hold a record"),
    ],
    ids=range(17),
)
def test_other_documents_are_refused(text, words):
    with pytest.raises(ValueError) as caught:
        parse_document(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_text_without_end_is_looked_through_once():
    """Each quotation mark could begin a text that never ends: tried at each, this takes hours."""
    with pytest.raises(ValueError, match="Unterminated string"):
        parse_document("[" + "[]," * 70 + '"' + '\\"' * 500_000 + "\\")


def test_what_keras_writes_of_infinity_is_read():
    assert parse_value('{"a": [Infinity, 1e999]}', finite=False) == {"a": [float("inf")] * 2}


def test_a_file_is_read_no_further_than_its_limit(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": 12345678}', "utf-8")
    assert read_document(path) == {"a": 12345678}
    monkeypatch.setattr(documents, "SIZE_LIMIT", 14)
    with pytest.raises(ValueError, match="it has more than 0 MiB"):
        read_document(path)


class Part(TypedDict):
    name: str
    size: NotRequired[Count]


@dataclass(frozen=True, slots=True)
class Whole:
    text: Annotated[str, Longest(5)]
    share: Share | None
    kind: Literal["x", "y"]
    shape: tuple[Count, Count]
    parts: tuple[Part, ...]
    by_name: Mapping[str, float]
    facts: Mapping[str, Json]
    number: int | float = 7
    yes: bool = True
    inner: Whole | None = None


SOUND = {
    "text": "abcde",
    "share": 1,
    "kind": "x",
    "shape": [2, 0],
    "parts": [{"name": "p", "size": 3}, {"name": "q", "more": 1}],
    "by_name": {"a": 1.5},
    "facts": {"any": [None, {"x": [1, "a"]}], "b": {"c": {"d": []}}},
}


def test_a_record_is_taken_up_with_its_types():
    whole = take_up(Whole, {**SOUND, "inner": {**SOUND, "share": None}, "unknown": 1})
    assert whole == Whole(
        "abcde", 1.0, "x", (2, 0), ({"name": "p", "size": 3}, {"name": "q"}), {"a": 1.5},
        SOUND["facts"], inner=Whole(
            "abcde", None, "x", (2, 0), ({"name": "p", "size": 3}, {"name": "q"}), {"a": 1.5},
            SOUND["facts"],
        ),
    )  # fmt: skip
    assert type(whole.share) is float and type(whole.number) is int


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": 7}, "text must be text (at most 5 characters), not 7"),
        ({"text": "abcdef"}, "text must be text (at most 5 characters), not 'abcdef'"),
        ({"share": 1.5}, "share must be a number (at least 0 and at most 1), not 1.5"),
        (
            {"share": True},
            "share must be a number (at least 0 and at most 1) or null, not True",
        ),
        ({"share": float("nan")}, "not nan"),
        ({"kind": "z"}, "kind must be 'x' or 'y', not 'z'"),
        ({"kind": []}, "kind must be 'x' or 'y', not []"),
        ({"shape": [1]}, "shape must have 2 items, not 1"),
        ({"shape": [1, -1]}, "shape[1] must be a whole number (at least 0), not -1"),
        ({"shape": [1, 1.0]}, "shape[1] must be a whole number (at least 0), not 1.0"),
        ({"shape": [True, 1]}, "shape[0] must be a whole number (at least 0), not True"),
        ({"parts": {}}, "parts must be a list, not {}"),
        ({"parts": [{"name": "a"}, {"size": 1}]}, "parts[1] lacks name"),
        ({"parts": [{"name": None}]}, "parts[0].name must be text, not None"),
        ({"parts": [[]]}, "parts[0] must be a record, not []"),
        ({"by_name": {"a": "b"}}, "by_name['a'] must be a number, not 'b'"),
        ({"by_name": {"k" * 10**6: "b"}}, "kk'] must be a number, not 'b'"),
        ({"facts": None}, "facts must be a record, not None"),
        ({"number": "1"}, "number must be a whole number or a number, not '1'"),
        ({"yes": 1}, "yes must be true or false, not 1"),
        ({"inner": {"text": "a"}}, "inner lacks share, kind, shape, parts, by_name, facts"),
        ({"inner": 3}, "inner must be a record or null, not 3"),
        ({"text": "x" * 10**6}, "xxx"),
        ({"text": [[[["x"] * 100] * 100]]}, "text must be text"),
    ],
    ids=range(24),
)
def test_what_the_annotations_do_not_allow_is_refused(change, words):
    with pytest.raises(ValueError) as caught:
        take_up(Whole, {**SOUND, **change})
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"^it lacks text, shape$"):
        take_up(Whole, {key: SOUND[key] for key in SOUND if key not in ("text", "shape")})


@pytest.mark.parametrize(
    ("allowed", "words"),
    [(Range(1), "at least 1"), (Range(above=0, high=2.5), "more than 0 and at most 2.5")],
    ids=["low", "both"],
)
def test_a_range_says_itself_and_never_allows_nan(allowed, words):
    assert str(allowed) == words
    assert allowed.allows(2) and not allowed.allows(float("nan")) and not allowed.allows(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a = 1",
        '[a."b c".d]\ne.f = [[1, 2], ["x.y.z"]]',
        "# " + "." * 200,
        f"a = '{'x. ' * 99}'",
    ],
    ids=range(5),
)
def test_sound_toml_is_read(text):
    assert parse_toml(text) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "Expected '=' after a key"),
        ("a = " + "[" * 100_000, "it nests more than 64 levels deep"),
        ("a = " + "{a=" * 10_000, "it nests more than 64 levels deep"),
        ("a." * 100_000 + "b = 1", "it nests more than 64 levels deep"),
        ("a = {b=1, " + "a." * 100_000 + "b = 1}", "it nests more than 64 levels deep"),
        ("[" + '"a" . ' * 100_000 + "b]", "it nests more than 64 levels deep"),
        ("a = " + "1" * 5_000, "4300 digits"),
        ("#" * 2_000_000, "it has 2,000,000 characters; at most 1,048,576 are read"),
        ("a" * 1_000_000, "Expected '='"),
        ('"' * 1_000_000, "Expected '='"),
    ],
    ids=range(10),
)
def test_other_toml_is_refused_at_once(text, words):
    with pytest.raises(ValueError) as caught:
        parse_toml(text)
    assert words in str(caught.value)
