"""Where the lines and points of the page's own charts go, in the units of their SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.result import LayerScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCATTER_WIDTH, SCATTER_HEIGHT = 1000, 700
_SCATTER_MARGIN = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line chart."""

    name: str
    points: str  # as `polyline` takes them


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and what it stands for."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """A line chart of 400 by 220 units, its plane from (50, 10) to (390, 185)."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def line_chart(
    title: str,
    x: Sequence[float],
    values: Mapping[str, Sequence[float]],
    *,
    percent: bool = False,
) -> LineChart:
    """Lay lines out over a common x."""
    numbers = [value for line in values.values() for value in line if math.isfinite(value)]
    ticks = _nice_ticks(min(numbers, default=0.0), max(numbers, default=1.0))
    low, high = ticks[0], ticks[-1]
    span = (max(x) - min(x)) or 1

    def across(value: float) -> float:
        return 50 + 340 * (value - min(x)) / span

    def up(value: float) -> float:
        return round(185 - 175 * (value - low) / (high - low), 1)

    step = max(math.ceil(len(x) / 8), 1)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0])) - (2 if percent else 0))
    return LineChart(
        title,
        tuple(
            Line(
                name,
                " ".join(
                    f"{across(place):.1f},{up(value)}"
                    for place, value in zip(x, line, strict=True)
                    if math.isfinite(value)
                ),
            )
            for name, line in values.items()
        ),
        tuple(Tick(round(across(place), 1), f"{place:g}") for place in x[::step]),
        tuple(
            Tick(up(tick), f"{tick:.{digits}%}" if percent else f"{tick:.{digits}f}")
            for tick in ticks
        ),
    )


def _nice_ticks(low: float, high: float) -> list[float]:
    """Choose 3 to 7 round numbers that span a range."""
    width = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(width))
    step = next(power * unit for unit in (0.2, 0.5, 1, 2) if width / (power * unit) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """An accuracy and its interval on a line of 200 units."""

    score: LayerScore
    at: float
    low: float
    high: float


def interval_bars(
    scores: Sequence[LayerScore], *, network_accuracy: float | None
) -> tuple[list[IntervalBar], float | None]:
    """Place accuracies on one common scale; also where the network's own stands."""
    ends = [end for score in scores for end in score.accuracy_interval]
    if network_accuracy is not None:
        ends.append(network_accuracy)
    low, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(10 + 180 * (value - low) / width, 1)

    bars = [
        IntervalBar(score, place(score.accuracy), *map(place, score.accuracy_interval))
        for score in scores
    ]
    return bars, None if network_accuracy is None else place(network_accuracy)


def scatter_places(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit points into the scatter plot, a common scale for both axes, y upwards.

    Returns
    -------
    ndarray
        (n_points, 2), rounded to one decimal.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array([SCATTER_WIDTH, SCATTER_HEIGHT], np.float64)
    width = np.where(high > low, high - low, 1.0)
    scale = ((size - 2 * _SCATTER_MARGIN) / width).min()
    centred = (points - (low + high) / 2) * scale * (1, -1)
    return np.asarray(np.round(centred + size / 2, 1))


def point_path(places: NDArray[np.float64]) -> str:
    """Draw points as one SVG path of strokes without length, which round caps make visible."""
    return "".join(f"M{x:g} {y:g}h0" for x, y in places.tolist())
