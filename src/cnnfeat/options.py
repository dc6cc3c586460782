"""Every option, once: a frozen record a stage.

A field of a record has a name, a type, a default, a range and a help text. From that come the
TOML key, the command line's flag, the check of a value, what a resumed run must have in common
with the first, the inputs of a run's stages, and what a feature file says of its making. An
option that is added here is in all of them; see `Knob` for what a field can say of itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cnnfeat.errors import ConfigError, UsageError, near_names
from cnnfeat.knobs import (
    check_field,
    checked,
    fields_of,
    from_text,
    option,
)
from cnnfeat.records import Fit, OnError
from cnnfeat.spelling import (
    LARGEST_SEED,
    FeedValue,
    parse_bytes,
    parse_class_weight,
    parse_device,
    parse_feeds,
    parse_grid,
    parse_seeds,
    parse_size,
)

LIVE = "live:"  # before the name of a network that lives in a program, and in no file
Size: TypeAlias = tuple[int, int]
Scale: TypeAlias = Literal["unit", "symmetric", "raw", "imagenet", "caffe"]
Pooling: TypeAlias = Literal["none", "avg", "max", "flatten"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
MOST_COPIES = 1_000
Given: TypeAlias = tuple[tuple[str, float | str], ...]  # names and values
EngineName: TypeAlias = Literal["auto", "tensorflow", "openvino"]


_RESIZE = "Bring all images to one size, such as 224x224."
_FIT = (
    "How proportions change with the size: stretch them; or keep them, and crop both ends or pad "
    "them with black."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What images are brought to as they are read."""

    resize: Size | None = option(None, _RESIZE, metavar="HxW", parse=parse_size)
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
        (), "A value for a placeholder; may be repeated.", metavar="NAME=VALUE", parse=parse_feeds
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
    """`[[network.conv]]`: convolution, batch norm, pooling, ReLU, dropout, in this order.

    Behind them stand `residual` units of two 3×3 convolutions each, which a shortcut passes by.
    """

    filters: int = option(16, low=1, high=65_536)
    kernel_size: int = option(5, low=1, high=1_024)
    pool_size: int = option(2, low=1, high=1_024)  # 1: no pooling
    batch_norm: bool = False
    dropout: float = option(0.0, low=0, high=0.99)
    residual: int = option(0, low=0, high=100)


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
    pooling: Literal["flatten", "average", "max"] = "flatten"  # what leads to the dense layers
    dense: tuple[DenseOptions, ...] = (DenseOptions(),)
    width: float = option(1.0, above=0, high=64)  # of all filters and units, a factor
    # Of a truncated normal; he: as many inputs need for signals to keep their size through ReLUs.
    weight_stddev: float | Literal["he"] = option(0.05, above=0, high=10)
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
        2e-3, "Adam's highest; falls to 0 along a cosine.", above=0, high=10
    )
    warmup: float = option(
        0.0, "Fraction of the steps in which the rate rises from 0.", low=0, high=0.9
    )
    weight_decay: float = option(
        0.0, "Of kernels, each step, times the rate; decoupled from the gradient.", low=0, high=10
    )
    label_smoothing: float = option(
        0.0, "Share of each label that is spread over all classes.", low=0, high=0.9
    )
    ema: float = option(
        0.0,
        "Keep a moving average of the weights, which remembers so much at a step; 0: none.",
        low=0,
        high=0.999_999,
    )
    precision: Precision = option("float32", "How the network computes while it is trained.")
    seed: int = option(0, "Fixes weights, division and order.", low=0, high=LARGEST_SEED)
    seeds: tuple[int, ...] | None = option(
        None,
        "Train a network for each, and join them in one that answers with their mean.",
        metavar="SEED,SEED,...",
        shown="one network, of --seed",
        parse=parse_seeds,
    )
    validation: float = option(
        0.1,
        "Fraction of what is trained on, held back to pick the best epoch; 0: train on all of it, "
        "and keep the last.",
        low=0,
        high=0.5,
    )
    test_fraction: float = option(
        0.2,
        "Fraction held out to test on, for a source without a split for that.",
        above=0,
        high=0.9,
    )
    patience: int = option(0, "Epochs without gain before a stop; 0: never.", low=0, high=100_000)

    def __post_init__(self) -> None:
        if self.patience and not self.validation:
            raise ConfigError(
                f"patience = {self.patience} waits for a gain in validation, and validation is 0",
                hint="leave patience out; or hold some images back, such as --validation 0.1",
            )
        if self.seeds and self.seed:
            raise ConfigError(
                f"seed = {self.seed} is of one network, and seeds of several are given too",
                hint="leave one of them out; the first of the seeds divides the source",
            )

    @property
    def members(self) -> tuple[int, ...]:
        """The seed of each network that is trained; the first divides the source."""
        return self.seeds or (self.seed,)


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """`[augment]`: how images are varied at random; by default they aren't.

    Each number says how far at most, evenly distributed between both ends, where nothing else is
    said. All that moves pixels is one resampling, in this order: crop, zoom, rotation and flip,
    shift; displacements are added to it.
    """

    rotation: float = option(0.0, low=0, high=180)  # degrees, either way
    shift: float = option(0.0, low=0, high=1)  # fraction of height and of width, either way
    zoom: float = option(0.0, low=0, high=0.9)  # fraction of the size, larger or smaller
    crop: float = option(0.0, low=0, high=0.9)  # fraction of each side that is cut off
    elastic: float = option(0.0, low=0, high=1_000)  # pixels: displacements' standard deviation
    elastic_grid: int = option(8, low=2, high=64)  # control points along a side
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"  # every other image
    brightness: float = option(0.0, low=0, high=1)  # fraction of what white is, either way
    contrast: float = option(0.0, low=0, high=1)  # fraction of the distance from the mean
    # Beyond the image: as its nearest pixel, which is black around digits too; or black.
    fill: Literal["edge", "black"] = "edge"

    @property
    def moves(self) -> bool:
        """Whether pixels are moved."""
        far = (self.rotation, self.shift, self.zoom, self.crop, self.elastic)
        return any(far) or self.flip != "none"

    @property
    def varies(self) -> bool:
        """Whether anything is done at all."""
        return self.moves or bool(self.brightness or self.contrast)

    @property
    def given(self) -> Given:
        """Names and values of what isn't at its default."""
        values = ((name, getattr(self, name), item) for name, item in fields_of(self).items())
        return tuple((name, value) for name, value, item in values if value != item.default)

    def __str__(self) -> str:
        """What `--augment` takes: "rotation=12,shift=0.1"."""
        return ",".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.given
        )


