"""How bright the pixels of images are, and whether two sets of images are each other's opposite.

Digits drawn light on dark are told from such on white paper, whatever else is in the pictures: by
where the ground lies that most of the pixels belong to. Pictures in colour have no opposite here:
photographs of the night are none of those of the day.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cnnfeat.documents import Items, Range, Share
from cnnfeat.records import Array, ImageTarget, Json, Source

_BINS = 16
_GROUND = _BINS // 4  # a ground is so many neighbouring bins that hold most of the pixels
_COLOURED = 0.1  # photographs have 0.12 to 0.26, blue ink on warm paper 0.09
_CHUNK = 2**20  # values measured at a time
_ROUNDING = 1e-3
_PLACES, _AT_A_PLACE = 8, 8  # of a split, where images are looked at, and how many at each


@dataclass(frozen=True, slots=True)
class Brightness:
    """Of all pixels of some images; 0 is black, 1 white."""

    mean: Annotated[float, Range(-_ROUNDING, 1 + _ROUNDING)]
    spread: Annotated[float, Range(0)]  # standard deviation
    colour: Annotated[float, Range(0)]  # that of red less green and blue less green, as one
    histogram: Annotated[tuple[Share, ...], Items(_BINS)]  # of the pixels, from black to white

    def to_json(self) -> dict[str, Json]:
        """Make a card's record of it."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def is_opposite_of(self, other: Brightness) -> bool:
        """Whether these images are dark on light where the others are light on dark, or vice versa.

        The others have most of their pixels in one end of the scale; most of these lie close
        together in its other half.
        """
        if max(self.colour, other.colour) > _COLOURED:
            return False
        own, others = np.array(self.histogram), np.array(other.histogram)
        if others[:_GROUND].sum() > 0.5:
            return self.mean > 0.5 and _has_bright_ground(own)
        bright = bool(others[-_GROUND:].sum() > 0.5)
        return bright and self.mean < 0.5 and _has_bright_ground(own[::-1])


def _has_bright_ground(histogram: NDArray[np.float64]) -> bool:
    half = histogram[_BINS // 2 :]
    return bool(np.convolve(half, np.ones(_GROUND), "valid").max() > 0.5)


def measure(blocks: Iterable[Array]) -> Brightness | None:
    """Measure images; None where it can't be said what is white: floats outside 0 to 1.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (n_samples, height, width, channels)
        uint8, uint16 or float32.
    """
    counts, total = np.zeros(_BINS), np.zeros(2)  # sums of values and of their squares
    apart, n_colours = np.zeros((2, 2)), 0  # the same of the two differences
    for values in _pixels(blocks):
        if not (values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING):  # NaN is neither
            return None
        places = np.clip((values * _BINS).astype(np.intp), 0, _BINS - 1)
        counts += np.bincount(places.ravel(), minlength=_BINS)
        total += _sums(values.ravel())
        if values.shape[1] == 3:
            apart += [_sums(values[:, channel] - values[:, 1]) for channel in (0, 2)]
            n_colours += len(values)
    n_values = counts.sum()
    if not n_values:
        return None
    colour = float(np.sqrt(sum(_variance(sums, n_colours) for sums in apart))) if n_colours else 0.0
    return Brightness(
        mean=float(total[0] / n_values),
        spread=float(np.sqrt(_variance(total, n_values))),
        colour=colour,
        histogram=tuple((counts / n_values).tolist()),
    )


def _pixels(blocks: Iterable[Array]) -> Iterator[NDArray[np.float64]]:
    """Pixels (n_pixels, channels) from 0 to 1, some images at a time."""
    for images in blocks:
        whole = images.dtype.kind != "f"
        full = float(np.iinfo(images.dtype).max) if whole else 1.0  # type: ignore[type-var]
        at_once = max(1, _CHUNK * len(images) // max(1, images.size))
        for start in range(0, len(images), at_once):
            chosen = images[start : start + at_once]
            yield chosen.reshape(-1, chosen.shape[-1]).astype(np.float64) / full


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([values.sum(), values @ values])


def _variance(sums: NDArray[np.float64], n_values: float) -> float:
    return max(0.0, float(sums[1] / n_values - (sums[0] / n_values) ** 2))


def some_images(source: Source, split: str, target: ImageTarget) -> Iterator[Array]:
    """Read a few images from all over a split, brought to a target but for their channels."""
    n_rows = source.splits[split].n_samples
    for start in sorted({n_rows * place // _PLACES for place in range(_PLACES)}):
        for batch in source.batches(
            split,
            batch_size=_AT_A_PLACE,
            start=start,
            stop=min(n_rows, start + _AT_A_PLACE),
            target=replace(target, channels=None),
            on_error="skip",
        ):
            yield batch.images


def opposites_warning(blocks: Iterable[Array], known: Brightness | None, *, inverted: bool) -> str:
    """Say that images are the opposite of what a network was trained on; "" where they are not.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (n_samples, height, width, channels)
        Images as the network gets them, but for their own number of channels.
    known : Brightness, optional
        Of the network's training pixels, as its card has it.
    inverted : bool
        Whether they were inverted for it.
    """
    given = None if known is None else measure(blocks)
    if known is None or given is None or not given.is_opposite_of(known):
        return ""
    own, others = ("light", "dark") if given.mean > 0.5 else ("dark", "light")
    way_on = (
        "they are inverted, and would not be without --invert"
        if inverted
        else "--invert turns light into dark, and dark into light"
    )
    return (
        f"the images are mostly {own}, the opposite of those that the network was trained on, "
        f"which were mostly {others}: {way_on}"
    )
