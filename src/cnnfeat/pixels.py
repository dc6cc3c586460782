"""Which numbers nothing can be computed from, and which pixels a network would take for others.

Features don't show what is wrong: a rectifier may make 0 of NaN, and then they are ordinary
numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e15  # of a number whose square still goes into a sum of single precision
_ROUNDING = 1e-3


def unusable(rows: NDArray[np.generic]) -> dict[int, str]:
    """Say which rows hold numbers that nothing can be computed from, and what they hold.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, ...)
        Images or features, of any dtype; integers are always good.

    Returns
    -------
    dict of int to str
        Words such as "784 of 784 numbers are NaN": NaN, infinite, or beyond 1e15.
    """
    if rows.dtype.kind != "f" or not rows.size or _is_small(rows):
        return {}
    low, high = _extremes(rows)
    if low >= -LARGEST and high <= LARGEST:  # NaN is neither
        return {}
    bad = np.flatnonzero(~is_usable(rows).reshape(len(rows), -1).all(axis=1))
    return {row: _what_it_holds(rows[row]) for row in bad.tolist()}


def is_usable(numbers: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which of some floating-point numbers are neither NaN, infinite nor beyond 1e15."""
    largest = min(LARGEST, float(np.finfo(numbers.dtype.name).max))
    with np.errstate(invalid="ignore"):  # a NaN may be one that signals
        usable: NDArray[np.bool_] = np.abs(numbers) <= largest
    return usable


def _is_small(rows: NDArray[np.generic]) -> bool:
    """Whether a sum of squares alone shows that all is well: one fast pass where it does."""
    if rows.dtype not in (np.float32, np.float64) or not rows.flags.c_contiguous:
        return False
    flat = rows.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.dot(flat, flat) <= LARGEST**2)  # NaN is not


def _what_it_holds(row: NDArray[np.generic]) -> str:
    numbers = np.abs(row)
    kinds = {
        "NaN": np.isnan(numbers),
        "infinite": np.isinf(numbers),
        f"beyond {LARGEST:g}": np.isfinite(numbers) & ~is_usable(numbers),
    }
    counts = {what: int(np.count_nonzero(bad)) for what, bad in kinds.items()}
    return ", ".join(f"{n:,} of {row.size:,} numbers are {what}" for what, n in counts.items() if n)


def range_warning(images: NDArray[np.generic], *, unit: bool) -> str:
    """Say that pixels are taken for others than they are; "" where they aren't.

    Parameters
    ----------
    images : ndarray of shape (n_samples, height, width, channels)
        Of any dtype. What white is of whole numbers, their dtype says; of floating-point ones it is
        1, unless some are negative: then they have been centred.
    unit : bool
        Whether the network is given 1 for white; else it is given the numbers as they are, and
        takes 255 for it.
    """
    if images.dtype == np.uint16 and images.size and not unit and int(images.max()) > 255:
        return (
            f"pixels of 16 bits go up to {images.max():,}, and come as they are to a network that "
            "scales by itself: unless it was made for them, it takes 255 for white, and 8-bit "
            "copies are what it needs"
        )
    if images.dtype.kind != "f" or not images.size:
        return ""
    low, high = _extremes(images)
    if low < 0 or (high > 1 + _ROUNDING) != unit:
        return ""
    if unit:
        return (
            f"floating-point pixels go up to {high:g}, and are taken as they are, where 1 would be "
            "white: these aren't the features of the same pixels as uint8; if 255 is white, store "
            "them as uint8 or divide them by 255"
        )
    return (
        f"floating-point pixels go up to {high:g} only, and the network takes 255 for white and "
        "scales by itself: to it these are all but black; if 1 is white, multiply them by 255 or "
        "store them as uint8"
    )


def _extremes(rows: NDArray[np.generic]) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):
        return float(rows.min()), float(rows.max())