_AS_THEY_ARE = AugmentOptions()


def parse_augment(
    value: object, *, over: AugmentOptions = _AS_THEY_ARE, label: str = ""
) -> AugmentOptions:
    """Read `rotation=12,shift=0.1`, several of them, or a table of names and values.

    Parameters
    ----------
    value : str, sequence of str, sequence of pairs, or mapping
        What is said.
    over : AugmentOptions
        What holds where nothing is said.
    label : str
        What messages call it.

    Raises
    ------
    ConfigError
        With the name or the value that can't be, and what is allowed; or if nothing is varied so.
    """
    known, said = fields_of(AugmentOptions), dict[str, object]()
    before = f"{label}: " if label else ""
    for name, given in _augment_pairs(value, before):
        if name not in known:
            raise ConfigError(
                f"{before}unknown name {name!r}; it takes: {', '.join(known)}",
                hint=near_names(name, known),
            )
        said[name] = check_field(AugmentOptions, name, given, label=f"{before}{name}")
    found = dataclasses.replace(over, **said)  # type: ignore[arg-type]
    if said and not found.varies and not over.varies:
        words = ",".join(f"{name}={one}" for name, one in said.items())
        raise ConfigError(f"{before}{words} varies nothing; rotation=12,shift=0.1 does")
    return found


def _augment_option(shown: str) -> Given:
    return option(
        (),
        "How images are varied: rotation=12,shift=0.1 and so on; may be repeated.",
        metavar="NAME=VALUE,...",
        shown=shown,
        parse=lambda value: parse_augment(value).given,
    )


def _augment_pairs(value: object, before: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(name), given) for name, given in value.items())
        return
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, tuple):
            yield str(item[0]), item[1]
            continue
        for pair in str(item).split(","):
            name, sign, text = pair.strip().partition("=")
            if not sign:
                raise ConfigError(f"{before}{pair!r} is no NAME=VALUE; rotation=12,shift=0.1 is")
            known = name in fields_of(AugmentOptions)
            yield name, from_text(AugmentOptions, name, text) if known else text


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How activations are computed from images."""

    precision: Precision = option("float32", "How the network computes.")
    pool: Pooling = option("none", "What is done over an activation's image axes.")
    scale: Scale | None = option(
        None, "How pixels are scaled before the network.", shown="as the model's file says"
    )
    resize: Size | None = option(None, _RESIZE, metavar="HxW", parse=parse_size)
    fit: Fit | None = option(None, _FIT, shown="stretch")
    device: str = option(
        "auto",
        "What the network computes on; auto: a GPU where TensorFlow sees one.",
        metavar="auto|cpu|gpu:N",
        parse=parse_device,
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
    augment_copies: int | None = option(
        None,
        "So many varied copies of each row of the training split, too.",
        low=1,
        high=MOST_COPIES,
    )
    average: int | None = option(
        None,
        "Means of features, over an image and as many variations as make so many.",
        low=2,
        high=1_000,
    )
    augment: Given = _augment_option("as in the network's training, else a little")
    layers: dataclasses.InitVar[str | Sequence[str] | None] = None  # no field: `layer` is

    def __post_init__(self, layers: str | Sequence[str] | None) -> None:
        if layers is not None:
            given = (layers,) if isinstance(layers, str) else tuple(layers)
            object.__setattr__(self, "layer", given)


@dataclass(frozen=True, slots=True)
class AverageOptions:
    """What is averaged where pictures are predicted; by default what was for the machine."""

    average: int | None = option(
        None,
        "Mean over a picture and as many variations as make so many.",
        low=1,
        high=1_000,
        shown="as for the machine's features",
    )
    average_scores: bool = option(False, "With --average: of decision values, not of features.")
    augment: Given = _augment_option("as for the features or in the training, else a little")


FOLDS = 5


@dataclass(frozen=True, slots=True)
class SvmOptions:
    """`[svm]`: the support vector machine."""

    layer: tuple[str, ...] = option(
        (),
        "A layer of the file, or several joined (conv2+fc1, or a pattern); may be repeated: they "
        "are compared. all: every one.",
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
        parse=parse_class_weight,
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
        parse=parse_grid,
    )
    seed: int = option(0, "Fixes folds and samples.", low=0, high=LARGEST_SEED)
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
        parse=parse_bytes,
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
    augment: AugmentOptions = AugmentOptions()
    extract: ExtractOptions = ExtractOptions()
    svm: SvmOptions = SvmOptions()

    @property
    def extraction(self) -> ExtractOptions:
        """`[extract]`, its images varied as `[augment]` says, where it says nothing itself."""
        asked = self.extract.augment_copies or self.extract.average
        if self.extract.augment or not asked or not self.augment.varies:
            return self.extract
        return dataclasses.replace(self.extract, augment=self.augment.given)
