"""A run's options from a TOML file: every key and value checked, every mistake named."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from cnnfeat.documents import parse_toml
from cnnfeat.errors import ConfigError, MissingInputError, near_names
from cnnfeat.knobs import convert, fields_of, item_type
from cnnfeat.options import RunOptions
from cnnfeat.regular import read_text

T = TypeVar("T")


def load_config(path: Path) -> RunOptions:
    """Read and check a TOML file.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ConfigError
        If it is not TOML, or a key is unknown, of a wrong type or out of range. The message names
        table and key.
    """
    return parse_config(read_toml(path), where=str(path))


def read_toml(path: Path) -> Mapping[str, object]:
    """Read a TOML file into a dictionary, unchecked but for its syntax."""
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"no configuration file {path}", hint="see configs/ for whole runs"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8 text: {error}") from error
    try:
        return parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def parse_config(
    table: Mapping[str, object], *, where: str = "config", over: RunOptions | None = None
) -> RunOptions:
    """Check a parsed TOML document and make the records; what it doesn't say is as in `over`."""
    options = _build(over or RunOptions(), table, f"{where}: ", "")
    if options.model.path == "":
        raise ConfigError(f"{where}: model.path must name a network, not be empty")
    if options.model.path is not None and "network" in table:
        raise ConfigError(
            f"{where}: [model] path is a network that exists, [network] one to train",
            hint="leave one of them out",
        )
    return options


def parse_override(text: str) -> Mapping[str, object]:
    """Read `train.epochs=3` as a TOML document: the value as TOML has it, else text as it stands.

    Raises
    ------
    ConfigError
        If no key with a dot in it stands before a `=`.
    """
    name, sign, value = text.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not sign or len(keys) < 2 or not all(keys):
        raise ConfigError(
            f"{text!r} is no TABLE.KEY=VALUE", hint="give one, such as --set train.epochs=3"
        )
    document: object
    try:
        document = parse_toml(f"value = {value}")["value"]
    except ValueError:  # a text without quotes, as a shell leaves it
        document = value.strip()
    for key in reversed(keys):
        document = {key: document}
    return typing.cast("Mapping[str, object]", document)


def _build(over: T, table: object, where: str, name: str) -> T:
    record = type(over)
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}[{name}] must be a table, not {table!r}")
    fields = fields_of(record)
    for key in table:
        if key not in fields:
            place = f"table [{name}]" if name else "the file's top level"
            raise ConfigError(
                f"{where}unknown key {key!r} in {place}; it takes: {', '.join(fields)}",
                hint=near_names(str(key), fields) or _elsewhere(str(key), name),
            )
    hints = typing.get_type_hints(record)
    values = {
        key: _value(
            getattr(over, key),
            fields[key],
            hints[key],
            value,
            where=where,
            name=f"{name}.{key}" if name else key,
        )
        for key, value in table.items()
    }
    return dataclasses.replace(over, **values)  # type: ignore[type-var]


def _elsewhere(key: str, name: str) -> str:
    """Name the table that has such a key."""
    if key == "trust_model":
        return "trust is asked for each time, on the command line: --trust-model"
    tables = {f"[{item.name}]": type(item.default) for item in dataclasses.fields(RunOptions)}
    arrays = {
        f"[[{table[1:-1]}.{field}]]": inner
        for table, kind in tables.items()
        for field, hint in typing.get_type_hints(kind).items()
        if dataclasses.is_dataclass(inner := item_type(hint))
    }
    homes = [table for table, kind in {**tables, **arrays}.items() if key in fields_of(kind)]
    return f"{key} stands in {' or '.join(homes)}" if homes and name else ""


def _value(
    over: object,
    spec: dataclasses.Field[object],
    hint: object,
    value: object,
    *,
    where: str,
    name: str,
) -> object:
    inner = item_type(hint)
    if dataclasses.is_dataclass(hint):
        return _build(over, value, where, name)
    if dataclasses.is_dataclass(inner):
        if not isinstance(value, list):
            raise ConfigError(
                f"{where}{name} must be an array of tables, [[{name}]], not {value!r}"
            )
        return tuple(_build(inner(), item, where, name) for item in value)  # type: ignore[operator]
    return convert(spec, hint, value, f"{where}{name}")
