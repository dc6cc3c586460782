"""Bringing images to the size and channels a network takes.

Sizes change by bilinear interpolation with antialiasing (a triangle filter as wide as the scale, as
in Pillow and `tf.image.resize(antialias=True)`); what is padded is black; grey is ITU-R 601 luma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from cnnfeat.errors import DataError
from cnnfeat.records import Fit, ImageTarget

if TYPE_CHECKING:
    from cnnfeat.records import Array

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_ROUNDING = 1e-3
_BILINEAR = Image.Resampling.BILINEAR


def fit_to_target(images: Array, target: ImageTarget | None) -> Array:
    """Bring images to a target's size and channels, keeping their dtype.

    Parameters
    ----------
    images : ndarray of shape (n_samples, height, width, channels)
        uint8, uint16 or float32.
    target : ImageTarget or None
        None leaves them as they are.

    Raises
    ------
    DataError
        If the channels can't become those of the target.
    """
    if target is None:
        return images
    if target.channels not in (None, images.shape[3]):
        if images.shape[3] in (2, 4):
            images = over_white(images)
        if target.channels < images.shape[3]:
            images = fit_channels(images, target.channels)
    if target.invert:
        images = inverted(images)
    if target.size is not None and images.shape[1:3] != target.size:
        fit = target.fit or "stretch"
        images = np.stack([resize(image, target.size, fit) for image in images])
    if target.channels is not None:
        images = fit_channels(images, target.channels)
    return images


def scale_to_target(picture: Image.Image, target: ImageTarget | None) -> Image.Image:
    """Resize a picture of mode L or RGB where `fit_to_target` would do nothing else before.

    It gives the same pixels, and leaves nothing but the channels to be done.
    """
    channels = len(picture.getbands())
    if target is None or target.size is None or target.invert:
        return picture
    if target.channels is not None and target.channels < channels:
        return picture
    size = target.size[::-1]  # as Pillow has it
    return picture if picture.size == size else _fitted(picture, size, target.fit or "stretch")


def fit_depth(images: Array, dtype: np.dtype[np.generic]) -> Array:
    """Bring 8-bit images to 16 bits, or the other way round: black stays black, white white.

    Raises
    ------
    DataError
        If one of the two dtypes is float: there is no telling which number is white.
    """
    if images.dtype == dtype:
        return images
    if "f" in (images.dtype.kind, dtype.kind):
        raise DataError(f"{images.dtype} pixels among {dtype} ones")
    if dtype == np.uint16:
        return images.astype(np.uint16) * np.uint16(257)
    return np.rint(images.astype(np.float32) / 257).astype(np.uint8)


def fit_channels(images: Array, channels: int) -> Array:
    """Grey to RGB by repeating, RGB to grey by luma, RGBA over white."""
    given = images.shape[-1]
    if given == channels:
        return images
    if given == 1:
        return np.repeat(images, channels, axis=-1)
    if given in (2, 4):
        return fit_channels(over_white(images), channels)
    if given == 3 and channels == 1:
        return _in_dtype(images.astype(np.float32) @ _LUMA[:, np.newaxis], images.dtype)
    raise DataError(
        f"images of {given} channels can't become images of {channels}",
        hint="convert the images, or choose a network that takes them",
    )


def _white(images: Array) -> float:
    """Say what white is: 1 of floating-point pixels, else the largest number.

    Raises
    ------
    DataError
        If floating-point pixels lie outside 0 to 1.
    """
    if images.dtype.kind != "f":
        return float(np.iinfo(images.dtype).max)  # type: ignore[type-var]
    with np.errstate(invalid="ignore"):
        low, high = float(images.min()), float(images.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:  # NaN is found elsewhere
        raise DataError(
            f"floating-point pixels from {low:g} to {high:g} have no white: they can be inverted, "
            "or laid over it, from 0 to 1 only",
            hint="store them as uint8, or bring them to 0 to 1",
        )
    return 1.0


def over_white(images: Array) -> Array:
    """Lay images whose last channel is opacity over white."""
    full = np.float32(_white(images))
    colour = images[..., :-1].astype(np.float32)
    opacity = images[..., -1:].astype(np.float32) / full
    return _in_dtype(colour * opacity + full * (1 - opacity), images.dtype)


def inverted(images: Array) -> Array:
    """Turn light into dark: 255 - x, 65535 - x, or 1 - x; opacity is laid over white before."""
    if images.shape[-1] in (2, 4):
        images = over_white(images)
    return np.subtract(images.dtype.type(_white(images)), images)


def resize(image: Array, size: tuple[int, int], fit: Fit = "stretch") -> Array:
    """Resize one image (height, width, channels) to `size` (height, width).

    Parameters
    ----------
    image : ndarray of shape (height, width, channels)
        uint8, uint16 or float32.
    size : tuple of int
        Its height and width then.
    fit : {"stretch", "crop", "pad"}
        What is done where proportions differ: change them; keep them and cut off what is too much
        on both sides; keep them and put black on both sides.
    """
    height, width = size
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        scaled = np.asarray(_fitted(picture, (width, height), fit))
        return scaled.reshape(height, width, image.shape[2])
    planes = [
        np.asarray(
            _fitted(Image.fromarray(image[:, :, channel].astype(np.float32)), (width, height), fit)
        )
        for channel in range(image.shape[2])
    ]
    return _in_dtype(np.stack(planes, axis=-1), image.dtype)


def _fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Scale a picture to `size`, here (width, height) as Pillow has it."""
    if fit == "crop":
        return ImageOps.fit(picture, size, _BILINEAR)
    if fit == "stretch":
        return picture.resize(size, _BILINEAR)
    inside = _largest_inside(picture.size, size)
    framed = Image.new(picture.mode, size, 0)
    framed.paste(
        picture.resize(inside, _BILINEAR),
        (round((size[0] - inside[0]) / 2), round((size[1] - inside[1]) / 2)),
    )
    return framed


def _largest_inside(own: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the proportions of `own` that has room: one pixel a side at least."""
    if own[0] * room[1] > own[1] * room[0]:
        return room[0], max(1, round(own[1] / own[0] * room[0]))
    return max(1, round(own[0] / own[1] * room[1])), room[1]


def _in_dtype(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """Round to whole numbers where `dtype` has no others."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)  # type: ignore[type-var]
