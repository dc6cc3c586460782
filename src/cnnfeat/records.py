"""What crosses a border: frozen records, and the two protocols extraction stands on.

Nothing here imports TensorFlow, h5py or scikit-learn; NumPy is for types alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]
Labels: TypeAlias = NDArray[np.int64]
Parts: TypeAlias = NDArray[np.uint8]  # `cnnfeat.parts.Part` of each row
Groups: TypeAlias = NDArray[np.int64]  # rows of one number belong together
Digests: TypeAlias = NDArray[np.uint64]  # one of each picture's pixels
RowNumbers: TypeAlias = NDArray[np.integer]  # places in a split

OnError: TypeAlias = Literal["raise", "skip"]
Fit: TypeAlias = Literal["stretch", "crop", "pad"]
# What the split `validation` is called in files and folders, and what all of them are.
VALIDATION_WORDS = ("val", "valid", "validation", "dev")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(VALIDATION_WORDS, "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """One sample left out, and why."""

    row: int  # its position in the source's split, counted with the samples left out
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive samples of one split, in the source's order.

    `start` to `stop` counts positions in the split. All of them stand in `images` but those named
    in `skipped`, so `len(ids) + len(skipped) == stop - start`; where all are, `images` has no rows.
    """

    images: Array  # (n_samples, height, width, channels) uint8, uint16 or float32
    labels: Labels | None  # (n_samples,) int64
    ids: tuple[str, ...]  # n_samples of them
    start: int
    stop: int
    skipped: tuple[SkippedSample, ...] = ()
    digests: Digests | None = None  # (n_samples,), where they were asked for

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, reasons: Mapping[int, str]) -> Batch:
        """Leave out some of its images: those in these rows of `images`, and why."""
        if not reasons:
            return self
        left_out = {one.row for one in self.skipped}
        places = [place for place in range(self.start, self.stop) if place not in left_out]
        more = [SkippedSample(places[row], self.ids[row], why) for row, why in reasons.items()]
        good = [row for row in range(len(self)) if row not in reasons]
        return replace(
            self,
            images=self.images[good],
            labels=None if self.labels is None else self.labels[good],
            ids=tuple(self.ids[row] for row in good),
            digests=None if self.digests is None else self.digests[good],
            skipped=tuple(sorted((*self.skipped, *more), key=lambda one: one.row)),
        )


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """What every image is brought to while it is read; None leaves that side as it is."""

    size: tuple[int, int] | None = None  # (height, width) in pixels; bilinear, with antialiasing
    channels: int | None = None  # 1: grey (ITU-R 601 luma), 3: RGB
    fit: Fit | None = None  # how proportions come to those of `size`; None: "stretch"
    invert: bool = False  # light becomes dark, before anything is padded

    def over(self, other: ImageTarget) -> ImageTarget:
        """Put what is said here above what another says; inverted is inverted once."""
        return ImageTarget(
            size=self.size or other.size,
            channels=self.channels or other.channels,
            fit=self.fit or other.fit,
            invert=self.invert or other.invert,
        )

    def shape_of(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(height, width, channels) that an image of such a shape becomes."""
        height, width, channels = image_shape
        if self.invert and channels in (2, 4):  # opacity is laid over white
            channels -= 1
        return (*(self.size or (height, width)), self.channels or channels)


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """One split of a source. `image_shape` is the first image's; see `uniform`."""

    name: str
    n_samples: int
    image_shape: tuple[int, int, int]  # (height, width, channels)
    dtype: str  # "uint8", "uint16" or "float32"
    has_labels: bool
    uniform: bool = True  # False: nobody has looked whether the other images have that shape


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells two sources apart."""

    digest: str  # SHA-256, hexadecimal
    method: str  # what was digested, in words: "file contents", "names, sizes and times"


class Source(Protocol):
    """Where images come from. Made by `cnnfeat.data.open_source`; a context manager."""

    name: str  # what a person would type again: "mnist", or an absolute path
    kind: str  # "mnist", "idx", "npz", "folder" ...
    labels_from: str  # where labels lie if that was said apart: ":/y", "/data/y.npy"; else ""
    options: Mapping[str, Json]  # of those it was opened with, what can change its rows
    classes: tuple[str, ...]  # class names, label k is classes[k]; () where there are no labels
    splits: Mapping[str, SplitInfo]  # "train", "validation", "test"; or "all"
    # How it was divided for a training: a `parts.DivisionRule` and a digest; None: it was not.
    division: Mapping[str, Json] | None

    def fingerprint(self) -> Fingerprint:
        """Tell this source from any other, and from itself once changed."""

    def state(self) -> bytes:
        """Describe every file of this source in 16 bytes each, to be kept until a resume."""

    def changed_since(self, state: bytes) -> str | None:
        """Say which file differs from when `state` was taken: "cat/7.png has changed", or None.

        It is None where and only where `fingerprint` is still the same.
        """

    def channels(self, split: str) -> int:
        """How many channels hold every image of a split: 3 if any has colour, else 1."""

    def labels(self, split: str) -> Labels | None:
        """Labels of a whole split, (n_samples,) int64, or None."""

    def parts(self, split: str) -> Parts | None:
        """What a network has seen of each row of a split, (n_samples,) uint8; None: unknown."""

    def groups(self, split: str) -> Groups | None:
        """Which rows of a split must stay on one side of a division, (n_samples,) int64, or None.

        One number stands for one group in all splits.
        """

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        rows: RowNumbers | None = None,
        target: ImageTarget | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Batch]:
        """Read samples `start` to `stop` in order, at most `batch_size` at a time.

        With `rows`, ascending, these alone are read: `start`, `stop` and what batches say of
        positions then count among them.

        All images of a batch have one shape: where it changes, a batch ends early; so it does where
        images are so much larger than the first that fewer fill it. Where `start` is a multiple of
        `batch_size`, a batch ends at every later multiple: from there on batches are those of a
        reading that began earlier.
        """

    def __enter__(self) -> Source: ...

    def __exit__(self, *exc_info: object) -> None: ...


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a network's graph."""

    name: str  # TensorFlow's own spelling: "conv2/relu/Relu:0"
    op: str  # "Relu"
    shape: tuple[int | None, ...] | None  # with the batch axis; None: rank unknown
    dtype: str  # "float32"

    @property
    def shape_text(self) -> str:
        """The shape for n images: "(n, 7, 7, 36)", "?" for what isn't known before an image is."""
        if self.shape is None:
            return "?"
        return f"({', '.join(['n', *('?' if n is None else str(n) for n in self.shape[1:])])})"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A name a person gives, and the one tensor it stands for."""

    name: str  # "conv2"
    kind: str  # "Conv2D", or the operation's type where the format has no layers
    tensor: TensorInfo
    path: tuple[str, ...] = ()  # names this layer lies in: ("backbone", "block1")
    # Whether a pattern alone asked for it: then it is left out where it can't be computed.
    optional: bool = field(default=False, compare=False)
    asked: str = field(default="", compare=False)  # what was typed for it: "-2", "relu"

    @property
    def n_features(self) -> int | None:
        """Numbers for one image; None where the shape isn't known before an image is."""
        if self.tensor.shape is None:
            return None
        product = 1
        for length in self.tensor.shape[1:]:
            if length is None:
                return None
            product *= length
        return product


@dataclass(frozen=True, slots=True)
class NetworkBlock:
    """A convolution or dense layer that nobody named: what has weights, and what follows it."""

    layer: LayerInfo  # its end, by what a person would call it: "conv2"
    what: Literal["convolution", "dense"]
    number: int  # from 1, in the network's order, each kind for itself
    operations: tuple[str, ...]  # the graph's own names: "Conv2D_1", "add_1", "MaxPool_1", "Relu_1"
    weights: tuple[TensorInfo, ...]  # one; of a separable convolution, two

    @property
    def path_text(self) -> str:
        """Its operations: "Conv2D_1 → add_1 → MaxPool_1 → Relu_1"."""
        return " → ".join(self.operations)

    def __str__(self) -> str:
        word = "filters" if self.what == "convolution" else "weights"
        sizes = [_times(weights.shape) for weights in self.weights]
        return (
            f"{ordinal(self.number)} {self.what} block: {self.path_text}, "
            f"{word} {' and '.join(sizes)}, output {self.layer.tensor.shape_text}"
        )


def _times(shape: tuple[int | None, ...] | None) -> str:
    """Write a whole shape: "5×5×16×36"."""
    lengths: tuple[int | None, ...] = (None,) if shape is None else shape
    return "×".join("?" if length is None else str(length) for length in lengths)


def ordinal(number: int) -> str:
    """Write a place: "1st", "2nd", "3rd", "11th"."""
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


@dataclass(frozen=True, slots=True)
class ProbeOutput:
    """One array a probe returns for a batch."""

    layer: str  # the name it is stored under (before `/` becomes `.`)
    tensor: str
    op: str
    row_shape: tuple[int, ...]  # for one image, after pooling
    dtype: str  # of the array returned: "float32", "float16", "int64" ...
    original_shape: tuple[int, ...]  # for one image, before pooling
    original_dtype: str  # the tensor's own, "bfloat16" among them
    pooling: str  # "none", "avg", "max" or "flatten"
    axes: tuple[str, ...] = ()  # a name for each axis of row_shape: ("height", "width", "channel")
    asked: str = ""  # what was typed for it, where that is no name of its own


class Probe(Protocol):
    """A compiled function: images in, the activations of the asked tensors out."""

    outputs: tuple[ProbeOutput, ...]
    # How images are fitted to the input, to be done again.
    preprocessing: Mapping[str, str | int | Sequence[int] | None]
    target: ImageTarget  # what the source shall bring images to
    unsteady: Mapping[str, Sequence[str]]  # by layer, what makes its features change
    device: str  # what it computes on: "cpu", "gpu:0" ...

    @property
    def engine(self) -> str:
        """What runs the network, with its version: "tensorflow 2.21.0"."""

    def __call__(self, images: Array) -> tuple[Array, ...]:
        """Activations in the order of `outputs`, each `(n_samples, *row_shape)`.

        May be called from several threads at once.
        """


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What an extraction made."""

    path: str
    rows: Mapping[str, int]  # by split
    layers: tuple[ProbeOutput, ...]
    size_bytes: int
    elapsed_s: float
    skipped: Mapping[str, tuple[SkippedSample, ...]] = field(default_factory=dict)
    n_computed: int | None = None  # of the rows, in `elapsed_s`; None: not counted
    labelled: bool = True

    def __repr__(self) -> str:
        rows = ", ".join(f"{n:,} {split}" for split, n in self.rows.items())
        layers = some_of([f"{item.layer} {item.row_shape}" for item in self.layers])
        left_out = sum(map(len, self.skipped.values()))
        return (
            f"ExtractResult {self.path}, {self.size_bytes:,} bytes in {self.elapsed_s:.1f} s\n"
            f"  rows    {rows}{f'; {left_out:,} left out' if left_out else ''}\n"
            f"  layers  {layers}"
        )


def shown_source(source: Source) -> str:
    """Say what a source is in three lines, for those who look at one."""
    rows = [f"{info.n_samples:,} {split}" for split, info in source.splits.items()]
    first = next(iter(source.splits.values()))
    shape = "×".join(map(str, first.image_shape))
    return (
        f"Source {source.name} ({source.kind})\n"
        f"  images   {some_of(rows)}; the first of {shape} {first.dtype}\n"
        f"  classes  {some_of(source.classes) or 'none'}"
    )


def class_name(label: int, classes: Sequence[str]) -> str:
    """Name a label; the number itself where there is no name."""
    return classes[label] if 0 <= label < len(classes) else str(label)


def counted(n: int, noun: str) -> str:
    """Write a number and a noun that takes an s: "1 network", "3,000 rows"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def some_of(items: Sequence[str], *, most: int = 8) -> str:
    """List the first few, and say how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")
