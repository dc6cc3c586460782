"""JSON and TOML of strangers: read within bounds, and taken up into records of what they hold.

A record's annotations are all there is to say of it: what they don't allow is refused, by name and
value, and what comes out has the types that mypy takes it to have.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Literal, TypeVar

from cnnfeat.regular import open_regular

T = TypeVar("T")

SIZE_LIMIT = 256 << 20  # bytes
DEPTH_LIMIT = 64
_WHOLE_LIMIT = 2**64


# A string, or the rest of the text where one doesn't end: never looked at twice.
_STRING = re.compile(r'"(?:[^"\\]++|\\.?+)*+"?+', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_NO_CHARACTER = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_PART}\.[ \t]*+){{{DEPTH_LIMIT}}}", re.MULTILINE)
_TOML_LIMIT = 1 << 20
_HALF = re.compile("[\ud800-\udfff]")
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60
_SHOWN.maxlevel = 2


@dataclass(frozen=True, slots=True)
class Range:
    """A number's allowed range, both ends included unless `above` says the lower is not."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def allows(self, value: float) -> bool:
        """Whether `value` lies inside; NaN never does."""
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and value == value  # noqa: PLR0124 - NaN
        )

    def __str__(self) -> str:
        ends = []
        if self.low is not None:
            ends.append(f"at least {_digits(self.low)}")
        if self.above is not None:
            ends.append(f"more than {_digits(self.above)}")
        if self.high is not None:
            ends.append(f"at most {_digits(self.high)}")
        return " and ".join(ends)


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True, slots=True)
class Longest:
    """How many characters a text may have."""

    length: int

    def allows(self, value: str) -> bool:
        """Whether `value` is no longer."""
        return len(value) <= self.length

    def __str__(self) -> str:
        return f"at most {self.length:,} characters"


@dataclass(frozen=True, slots=True)
class Items:
    """How many items a list has."""

    n: int

    def allows(self, value: Sequence[object]) -> bool:
        """Whether `value` has so many."""
        return len(value) == self.n

    def __str__(self) -> str:
        return f"{self.n:,} items"


Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0)]
Length = Annotated[int, Range(1)]  # of an axis
Positive = Annotated[float, Range(above=0)]
Duration = Annotated[float, Range(0)]  # seconds
Name = Annotated[str, Longest(4096)]  # a path's length, at most


def read_document(path: Path) -> dict[str, object]:
    """Read a file of JSON that holds one object; see `parse_document`.

    Raises
    ------
    OSError
        If it can't be read.
    ValueError
        If it is too large, is no JSON, or holds anything else.
    """
    with open_regular(path) as file:
        return parse_document(file.read(SIZE_LIMIT + 1))


def parse_document(text: str | bytes, *, finite: bool = True) -> dict[str, object]:
    """Parse JSON that holds one object.

    Parameters
    ----------
    text : str or bytes
        In UTF-8, at most 256 MiB, at most 64 objects or lists one in another.
    finite : bool
        Whether NaN and infinity, which are no JSON, are refused; Keras writes them.

    Raises
    ------
    ValueError
        If it is too large, is no JSON, or holds anything else.
    """
    value = parse_value(text, finite=finite)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind_of(value)}, and should hold a record")
    return value


def parse_value(text: str | bytes, *, finite: bool = True) -> object:
    """Parse JSON of any kind; see `parse_document`."""
    if len(text) > SIZE_LIMIT:
        raise ValueError(f"it has more than {SIZE_LIMIT >> 20} MiB")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    _check_depth(text)
    value: object = json.loads(
        text,
        parse_int=_whole,
        parse_float=_finite if finite else float,
        parse_constant=_constant if finite else float,
    )
    if _NO_CHARACTER.search(text):
        _check_texts(value)
    return value


def parse_toml(text: str) -> dict[str, object]:
    """Parse TOML of at most 1 MiB, whose keys and lists are of bounded depth.

    Raises
    ------
    ValueError
        If it is too large, or no TOML.
    """
    if len(text) > _TOML_LIMIT:
        raise ValueError(f"it has {len(text):,} characters; at most {_TOML_LIMIT:,} are read")
    if _LONG_KEY.search(text):  # takes memory by the square of its length
        raise ValueError(f"it nests more than {DEPTH_LIMIT} levels deep")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"it nests more than {DEPTH_LIMIT} levels deep") from error


