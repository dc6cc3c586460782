"""From images to a network's input: size, channels, layout, type and scale of the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import tensorflow as tf

from cnnfeat.errors import MisfitError, NetworkError
from cnnfeat.network.graph import ImageInput
from cnnfeat.options import ProbeOptions, Scale
from cnnfeat.records import Fit, ImageTarget

_FULL = {"uint8": 255.0, "uint16": 65_535.0}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, of pixels in [0, 255]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images become the input of a network."""

    input: ImageInput
    shape: tuple[int | None, int | None, int]  # (height, width, channels) images arrive in
    dtype: str  # of the images as they arrive
    scale: str
    size: tuple[int, int] | None  # what the source resizes to
    fit: Fit | None = None  # how proportions come to those of the size

    def __str__(self) -> str:
        by = f" (--fit {self.fit})" if self.fit else ""
        resized = "" if self.size is None else f", resized to {self.size[0]}×{self.size[1]}{by}"
        return f"to {self.input.name!r}, {self.input}, --scale {self.scale}{resized}"

    @property
    def target(self) -> ImageTarget:
        """What the source shall bring images to."""
        return ImageTarget(size=self.size, channels=self.shape[2], fit=self.fit)

    @property
    def record(self) -> Mapping[str, str | int | Sequence[int] | None]:
        """What was done, so that it can be done again."""
        return {
            "input": self.input.tensor,
            "layout": self.input.layout,
            "dtype": self.input.dtype,
            "scale": self.scale,
            "resize": None if self.size is None else list(self.size),
            "fit": self.fit,
            "channels": self.shape[2],
            "pixels": self.dtype,
        }

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Turn `(n_samples, height, width, channels)` pixels into the network's input."""
        dtype = tf.dtypes.as_dtype(self.input.dtype)
        if self.scale == "raw":
            values = tf.cast(images, dtype)
        else:
            values = tf.cast(_scaled(images, self.scale, self.dtype), dtype)
        if self.input.layout == "NCHW":
            return tf.transpose(values, [0, 3, 1, 2])
        if self.input.layout == "NHW":
            return tf.squeeze(values, axis=3)
        if self.input.layout == "HWC":
            return tf.squeeze(values, axis=0)
        height, width, channels = self.shape
        if self.input.layout == "flat":
            n_features = (height or 0) * (width or 0) * channels
            return tf.reshape(values, [-1, n_features])
        if self.input.layout == "pixels":
            return tf.reshape(values, [tf.shape(values)[0], -1, channels])
        return values


def fit_images(
    to: ImageInput,
    options: ProbeOptions,
    *,
    image_shape: tuple[int, int, int],
    image_dtype: str,
    default_scale: str,
) -> Preprocessing:
    """Plan how images of one shape become the input of a network.

    Raises
    ------
    NetworkError
        With both shapes, if they can't; if their values don't fit the input's type; or if the scale
        is unknown or doesn't go with the channels.
    """
    _check_values(to, image_dtype)
    channels = _channels(to, image_shape[2])
    size = options.resize or image_shape[:2]
    if to.layout == "flat":
        size, channels = _flat_size(to, size, channels)
    wanted = (to.height, to.width)
    fits = all(want in (None, have) for want, have in zip(wanted, size, strict=True))
    if to.layout == "flat":
        fits = to.features in (None, size[0] * size[1] * channels)
    if to.layout == "pixels":
        fits = to.features in (None, size[0] * size[1])
    if not fits:
        raise _misfit(to, (*size, channels))
    return Preprocessing(
        input=to,
        shape=(*size, channels),
        dtype=image_dtype,
        scale=_scale(options.scale or default_scale, to, channels),
        size=options.resize,
        fit=options.fit,
    )


def size_taken(to: ImageInput, image_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """(height, width) that images of a shape must be brought to; None where any size goes.

    Of a flat input they are the images' own where these have as many numbers, else a square.
    """
    height, width, channels = image_shape
    if to.layout not in ("flat", "pixels"):
        return (to.height or height, to.width or width) if to.height or to.width else None
    if to.features is None:
        return None
    counts = (1,) if to.layout == "pixels" else (1, 3)
    own = () if to.layout == "pixels" else (channels,)
    if to.features in {height * width * count for count in (*own, *counts)}:
        return height, width
    for count in counts:
        side = round((to.features / count) ** 0.5)
        if side * side * count == to.features:
            return side, side
    return None


def _check_values(to: ImageInput, image_dtype: str) -> None:
    """Refuse pixels that an integer input would cut to 0 or wrap."""
    takes, given = tf.dtypes.as_dtype(to.dtype), tf.dtypes.as_dtype(image_dtype)
    if takes.is_integer and (given.is_floating or (given == tf.uint16 and takes.size == 1)):
        raise NetworkError(
            f"images of {image_dtype} don't fit the network's input {to.name!r}, which takes {to}",
            hint="give them as whole numbers from 0 to 255, such as uint8",
        )


def _channels(to: ImageInput, given: int) -> int:
    if to.channels == 4 != given:
        raise NetworkError(
            f"the network's input {to.name!r} takes 4 channels, {to}; the images have {given}",
            hint="an array of shape (n, height, width, 4) has them",
        )
    return to.channels or given


def _flat_size(to: ImageInput, size: tuple[int, int], channels: int) -> tuple[tuple[int, int], int]:
    """Choose between grey and RGB by what a flat input has room for."""
    for count in (channels, 1, 3):
        if to.features == size[0] * size[1] * count:
            return size, count
    return size, channels


def _misfit(to: ImageInput, shape: tuple[int, int, int]) -> MisfitError:
    if to.height and to.width:
        hint = f"--resize {to.height}x{to.width} brings images to the network's size"
    elif to.features:
        side = round(to.features**0.5)
        hint = (
            f"--resize {side}x{side} gives as many numbers, of grey images"
            if side * side == to.features
            else f"images of {to.features} numbers fit"
        )
    else:
        hint = "--resize HxW brings images to another size"
    return MisfitError(
        f"images of shape {shape} don't fit the network's input {to.name!r}, which takes {to}",
        hint=hint,
    )


def _scale(chosen: str, to: ImageInput, channels: int) -> str:
    if chosen not in get_args(Scale):
        raise NetworkError(f"--scale must be one of {', '.join(get_args(Scale))}, not {chosen!r}")
    if chosen in ("imagenet", "caffe") and channels != 3:
        raise NetworkError(
            f"--scale {chosen} is for RGB; the network's input {to.name!r} takes {channels}",
            hint="--scale unit",
        )
    if chosen != "raw" and tf.dtypes.as_dtype(to.dtype).is_integer:
        raise NetworkError(
            f"--scale {chosen} makes fractions; the network's input {to.name!r} takes {to.dtype}",
            hint="--scale raw",
        )
    return chosen


def _scaled(images: tf.Tensor, scale: str, dtype: str) -> tf.Tensor:
    full = _FULL.get(dtype)
    values = tf.cast(images, tf.float32)
    unit = values if full is None else values / full
    if scale == "symmetric":
        return unit * 2.0 - 1.0
    if scale == "imagenet":
        return (unit - tf.constant(_IMAGENET_MEAN)) / tf.constant(_IMAGENET_STD)
    if scale == "caffe":
        return unit[..., ::-1] * 255.0 - tf.constant(_CAFFE_MEAN)
    return unit
