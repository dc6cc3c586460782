"""Many small maps on one sheet, one pixel a number: filters, or the activations of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from cnnfeat.errors import UsageError
from cnnfeat.report.figure import SIGNED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array

MAPS = "viridis"  # of numbers that are never negative
_GAP = 1  # pixels between tiles


@dataclass(frozen=True, slots=True)
class Sheet:
    """Tiles beside each other, coloured by one scale."""

    pixels: NDArray[np.uint8]  # (height, width, 4): RGBA, clear between the tiles
    columns: int
    tile_shape: tuple[int, int]  # (height, width) of one tile
    n_tiles: int
    low: float  # what the scale's ends stand for
    high: float
    colours: str  # the colour map

    def corner(self, tile: int) -> tuple[int, int]:
        """Where a tile begins: (top, left)."""
        height, width = self.tile_shape
        return tile // self.columns * (height + _GAP), tile % self.columns * (width + _GAP)


def make_sheet(tiles: Array, *, columns: int | None = None) -> Sheet:
    """Colour tiles by one scale, symmetric about 0 where a number is negative, else from 0.

    Parameters
    ----------
    tiles : ndarray
        (n_tiles, height, width) numbers, or (n_tiles, height, width, 3) signed weights of the
        colour channels, shown as colours around grey.
    columns : int, optional
        Tiles in a row; by default the sheet is about square.
    """
    values = np.nan_to_num(tiles.astype(np.float64))
    n_tiles, height, width = values.shape[:3]
    columns = columns or math.ceil(math.sqrt(n_tiles * height / max(width, 1)))
    high = float(np.abs(values).max(initial=0.0)) or 1.0
    low = -high if values.min(initial=0.0) < 0 else 0.0
    colours = SIGNED if low < 0 else MAPS
    shares = (values - low) / (high - low)
    painted = np.zeros((n_tiles, height, width, 4), np.uint8)
    if values.ndim == 4:
        painted[..., :3], painted[..., 3] = np.rint(shares * 255), 255
    else:
        painted[:] = mpl.colormaps[colours](shares, bytes=True)
    pixels = _lay_out(painted, columns)
    return Sheet(pixels, columns, (height, width), n_tiles, low, high, colours)


def _lay_out(painted: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    n_tiles, height, width = painted.shape[:3]
    n_rows = -(-n_tiles // columns)
    size = (n_rows * (height + _GAP) - _GAP, min(columns, n_tiles) * (width + _GAP) - _GAP, 4)
    pixels = np.zeros(size, np.uint8)
    for tile, picture in enumerate(painted):
        top, left = tile // columns * (height + _GAP), tile % columns * (width + _GAP)
        pixels[top : top + height, left : left + width] = picture
    return pixels


def filter_tiles(kernel: Array, *, by: str = "auto", channel: int = 0) -> Array:
    """Turn a convolution's weights into one tile a filter.

    Parameters
    ----------
    kernel : ndarray
        (height, width, input channels, filters).
    by : {"auto", "norm", "channel"}
        How several input channels become one tile: their L2 norm, or one of them. "auto" shows
        the weights themselves for one channel, colours for three, else the norm.
    channel : int
        The input channel, with `by="channel"`.

    Returns
    -------
    ndarray
        (filters, height, width), or (filters, height, width, 3) for colours.

    Raises
    ------
    UsageError
        If `by` is unknown, or there is no such channel.
    """
    n_channels = kernel.shape[2]
    filters = np.moveaxis(kernel, 3, 0)
    if by == "channel" or (by == "auto" and n_channels == 1):
        if not 0 <= channel < n_channels:
            raise UsageError(f"--channel must be 0 to {n_channels - 1}, not {channel}")
        return filters[..., channel]
    if by == "auto" and n_channels == 3:
        return filters
    if by in ("auto", "norm"):
        return np.asarray(np.linalg.norm(filters.astype(np.float64), axis=3))
    raise UsageError(f"filters are shown by norm or by channel, not by {by!r}")


def map_tiles(activation: Array) -> Array:
    """Turn one image's activations into one tile a channel.

    Parameters
    ----------
    activation : ndarray
        (height, width, channels).

    Returns
    -------
    ndarray
        (channels, height, width).
    """
    return np.moveaxis(activation, 2, 0)