def _check_depth(text: str) -> None:
    """Look how deep brackets stand before a parser calls itself for each of them."""
    if text.count("[") + text.count("{") <= DEPTH_LIMIT:
        return
    depth = 0
    for bracket in _NO_BRACKETS.sub("", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH_LIMIT:
            raise ValueError(f"it nests more than {DEPTH_LIMIT} levels deep")


def _check_texts(value: object) -> None:
    """Refuse texts that can be written to no terminal, or be no name of a file."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str):
            if "\0" in item:
                raise ValueError("it holds a text with the character NUL")
            if any("\ud800" <= character <= "\udfff" for character in item):
                raise ValueError("it holds half of a surrogate pair, which is no character")


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) < 25 else _WHOLE_LIMIT
    if abs(number) >= _WHOLE_LIMIT:
        raise ValueError(f"it holds {digits[:12]}…, a whole number of {len(digits):,} digits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"it holds {digits[:24]}, a number too large")
    return number


def _constant(word: str) -> float:
    raise ValueError(f"it holds {word}, which is no number in JSON")


def printable(text: str) -> str:
    """Show bytes of a name that aren't UTF-8, for which Python has half characters, as `\\xff`."""
    return _HALF.sub(_byte, text)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Write JSON, in which texts stand as `printable` shows them."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return _HALF.sub(lambda half: _byte(half).replace("\\", "\\\\"), text)


def _byte(half: re.Match[str]) -> str:
    return f"\\x{ord(half[0]) & 0xFF:02x}"


def take_up(kind: type[T], document: Mapping[str, object], *, at: str = "") -> T:
    """Make a record of a JSON object, each field checked against its annotation.

    Parameters
    ----------
    kind : type
        A dataclass or a `TypedDict`, of texts, numbers, truth values, `Literal`, `Annotated` with
        a `Range`, `Longest` or `Items`, tuples, mappings by text, unions, and records of such.
        Fields that have a default need not be there; keys that are no fields are left alone.
    document : mapping
        What JSON holds.
    at : str
        Where it stands in a larger document, for messages: "layers[2]".

    Raises
    ------
    ValueError
        With the key and the value, and what is allowed.
    """
    hints, needed = _fields_of(typing.cast("Hashable", kind))
    missing = [name for name in hints if name in needed and name not in document]
    if missing:
        raise ValueError(f"{at or 'it'} lacks {', '.join(missing)}")
    before = f"{at}." if at else ""
    return kind(
        **{
            name: _taken(hint, document[name], before + name)
            for name, hint in hints.items()
            if name in document
        }
    )


@cache
def _fields_of(kind: Hashable) -> tuple[dict[str, object], frozenset[str]]:
    """Annotations by name, and the names that must be there."""
    # `Json` is whatever a document holds: checked by having been parsed.
    hints = typing.get_type_hints(kind, localns={"Json": object}, include_extras=True)
    if not is_dataclass(kind):
        total = getattr(kind, "__total__", True)
        optional = {name for name, hint in hints.items() if not total or _is_optional(hint)}
        plain = {
            name: typing.get_args(hint)[0] if _is_optional(hint) else hint
            for name, hint in hints.items()
        }
        return plain, frozenset(hints.keys() - optional)
    needed = {
        item.name
        for item in fields(kind)
        if item.default is MISSING and item.default_factory is MISSING
    }
    return {item.name: hints[item.name] for item in fields(kind)}, frozenset(needed)


def _is_optional(hint: object) -> bool:
    return typing.get_origin(hint) is typing.NotRequired


def _taken(hint: object, value: object, at: str) -> object:
    """What a value is as its annotation has it."""
    chosen = next((one for one in _alternatives(hint) if _fits(one, value)), None)
    if chosen is None:
        allowed = " or ".join(dict.fromkeys(map(_words, _alternatives(hint))))
        raise ValueError(f"{at} must be {allowed}, not {_SHOWN.repr(value)}")
    origin, args = typing.get_origin(chosen), typing.get_args(chosen)
    if origin is Annotated:
        inner = _taken(args[0], value, at)
        if not all(bound.allows(inner) for bound in args[1:]):
            raise ValueError(f"{at} must be {_words(chosen)}, not {_SHOWN.repr(value)}")
        return inner
    if chosen is float:
        return float(typing.cast("float", value))
    if isinstance(value, list) and args:
        return _items(origin, args, value, at)
    if isinstance(value, dict) and args:
        return {
            name: _taken(args[1], one, f"{at}[{_SHOWN.repr(name)}]") for name, one in value.items()
        }
    if isinstance(value, dict) and chosen is not object:
        return take_up(typing.cast("type[object]", chosen), value, at=at)
    return value


def _items(origin: object, args: tuple[object, ...], value: list[object], at: str) -> object:
    """A list's items: of one annotation each, or all of the last where that is `...`."""
    alike = origin is not tuple or args[-1] is Ellipsis
    if not alike and len(args) != len(value):
        raise ValueError(f"{at} must have {len(args)} items, not {len(value)}")
    if alike and args[0] is str and all(type(one) is str for one in value):
        return tuple(value) if origin is tuple else value  # a large run's ids, all at once
    hints = [args[0]] * len(value) if alike else args
    taken = [
        _taken(hint, one, f"{at}[{place}]")
        for place, (hint, one) in enumerate(zip(hints, value, strict=True))
    ]
    return tuple(taken) if origin is tuple else taken


def _alternatives(hint: object) -> tuple[object, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _fits(hint: object, value: object) -> bool:
    """Whether a value is of the kind that a hint without alternatives names."""
    origin = typing.get_origin(hint)
    if hint is object:
        return True
    if origin is Annotated:
        return _fits(typing.get_args(hint)[0], value)
    if origin is Literal:
        return any(type(one) is type(value) and one == value for one in typing.get_args(hint))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(typing.cast("float", value))
    if hint in _WORDS:
        return type(value) is hint
    return isinstance(value, list if origin in (tuple, list, Sequence) else dict)


_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def _words(hint: object) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_words(args[0])} ({' and '.join(map(str, args[1:]))})"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if hint in _WORDS:
        return _WORDS[hint]
    return "a list" if origin in (tuple, list, Sequence) else "a record"


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else _WORDS[type(value)]
