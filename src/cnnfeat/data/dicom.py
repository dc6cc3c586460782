"""A DICOM picture to pixels, as a viewer would show it; pydicom reads the file.

The standard, https://dicom.nema.org/medical/dicom/current/output/html/part03.html: rescaling is in
C.11.1, the window in C.11.2.1.2.1. Of several frames the first is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cnnfeat.errors import ImageError

if TYPE_CHECKING:
    from cnnfeat.records import Array


class DicomImage:
    """A DICOM file, of which nothing is decoded yet.

    Parameters
    ----------
    stream : BinaryIO
        At the file's first byte.
    name : str
        For messages.

    Raises
    ------
    ImageError
        If pydicom isn't installed.
    """

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        try:
            import pydicom
        except ImportError as error:
            raise ImageError(
                f"{name}: a DICOM picture needs pydicom, which is not installed",
                hint="pip install 'cnnfeat[dicom]'",
            ) from error
        self._dataset = pydicom.dcmread(stream)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow's images say it."""
        return int(self._dataset.Columns), int(self._dataset.Rows)

    def pixels(self) -> Array:
        """Decode the picture, (height, width, channels) uint8, uint16 or float32."""
        from pydicom.pixels import apply_color_lut, pixel_array

        dataset = self._dataset
        stored: Array = pixel_array(dataset, index=0)
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)[..., :3]
        if stored.ndim == 3:
            return stored
        window = self._first("WindowCenter"), self._first("WindowWidth")
        levels = grey_levels(
            stored,
            bits=int(dataset.get("BitsStored") or 16),
            slope=self._first("RescaleSlope") or 1.0,
            intercept=self._first("RescaleIntercept") or 0.0,
            window=None if window[0] is None or window[1] is None else (window[0], window[1]),
            inverted=photometric == "MONOCHROME1",
        )
        return levels[..., np.newaxis]

    def _first(self, element: str) -> float | None:
        """The number of an element, the first if it has several; None where it is missing."""
        value = self._dataset.get(element)
        if value is None or value == "":
            return None
        return float(value if isinstance(value, int | float | str) else value[0])


def grey_levels(
    stored: Array,
    *,
    bits: int,
    slope: float = 1.0,
    intercept: float = 0.0,
    window: tuple[float, float] | None = None,
    inverted: bool = False,
) -> Array:
    """Turn stored values into what a viewer shows, black 0 and white full.

    Parameters
    ----------
    stored : ndarray of shape (height, width)
        Integers of `bits` bits, or floats, which stay what they are.
    bits : int
        Up to 8 become uint8, more become uint16.
    slope, intercept : float
        Of the rescaling.
    window : (center, width), optional
        After the rescaling, what is black at its lower end and white at its upper one. None: the
        smallest and the largest number of so many bits.
    inverted : bool
        Small values are white.
    """
    if stored.dtype.kind == "f":
        return stored.astype(np.float32)
    least = -(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0
    low, high = sorted((least * slope + intercept, (least + 2**bits - 1) * slope + intercept))
    if window is not None:
        center, width = window
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    shares = (stored.astype(np.float64) * slope + intercept - low) / max(high - low, 1e-9)
    shares = shares.clip(0, 1)
    if inverted:
        shares = 1 - shares
    if bits <= 8:
        return np.asarray(np.rint(shares * 255), np.uint8)
    return np.asarray(np.rint(shares * 65_535), np.uint16)
