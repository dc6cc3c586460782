"""What a field of an options record says of itself, and what is made of it.

Records are plain frozen dataclasses. A field's type, default and `Knob` are all there is to say of
an option; checks, words for people, and what is kept of it beside a result come from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from cnnfeat.documents import Range
from cnnfeat.errors import ConfigError, near_names
from cnnfeat.records import Json

T = TypeVar("T")


_ANY = Range()


@dataclass(frozen=True, slots=True)
class Knob:
    """What a field says of itself besides its name, type and default."""

    help: str = ""
    range: Range = _ANY
    flag: str = ""  # on the command line; "": made from the name, None of them where help is ""
    shown: str = ""  # what help says the default is, where that is no value
    metavar: str = ""
    env: str = ""  # a variable besides CNNFEAT_<COMMAND>_<OPTION>
    # Turns text or what TOML has into the value; a ValueError says why it can't be.
    parse: Callable[[object], object] | None = None
    changes_result: bool = True  # False: time-outs, memory, where data lie


_PLAIN = Knob()


def knob_of(item: dataclasses.Field[object]) -> Knob:
    """What a field of a record says of itself."""
    return typing.cast("Knob", item.metadata.get("knob", _PLAIN))


def option(
    default: T,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    flag: str = "",
    shown: str = "",
    metavar: str = "",
    env: str = "",
    parse: Callable[[object], object] | None = None,
    changes_result: bool = True,
) -> T:
    """Declare a field; see `Knob` and `Range`. Without `help` it has no flag, a TOML key alone."""
    within = Range(low, high, above)
    knob = Knob(help, within, flag, shown, metavar, env, parse, changes_result)
    return field(default=default, metadata={"knob": knob})


def fields_of(record: type | object) -> dict[str, dataclasses.Field[object]]:
    """List a record's fields by name; its own before those of what it is made from."""
    kind = record if isinstance(record, type) else type(record)
    known = {item.name: item for item in dataclasses.fields(kind)}
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "__annotations__", ())}
    return {name: known[name] for name in sorted(known, key=lambda name: name in inherited)}


def to_dict(record: object) -> dict[str, Json]:
    """Turn a record into plain dictionaries and lists, as `json` and TOML have them."""
    return dataclasses.asdict(record)  # type: ignore[call-overload, no-any-return]


def result_options(record: object) -> dict[str, Json]:
    """All options of a record that change what is made, by name, as JSON has them.

    What a stage of a run depends on, and what is kept beside its result.
    """
    return {
        name: _plain(getattr(record, name))
        for name, item in fields_of(record).items()
        if knob_of(item).changes_result
    }


def _plain(value: object) -> Json:
    """What JSON makes of a value; of pairs of a name and a value, an object."""
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        if value and all(isinstance(one, tuple) for one in value):
            return {str(name): _plain(one) for name, one in value}
        return [_plain(one) for one in value]
    return typing.cast("Json", value)


def resume_settings(options: Mapping[str, Json], **came_to: Json) -> dict[str, str]:
    """Say in words what a resumed run must have in common with the first.

    Parameters
    ----------
    options : mapping
        From `result_options`.
    **came_to : Json
        What an option that was left open, or could be spelled in several ways, came to.
    """
    values = {**options, **came_to}
    return {name.replace("_", " "): _said(value) for name, value in values.items()}


def _said(value: Json) -> str:
    if value is None or value in ((), [], ""):
        return "not given"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_said(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def from_record(kind: type[T], document: object) -> T:
    """Make a record of what `result_options` wrote; what is not there is at its default.

    Raises
    ------
    ConfigError
        If there is an option that is not known here, or a value that can't be: another version
        wrote it, and what it asks for can't be done.
    """
    given = document if isinstance(document, Mapping) else {}
    fields, hints = fields_of(kind), typing.get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if value in (None, [], {}, ""):
            continue
        if name not in fields:
            raise ConfigError(f"{name} = {value!r} is not known here")
        values[name] = convert(fields[name], hints[name], value, name)
    return kind(**values)


def checked(record: T) -> T:
    """Check every value of a record that was made in Python, and bring each to its own type.

    Raises
    ------
    ConfigError
        With the option's name, what was given, and what is allowed.
    """
    hints = typing.get_type_hints(type(record))
    values = {
        name: convert(item, hints[name], value, name)
        for name, item in fields_of(record).items()
        if (value := getattr(record, name)) is not None and value != item.default
    }
    return dataclasses.replace(record, **values)  # type: ignore[type-var]


def check_field(record: type, name: str, value: object, *, label: str) -> object:
    """Check one value as the field `name` of an options `record` would be.

    Raises
    ------
    ConfigError
        With `label` in front, what was given, and what is allowed.
    """
    return convert(fields_of(record)[name], typing.get_type_hints(record)[name], value, label)


def from_text(record: type, name: str, text: str) -> object:
    """Read a word of the command line as the simplest type that a field allows."""
    allowed = alternatives(typing.get_type_hints(record)[name])
    for kind in (int, float):
        if kind in allowed:
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def item_type(hint: object) -> object:
    """The X of tuple[X, ...], or None."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def convert(spec: dataclasses.Field[object], hint: object, value: object, label: str) -> object:
    """Turn a value into what a field of this type holds, or say what is allowed."""
    parse = knob_of(spec).parse
    if parse is not None:
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{label}: {error}") from error
    if item_type(hint) is str:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{label} must be text or a list of texts, not {value!r}")
        if not all(items) or (spec.default and not items):
            raise ConfigError(f"{label} must name something, not {value!r}")
        return tuple(items)
    allowed = knob_of(spec).range
    for choice in alternatives(hint):
        if typing.get_origin(choice) is Literal:
            if value in typing.get_args(choice) and isinstance(value, str):
                return value
        elif choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(_in_range(float(value), allowed, label))
        elif isinstance(choice, type) and type(value) is choice:
            return _in_range(value, allowed, label) if choice is int else value
    words = [w for c in alternatives(hint) for w in typing.get_args(c) if isinstance(w, str)]
    raise ConfigError(
        f"{label} must be {_describe(hint, allowed)}, not {value!r}",
        hint=near_names(value, words) if isinstance(value, str) else "",
    )


def alternatives(hint: object) -> tuple[object, ...]:
    """The types that a union allows, or the one type there is; None is no alternative."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(one for one in typing.get_args(hint) if one is not types.NoneType)
    return (hint,)


def _in_range(value: object, allowed: Range, label: str) -> typing.Any:
    if not allowed.allows(typing.cast("float", value)):
        raise ConfigError(f"{label} must be {allowed}, not {value}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _describe(hint: object, allowed: Range) -> str:
    return " or ".join(_descriptions(hint, allowed))


def _descriptions(hint: object, allowed: Range) -> Iterator[str]:
    for choice in alternatives(hint):
        if typing.get_origin(choice) is Literal:
            yield from (repr(word) for word in typing.get_args(choice))
        elif choice in (int, float):
            span = str(allowed)
            yield _WORDS[typing.cast("type", choice)] + (f" ({span})" if span else "")
        elif isinstance(choice, type) and choice in _WORDS:
            yield _WORDS[choice]
