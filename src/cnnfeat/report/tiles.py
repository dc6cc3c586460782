"""Many small maps on one sheet: a layer's filters, and what they make of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from cnnfeat.errors import UsageError
from cnnfeat.pictures import as_bytes
from cnnfeat.report.figure import SIGNED, drawing, fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from cnnfeat.records import Array

MAPS = "viridis"  # of numbers that are never negative
_GAP = 1  # pixels between tiles
LARGEST = 4  # channels of a filter that are shown where it has many
DIFFERENCE = (
    "Filters are weights: the same for every image. Features are activations: this image's own."
)
_NUMBERED = 150  # tiles up to which each shows its number
_SMALLEST_TILE = 4  # pixels, below which numbers would hide the tiles


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
        colour channels, shown as colours around grey. Where a number is NaN the sheet is clear.
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
        painted[np.isnan(tiles)] = 0
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
    by : {"auto", "largest", "norm", "channel"}
        How several input channels become one tile: the four of the largest L2 norm, beside each
        other with NaN between; the norm over all channels; or one of them. "auto" shows the
        weights themselves for one channel, colours for three, else the largest.
    channel : int
        The input channel, with `by="channel"`.

    Returns
    -------
    ndarray
        (filters, height, width), or (filters, height, width, 3) for colours. Four channels make
        tiles of (2 height + 3, 2 width + 3): filters lie farther apart than their channels.

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
    if by in ("auto", "largest"):
        return _largest_channels(filters.astype(np.float64))
    if by == "norm":
        return np.asarray(np.linalg.norm(filters.astype(np.float64), axis=3))
    raise UsageError(f"filters are shown by largest, norm or channel, not by {by!r}")


def channels_beside(n_channels: int) -> int:
    """How many channels of a filter "auto" shows beside each other; 0: it shows all as one."""
    return 0 if n_channels in (1, 3) else min(LARGEST, n_channels)


def _largest_channels(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lay each filter's largest channels beside each other, the largest first; one of one."""
    n_filters, height, width, n_channels = filters.shape
    shown = min(LARGEST, n_channels)
    order = np.argsort(-np.linalg.norm(filters, axis=(1, 2)), axis=1, kind="stable")[:, :shown]
    columns = min(2, shown)
    n_rows = -(-shown // columns)
    size = (n_rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)  # filters lie apart
    tiles = np.full((n_filters, *size), np.nan)
    for place in range(shown):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        channel = order[:, place, None, None, None]
        chosen = np.take_along_axis(filters, channel, axis=3)[..., 0]
        tiles[:, top : top + height, left : left + width] = chosen
    return tiles


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


def plot_filters(
    kernel: Array,
    out: Path,
    *,
    layer: str,
    by: str = "auto",
    channel: int = 0,
    dpi: float = 150,
) -> None:
    """Draw a convolution's weights, one tile a filter, all on one scale.

    Parameters
    ----------
    kernel : ndarray
        (height, width, input channels, filters).
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    layer : str
        Whose weights they are.
    by, channel
        See `filter_tiles`.
    dpi : float
        Dots per inch of a PNG.
    """
    height, width, n_channels, n_filters = kernel.shape
    tiles = filter_tiles(kernel, by=by, channel=channel)
    sheet = make_sheet(tiles)
    what = _what_is_shown(tiles, n_channels, by=by, channel=channel)
    with drawing(out, size=_size(sheet), dpi=dpi) as figure:
        axes = figure.add_subplot()
        _show_sheet(axes, sheet)
        if tiles.ndim == 3:
            _show_scale(figure, axes, sheet, label="norm of weights" if by == "norm" else "weight")
        plural = "s" if n_channels > 1 else ""
        title = f"Filters of {layer}: {n_filters} of {height}×{width}, {n_channels} input channel"
        figure.suptitle(
            fitted(f"{title}{plural}\n{what}", inches=_size(sheet)[0] - 0.2, size=10), fontsize=10
        )


def plot_activations(
    image: Array | None,
    activation: Array,
    out: Path,
    *,
    layer: str,
    caption: str,
    kernel: Array | None = None,
    dpi: float = 150,
) -> None:
    """Draw an image, a layer's filters (where it has some) and what the layer answers.

    Parameters
    ----------
    image : ndarray or None
        (height, width, channels); None where it isn't at hand.
    activation : ndarray
        (height, width, channels) of the layer, for this image.
    out : Path
        A `.png` or `.svg` file, replaced where it exists.
    layer : str
        The layer's name.
    caption : str
        Which image it is.
    kernel : ndarray, optional
        (height, width, input channels, filters).
    dpi : float
        Dots per inch of a PNG.
    """
    sheets: list[tuple[str, str, Sheet]] = []
    if kernel is not None:
        tiles = filter_tiles(kernel)
        what = _what_is_shown(tiles, kernel.shape[2])
        unit = "weight" if tiles.ndim == 3 else ""  # colours have no one scale
        sheets.append((f"Filters of {layer}\n{what}", unit, make_sheet(tiles)))
    height, width, n_maps = activation.shape
    sheets.append(
        (
            f"Activations of {layer}\n{n_maps} maps of {height}×{width}",
            "activation",
            make_sheet(map_tiles(activation)),
        )
    )
    widths = ([2.2] if image is not None else []) + [4.4] * len(sheets)
    whole = sum(widths) + 0.4
    with drawing(out, size=(whole, 5.2), dpi=dpi) as figure:
        panels = _row(figure, widths)
        if image is not None:
            axes = panels.pop(0)
            axes.imshow(as_bytes(image), cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.set_axis_off()
            axes.set_title("Image")
        for axes, (title, unit, sheet) in zip(panels, sheets, strict=True):
            _show_sheet(axes, sheet)
            if unit:
                _show_scale(figure, axes, sheet, label=unit)
            axes.set_title(fitted(title, inches=3.4, size=10))
        title = f"{caption}: what {layer} makes of it"
        figure.suptitle(fitted(title, inches=whole - 0.2, size=11))
        figure.supxlabel(fitted(DIFFERENCE, inches=whole - 0.2, size=9), fontsize=9)


def _what_is_shown(tiles: Array, n_channels: int, *, by: str = "auto", channel: int = 0) -> str:
    if tiles.ndim == 4:
        return "weights to red, green and blue; grey is 0"
    if by == "channel":
        return f"weights to input channel {channel}"
    if by == "norm":
        return f"L2 norm over {n_channels} input channels"
    if n_channels == 1:
        return "weights"
    shown = min(LARGEST, n_channels)
    return f"weights to the {shown} of {n_channels} input channels of the largest norm"


def _size(sheet: Sheet) -> tuple[float, float]:
    height, width = sheet.pixels.shape[:2]
    scale = min(8.0 / max(width, 1), 9.0 / max(height, 1))
    return max(width * scale, 3.5) + 1.4, max(height * scale, 1.2) + 0.9


def _row(figure: Figure, widths: Sequence[float]) -> list[Axes]:
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    return [figure.add_subplot(grid[0, place]) for place in range(len(widths))]


def _show_sheet(axes: Axes, sheet: Sheet) -> None:
    axes.imshow(sheet.pixels, interpolation="none")
    axes.set_axis_off()
    if sheet.n_tiles > _NUMBERED or min(sheet.tile_shape) < _SMALLEST_TILE:
        return
    for tile in range(sheet.n_tiles):
        top, left = sheet.corner(tile)
        axes.text(
            left - 0.3,
            top - 0.3,
            str(tile),
            ha="left",
            va="top",
            fontsize=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        )


def _show_scale(figure: Figure, axes: Axes, sheet: Sheet, *, label: str) -> None:
    scale = ScalarMappable(Normalize(sheet.low, sheet.high), cmap=sheet.colours)
    figure.colorbar(scale, ax=axes, label=label, shrink=0.6, pad=0.02)
