"""TOML in, validated dataclasses out.

One file can be a whole run: a table a stage. Every key has a type, a default and a range, all
stated once, in the dataclasses below; the command line takes its own defaults from here.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from cnnfeat.errors import ConfigError, MissingInputError, near_names

if TYPE_CHECKING:
    from cnnfeat.records import Json

T = TypeVar("T")


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


def _within(
    default: T, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> T:
    """Declare a dataclass field with a default and a range."""
    return field(default=default, metadata={"range": Range(low, high, above)})


@dataclass(frozen=True, slots=True)
class DataOptions:
    """`[data]`: where images come from."""

    source: str = "auto"
    dir: str | None = None


@dataclass(frozen=True, slots=True)
class ConvOptions:
    """`[[network.conv]]`: convolution, batch norm, pooling, ReLU, dropout, in this order."""

    filters: int = _within(16, low=1, high=65_536)
    kernel_size: int = _within(5, low=1, high=1_024)
    pool_size: int = _within(2, low=1, high=1_024)  # 1: no pooling
    batch_norm: bool = False
    dropout: float = _within(0.0, low=0, high=0.99)


@dataclass(frozen=True, slots=True)
class DenseOptions:
    """`[[network.dense]]`: one hidden dense layer with ReLU."""

    units: int = _within(128, low=1, high=1_048_576)
    batch_norm: bool = False
    dropout: float = _within(0.0, low=0, high=0.99)


@dataclass(frozen=True, slots=True)
class ArchitectureOptions:
    """`[network]`: a small convolutional network. The defaults are the seed network."""

    conv: tuple[ConvOptions, ...] = (ConvOptions(filters=16), ConvOptions(filters=36))
    dense: tuple[DenseOptions, ...] = (DenseOptions(),)
    weight_stddev: float = _within(0.05, above=0, high=10)  # truncated normal
    bias: float = _within(0.05, low=-10, high=10)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """`[train]`: how the network is trained."""

    epochs: int | Literal["auto"] = field(
        default="auto", metadata={"range": Range(low=1, high=100_000)}
    )  # auto: 6, or as many as make 1,500 steps
    batch_size: int = _within(128, low=1, high=1_048_576)
    learning_rate: float = _within(2e-3, above=0, high=10)  # falls to 0 along a half cosine
    seed: int = _within(0, low=0, high=2**32 - 1)
    validation: float = _within(0.1, above=0, high=0.5)  # fraction of the training split
    patience: int = _within(0, low=0, high=100_000)  # epochs without gain before a stop; 0: never


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """`[extract]`: which activations, and how."""

    layer: tuple[str, ...] = ("conv2",)
    split: tuple[str, ...] = ()  # (): all of them
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: int | Literal["auto"] | None = field(
        default=None, metadata={"range": Range(low=1, high=1_048_576)}
    )  # None: 512, fewer if the images are large
    pool: Literal["none", "avg", "max", "flatten"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, slots=True)
class SvmOptions:
    """`[svm]`: the support vector machine."""

    layer: tuple[str, ...] = ()  # (): the only one in the file
    kernel: Literal["linear", "rbf", "poly", "nystroem"] = "linear"
    C: float | Literal["auto"] = field(default="auto", metadata={"range": Range(above=0, high=1e9)})
    gamma: float | Literal["auto"] = field(default="auto", metadata={"range": Range(above=0)})
    normalize: Literal["standard", "l2", "none"] = "standard"
    pca: int | None = field(default=None, metadata={"range": Range(low=1)})
    folds: int = _within(5, low=2, high=100)
    seed: int = _within(0, low=0, high=2**32 - 1)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """A whole run: one table a stage."""

    data: DataOptions = DataOptions()
    network: ArchitectureOptions = ArchitectureOptions()
    train: TrainOptions = TrainOptions()
    extract: ExtractOptions = ExtractOptions()
    svm: SvmOptions = SvmOptions()


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
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(
            f"no configuration file {path}", hint="see configs/ for whole runs"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8 text: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def parse_config(table: Mapping[str, object], *, where: str = "config") -> RunOptions:
    """Check a parsed TOML document and make the records."""
    return _build(RunOptions, table, f"{where}: ", "")


def check_field(record: type, name: str, value: object, *, label: str) -> object:
    """Check one value as the field `name` of a config `record` would be.

    Raises
    ------
    ConfigError
        With `label` in front, what was given, and what is allowed.
    """
    spec = {item.name: item for item in dataclasses.fields(record)}[name]
    return _convert(spec, typing.get_type_hints(record)[name], value, label)


def to_dict(config: object) -> dict[str, Json]:
    """Turn a config record into plain dictionaries and lists, as `json` and TOML have them."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def _build(record: type[T], table: object, where: str, name: str) -> T:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}[{name}] must be a table, not {table!r}")
    fields = {item.name: item for item in dataclasses.fields(record)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            place = f"table [{name}]" if name else "the file's top level"
            raise ConfigError(
                f"{where}unknown key {key!r} in {place}; it takes: {', '.join(fields)}",
                hint=near_names(str(key), fields),
            )
    hints = typing.get_type_hints(record)
    values = {
        key: _value(fields[key], hints[key], value, where, f"{name}.{key}" if name else key)
        for key, value in table.items()
    }
    return record(**values)


def _value(
    spec: dataclasses.Field[object], hint: object, value: object, where: str, name: str
) -> object:
    inner = _item_type(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[object]", hint), value, where, name)
    if dataclasses.is_dataclass(inner):
        if not isinstance(value, list):
            raise ConfigError(
                f"{where}{name} must be an array of tables, [[{name}]], not {value!r}"
            )
        return tuple(
            _build(typing.cast("type[object]", inner), item, where, name) for item in value
        )
    return _convert(spec, hint, value, f"{where}{name}")


def _item_type(hint: object) -> object:
    """The X of tuple[X, ...], or None."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _convert(spec: dataclasses.Field[object], hint: object, value: object, label: str) -> object:
    if _item_type(hint) is str:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{label} must be text or a list of texts, not {value!r}")
        return tuple(items)
    allowed = spec.metadata.get("range", Range())
    for choice in _alternatives(hint):
        if typing.get_origin(choice) is Literal:
            if value in typing.get_args(choice) and isinstance(value, str):
                return value
        elif choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(_in_range(float(value), allowed, label))
        elif isinstance(choice, type) and type(value) is choice:
            return _in_range(value, allowed, label) if choice is int else value
    hint_text = ""
    if isinstance(value, str):
        words: list[str] = [
            w for c in _alternatives(hint) for w in typing.get_args(c) if isinstance(w, str)
        ]
        hint_text = near_names(value, words)
    raise ConfigError(f"{label} must be {_describe(hint, allowed)}, not {value!r}", hint=hint_text)


def _alternatives(hint: object) -> tuple[object, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _in_range(value: object, allowed: Range, label: str) -> typing.Any:
    if not allowed.allows(typing.cast("float", value)):
        raise ConfigError(f"{label} must be {allowed}, not {value}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _describe(hint: object, allowed: Range) -> str:
    words: list[str] = []
    for choice in _alternatives(hint):
        if typing.get_origin(choice) is Literal:
            words.extend(repr(word) for word in typing.get_args(choice))
        elif choice in (int, float):
            span = str(allowed)
            words.append(_WORDS[typing.cast("type", choice)] + (f" ({span})" if span else ""))
        elif isinstance(choice, type) and choice in _WORDS:
            words.append(_WORDS[choice])
    return " or ".join(words)
