"""Which tensor takes the images, and how images lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnfeat.errors import NetworkError, near_names
from cnnfeat.network.graph import GraphInput

CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes images. A side that is None takes any length."""

    name: str
    tensor: str
    dtype: str
    layout: str  # "NHWC", "NCHW", "NHW", "HWC" (one image at a time) or "flat"
    height: int | None
    width: int | None
    channels: int | None
    features: int | None = None  # of a flat input
    batch: int | None = None  # of an input that takes exactly so many images

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """(height, width, channels)."""
        return (self.height, self.width, self.channels)

    def __str__(self) -> str:
        lengths: tuple[int | None, ...] = {
            "NHWC": (self.height, self.width, self.channels),
            "NCHW": (self.channels, self.height, self.width),
            "NHW": (self.height, self.width),
            "HWC": (self.height, self.width, self.channels),
            "flat": (self.features,),
        }[self.layout]
        inner = ", ".join("any" if length is None else str(length) for length in lengths)
        return f"({inner}{',' if len(lengths) == 1 else ''}) {self.dtype}"


def image_input(inputs: Sequence[GraphInput], *, name: str | None = None) -> ImageInput:
    """Choose the input that takes the images.

    Raises
    ------
    NetworkError
        If none can, if several can and `name` is None, or if `name` is none of them.
    """
    if name is not None:
        return _named(inputs, name)
    behind = [item for item in inputs if item.reach and _rating(item)]
    rated = [(_rating(item), item) for item in behind or inputs]
    best = max((rating for rating, _ in rated), default=0)
    chosen = [item for rating, item in rated if rating == best]
    if best == 0:
        raise NetworkError(
            f"no input of the network can take images: {_listed(inputs) or 'it has none'}",
            hint="--input NAME names a tensor of shape (batch, height, width, channels)",
        )
    if len(chosen) > 1:
        raise NetworkError(
            f"several inputs could take the images: {_listed(chosen)}",
            hint=f"say which with --input, such as --input {chosen[0].name}",
        )
    return _describe(chosen[0])


def can_take_images(item: GraphInput) -> bool:
    """Whether an input's type and shape could be those of images."""
    return _rating(item) > 0


def _named(inputs: Sequence[GraphInput], name: str) -> ImageInput:
    for item in inputs:
        if name in (item.name, item.tensor, item.tensor.removesuffix(":0")):
            if not _rating(item):
                raise NetworkError(
                    f"input {name!r} can't take images: its shape is "
                    f"{_shape_text(item)} and its type {item.dtype.name}"
                )
            return _describe(item)
    raise NetworkError(
        f"no input is called {name!r}; the network has {_listed(inputs) or 'none'}",
        hint=near_names(name, [item.name for item in inputs]),
    )


def _rating(item: GraphInput) -> int:
    """How much an input looks like one for images; 0: not at all."""
    if not (item.dtype.is_floating or item.dtype.is_integer) or item.dtype.is_quantized:
        return 0
    if item.shape is None:
        return 1
    rank = len(item.shape)
    if rank == 4:
        return 6 if item.shape[3] in CHANNELS else 5 if item.shape[1] in CHANNELS else 4
    if rank == 3:
        return 3 if item.dtype.is_floating or item.dtype.size == 1 else 0
    return 2 if rank == 2 and (item.shape[1] or 0) > 1 else 0


def _describe(item: GraphInput) -> ImageInput:
    layout, (height, width, channels), features = _layout(item.shape)
    return ImageInput(
        name=item.name,
        tensor=item.tensor,
        dtype=item.dtype.name,
        layout=layout,
        height=height,
        width=width,
        channels=channels,
        features=features,
        batch=1 if layout == "HWC" else item.shape[0] if item.shape else None,
    )


def _layout(
    shape: tuple[int | None, ...] | None,
) -> tuple[str, tuple[int | None, int | None, int | None], int | None]:
    if shape is None:
        return "NHWC", (None, None, None), None
    if len(shape) == 4:
        _, first, second, last = shape
        if first in CHANNELS and last not in CHANNELS:
            return "NCHW", (second, last, first), None
        return "NHWC", (first, second, last), None
    if len(shape) == 3 and shape[2] in CHANNELS:
        return "HWC", shape, None
    if len(shape) == 3:
        return "NHW", (shape[1], shape[2], 1), None
    return "flat", (None, None, None), shape[1]


def _shape_text(item: GraphInput) -> str:
    if item.shape is None:
        return "unknown"
    inner = ", ".join("any" if length is None else str(length) for length in item.shape)
    return f"({inner}{',' if len(item.shape) == 1 else ''})"


def _listed(inputs: Sequence[GraphInput]) -> str:
    return ", ".join(f"{item.name} {_shape_text(item)} {item.dtype.name}" for item in inputs)
