"""Small images as text, to stand inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_JPEG_FROM = 48  # pixels a side: smaller colour images are as small in PNG, and exact
_JPEG_QUALITY = 80


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Write an image as a data URI: PNG, or JPEG for larger coloured ones.

    Parameters
    ----------
    pixels : ndarray
        (height, width) grey, (height, width, 3) RGB or (height, width, 4) RGBA.
    """
    photo = pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= _JPEG_FROM
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if photo:
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    else:
        image.save(buffer, format="PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
