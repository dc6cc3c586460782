"""Every option, once: a frozen record a stage.

A field of a record has a name, a type, a default, a range and a help text. From that come the
TOML key, the command line's flag, the check of a value, what a resumed run must have in common
with the first, the inputs of a run's stages, and what a feature file says of its making. An
option that is added here is in all of them; see `Knob` for what a field can say of itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from cnnfeat.documents import parse_toml
from cnnfeat.errors import ConfigError, MissingInputError, UsageError, near_names
from cnnfeat.knobs import checked, convert, fields_of, item_type, option
from cnnfeat.records import Fit, OnError
from cnnfeat.regular import read_text

T = TypeVar("T")
APPLICATION = "keras:"  # before the name of a model of keras.applications
LIVE = "live:"  # before the name of a network that lives in a program, and in no file
FeedValue: TypeAlias = bool | int | float | str
Size: TypeAlias = tuple[int, int]
Scale: TypeAlias = Literal["unit", "symmetric", "raw", "imagenet", "caffe"]
Pooling: TypeAlias = Literal["none", "avg", "max", "flatten"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
EngineName: TypeAlias = Literal["auto", "tensorflow", "openvino"]


def _parse_device(value: object) -> object:
    """`auto`, `cpu`, or `gpu:0`, which `gpu` is too."""
    found = re.fullmatch(r"auto|cpu|gpu(?::([0-9]{1,4}))?", str(value).lower())
    if not found:
        raise ValueError(f"{value!r} is no device; auto, cpu and gpu:0 are")
    return f"gpu:{int(found[1] or 0)}" if found[0].startswith("gpu") else found[0]


_MOST_PIXELS = 10_000 * 10_000  # that images can be brought to


def _parse_size(value: object) -> object:
    """`224x160`: height and width; `224`: both."""
    parts = (
        value
        if isinstance(value, list | tuple)
        else str(value).lower().replace("×", "x").split("x")
    )
    sides = [int(str(part)) for part in parts if str(part).isdecimal()]
    if not 1 <= len(sides) == len(parts) <= 2 or not all(sides):
        raise ValueError(f"{value!r} is no size; 224x160 is 224 high and 160 wide")
    if sides[0] * sides[-1] > _MOST_PIXELS:
        raise ValueError(f"{value!r} is too large; {_MOST_PIXELS:,} pixels are the most")
    return sides[0], sides[-1]


def _parse_feeds(value: object) -> object:
    """`keep_prob=1.0`, several of them, or a table of names and values."""
    if isinstance(value, Mapping):
        items: list[object] = list(value.items())
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    feeds: dict[str, FeedValue] = {}
    for item in items:
        name, given = item if isinstance(item, tuple) else _split_feed(item)
        if not isinstance(given, bool | int | float | str):
            raise ValueError(f"{name!r} takes a number, a text, true or false, not {given!r}")
        feeds[str(name)] = given
    return tuple(sorted(feeds.items()))


def _split_feed(item: object) -> tuple[str, FeedValue]:
    """Split at the first `=`, and read the value as the simplest type it fits."""
    name, sign, text = str(item).partition("=")
    if not name or not sign:
        raise ValueError(f"{item!r} is no NAME=VALUE; try keep_prob=1.0")
    if text.lower() in ("true", "false"):
        return name, text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(text)
    return name, text


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LEAST_MEMORY = 64 * 2**20


def _parse_bytes(value: object) -> object:
    """`2GiB`, `512MiB`, or a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value).lower())
    if not found or isinstance(value, bool):
        raise ValueError(f"{value!r} is no size; 2GiB and 512MiB are")
    size_bytes = int(float(found[1]) * _UNITS[found[2]])
    if size_bytes < _LEAST_MEMORY:
        raise ValueError(f"must be at least 64MiB, not {value}")
    return size_bytes


def _parse_grid(value: object) -> object:
    """`0.01,0.1,1`, or a list of numbers."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        grid = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no list of numbers; 0.01,0.1,1 is") from None
    if len(set(grid)) < 2 or not all(0 < C < float("inf") for C in grid):
        raise ValueError(f"needs at least 2 different values above 0, not {value}")
    return grid


def _parse_class_weight(value: object) -> object:
    """`balanced`; `cat=2.0`, several of them; or a table of names and numbers."""
    if isinstance(value, Mapping):
        items: list[object] = list(value.items())
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    if items == ["balanced"]:
        return "balanced"
    weights: dict[str, float] = {}
    for item in items:
        name, given = item if isinstance(item, tuple) else str(item).rpartition("=")[::2]
        if not name:
            raise ValueError(f"{item!r} is no NAME=VALUE; cat=2.0 is, and balanced stands alone")
        try:
            weight = float(str(given))
        except ValueError:
            weight = 0.0
        if not 0 < weight <= 1e9:
            raise ValueError(f"{name!r} takes a number above 0 and at most 1e9, not {given!r}")
        weights[str(name)] = weight
    return tuple(sorted(weights.items()))


_RESIZE = "Bring all images to one size, such as 224x224."
_FIT = (
    "How proportions change with the size: stretch them; or keep them, and crop both ends or pad "
    "them with black."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What images are brought to as they are read."""

    resize: Size | None = option(None, _RESIZE, metavar="HxW", parse=_parse_size)
    fit: Fit | None = option(None, _FIT, shown="stretch")
    invert: bool = option(False, "Turn light into dark, and dark into light.")


def check_fit(fit: Fit | None, size: object) -> None:
    """Refuse to be told how images come to a size that is not given.

    Raises
    ------
    UsageError
        With the option that gives one.
    """
    if fit and not size:
        raise UsageError(
            f"fit {fit!r} says how images come to another size, and no size is given",
            hint="give one, such as --resize 64x64",
        )


@dataclass(frozen=True, slots=True)
class DataOptions(FitOptions):
    """`[data]`: where images come from, and what they are brought to."""

    source: str | None = option(
        None,
        "A name (cnnfeat data list), a folder, a file, or an address (s3://bucket/name) of images; "
        "auto: MNIST, else digits.",
        flag="--data",
        metavar="SOURCE",
        shown="auto",
        changes_result=False,  # its fingerprint tells, and its name stands beside it
    )
    dir: str | None = option(
        None,
        "Where data sets are looked for first; then $CNNFEAT_DATA_DIR, then the user cache.",
        flag="--data-dir",
        metavar="PATH",
        env="CNNFEAT_DATA_DIR",
        changes_result=False,
    )
    labels: str | None = option(
        None, "Where labels lie: an array (y.npy, :/y), or a CSV for a folder of pictures."
    )
    id_column: str | None = option(
        None, "The CSV's column of pictures' names.", metavar="NAME", shown="guessed"
    )
    label_column: str | None = option(
        None, "The CSV's column of labels.", metavar="NAME", shown="guessed"
    )
    max_pixels: int | None = option(None, "Refuse larger images.", low=1)
    group_by: str | None = option(
        None,
        "Pictures of one group stay on one side of a division: a manifest's column, or folder.",
        metavar="COLUMN|folder",
    )
    min_per_class: int = option(1, "Leave out classes that have fewer pictures.", low=1)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a network's file is read. Trust is no part of it: it is asked for each time."""

    signature: str | None = option(None, "Which signature of a SavedModel.")
    input: str | None = option(None, "The input that takes the images.")
    feed: tuple[tuple[str, FeedValue], ...] = option(
        (), "A value for a placeholder; may be repeated.", metavar="NAME=VALUE", parse=_parse_feeds
    )
    weights: str | None = option(None, "For keras:NAME: imagenet, none, or a file.")
    architecture: str | None = option(
        None,
        "For a file of weights alone: what they belong to.",
        metavar="model.json|keras:NAME",
    )
    imports: tuple[str, ...] = option(
        (),
        "Run this code to read the network with, layers of your own; may be repeated.",
        flag="--import",
        metavar="FILE.py|MODULE",
    )

    def over(self, recorded: ReadOptions) -> ReadOptions:
        """Put what is said here above what was recorded; feeds one by one, `x:0` is `x`."""
        own, recorded = checked(self), checked(recorded)
        said = {
            name: getattr(own, name)
            for name, item in fields_of(ReadOptions).items()
            if getattr(own, name) != item.default
        }
        names = {name.removesuffix(":0") for name, _ in own.feed}
        kept = tuple(pair for pair in recorded.feed if pair[0].removesuffix(":0") not in names)
        return dataclasses.replace(recorded, **{**said, "feed": (*kept, *own.feed)})


@dataclass(frozen=True, slots=True)
class ModelOptions(ReadOptions):
    """`[model]`: a network that exists, and how it is read."""

    path: str | None = option(
        None,
        "A network: .keras, .h5, SavedModel, GraphDef, checkpoint, or keras:NAME.",
        flag="--model",
        shown="artifacts/model.keras",
        changes_result=False,  # its digest tells
    )


@dataclass(frozen=True, slots=True)
class ConvOptions:
    """`[[network.conv]]`: convolution, batch norm, pooling, ReLU, dropout, in this order."""

    filters: int = option(16, low=1, high=65_536)
    kernel_size: int = option(5, low=1, high=1_024)
    pool_size: int = option(2, low=1, high=1_024)  # 1: no pooling
    batch_norm: bool = False
    dropout: float = option(0.0, low=0, high=0.99)


@dataclass(frozen=True, slots=True)
class DenseOptions:
    """`[[network.dense]]`: one hidden dense layer with ReLU."""

    units: int = option(128, low=1, high=1_048_576)
    batch_norm: bool = False
    dropout: float = option(0.0, low=0, high=0.99)


@dataclass(frozen=True, slots=True)
class ArchitectureOptions:
    """`[network]`: a small convolutional network to train. The defaults are the seed network."""

    conv: tuple[ConvOptions, ...] = (ConvOptions(filters=16), ConvOptions(filters=36))
    dense: tuple[DenseOptions, ...] = (DenseOptions(),)
    weight_stddev: float = option(0.05, above=0, high=10)  # truncated normal
    bias: float = option(0.05, low=-10, high=10)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """`[train]`: how the network is trained."""

    epochs: int | Literal["auto"] = option(
        "auto",
        "Passes over the training images; auto: 6, or as many as make 1,500 steps.",
        low=1,
        high=100_000,
    )
    batch_size: int = option(128, "Images a step.", low=1, high=1_048_576)
    learning_rate: float = option(
        2e-3, "Adam's first; falls to 0 along a cosine.", above=0, high=10
    )
    seed: int = option(0, "Fixes weights, division and order.", low=0, high=2**32 - 1)
    validation: float = option(
        0.1, "Fraction of what is trained on, held back to pick the best epoch.", above=0, high=0.5
    )
    test_fraction: float = option(
        0.2,
        "Fraction held out to test on, for a source without a split for that.",
        above=0,
        high=0.9,
    )
    patience: int = option(0, "Epochs without gain before a stop; 0: never.", low=0, high=100_000)


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How activations are computed from images."""

    precision: Precision = option("float32", "How the network computes.")
    pool: Pooling = option("none", "What is done over an activation's image axes.")
    scale: Scale | None = option(
        None, "How pixels are scaled before the network.", shown="as the model's file says"
    )
    resize: Size | None = option(None, _RESIZE, metavar="HxW", parse=_parse_size)
    fit: Fit | None = option(None, _FIT, shown="stretch")
    device: str = option(
        "auto",
        "What the network computes on; auto: a GPU where TensorFlow sees one.",
        metavar="auto|cpu|gpu:N",
        parse=_parse_device,
    )
    engine: EngineName = option(
        "auto",
        "What runs the network; auto: OpenVINO for deep ones if it is installed, else TensorFlow.",
    )


@dataclass(frozen=True, slots=True)
class ExtractOptions(ProbeOptions):
    """`[extract]`: which activations, of which images, and how they are stored.

    In Python `ExtractOptions(layers=...)` says the same as `layer=...`, and is kept as `layer`.
    """

    layer: tuple[str, ...] = option(
        ("conv2",), "A layer, a tensor, or a pattern such as 'conv*'; may be repeated."
    )
    split: tuple[str, ...] = option((), "Only this split; may be repeated.", shown="all")
    limit: int | None = option(None, "Only the first so many of each split.", low=1)
    batch_size: int | Literal["auto"] | None = option(
        None,
        "Images at a time; auto tries a few sizes.",
        low=1,
        high=1_048_576,
        shown="512, fewer if they are large",
    )
    dtype: Literal["float32", "float16"] = option("float32", "How activations are stored.")
    on_error: OnError = option(
        "raise", "Whether one bad image ends the run or is left out (then exit code 6)."
    )
    layers: dataclasses.InitVar[str | Sequence[str] | None] = None  # no field: `layer` is

    def __post_init__(self, layers: str | Sequence[str] | None) -> None:
        if layers is not None:
            given = (layers,) if isinstance(layers, str) else tuple(layers)
            object.__setattr__(self, "layer", given)


FOLDS = 5


@dataclass(frozen=True, slots=True)
class SvmOptions:
    """`[svm]`: the support vector machine."""

    layer: tuple[str, ...] = option(
        (),
        "A layer of the file; may be repeated: layers are compared. all: every one.",
        shown="the only one",
    )
    kernel: Literal["linear", "rbf", "poly", "nystroem"] = option(
        "linear", "nystroem: an approximation of rbf for many rows."
    )
    C: float | Literal["auto"] = option(
        "auto", "The cost of errors; auto: chosen on training rows.", flag="--C", above=0, high=1e9
    )
    gamma: float | Literal["auto"] = option(
        "auto", "Of rbf and poly; auto: chosen with C.", above=0, high=1e9
    )
    class_weight: Literal["balanced"] | tuple[tuple[str, float], ...] = option(
        (),
        "Factors of C by class; balanced: the rarer a class, the higher. May be repeated.",
        metavar="balanced|NAME=VALUE",
        shown="1 for each",
        parse=_parse_class_weight,
    )
    normalize: Literal["standard", "l2", "none"] = option(
        "standard", "Mean 0 and deviation 1 of features, length 1 of rows, or neither."
    )
    pca: int | None = option(None, "Keep so many principal components.", low=1)
    folds: int | None = option(
        None,
        "Of cross-validations. C is chosen by one without validation rows, or where this is given.",
        low=2,
        high=100,
        shown=f"{FOLDS}",
    )
    grid: tuple[float, ...] | None = option(
        None,
        "Values of C to try.",
        metavar="C,C,...",
        shown="9 half-decades",
        parse=_parse_grid,
    )
    seed: int = option(0, "Fixes folds and samples.", low=0, high=2**32 - 1)
    cv: bool = option(
        False, "Score each row by a machine that hasn't seen it, instead of on a test split."
    )
    test_fraction: float = option(
        0.2, "Share of the rows that is held out where there is no test split.", above=0, high=0.9
    )
    min_per_class: int = option(1, "Leave classes of fewer training rows out.", low=1)
    probability: bool = option(
        False, "Learn probabilities too, on rows that the machine is then not fitted to."
    )
    memory: int = option(
        2 * 2**30,
        "About how much may be used; features beyond it are read by blocks.",
        metavar="SIZE",
        shown="2GiB",
        parse=_parse_bytes,
        changes_result=False,
    )

    @property
    def n_folds(self) -> int:
        """How many folds a cross-validation has."""
        return self.folds or FOLDS


@dataclass(frozen=True, slots=True)
class RunOptions:
    """A whole run: one table a stage."""

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
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


def parse_config(table: Mapping[str, object], *, where: str = "config") -> RunOptions:
    """Check a parsed TOML document and make the records."""
    options = _build(RunOptions, table, f"{where}: ", "")
    if options.model.path == "":
        raise ConfigError(f"{where}: model.path must name a network, not be empty")
    if options.model.path is not None and "network" in table:
        raise ConfigError(
            f"{where}: [model] path is a network that exists, [network] one to train",
            hint="leave one of them out",
        )
    return options


def _build(record: type[T], table: object, where: str, name: str) -> T:
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
        key: _value(fields[key], hints[key], value, where, f"{name}.{key}" if name else key)
        for key, value in table.items()
    }
    return record(**values)


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
    spec: dataclasses.Field[object], hint: object, value: object, where: str, name: str
) -> object:
    inner = item_type(hint)
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
    return convert(spec, hint, value, f"{where}{name}")
