"""One picture file to pixels, as a viewer would show it.

Palettes become RGB, CMYK becomes RGB, opacity is laid over white, the EXIF orientation is applied,
of an animation the first frame is taken. 16-bit grey stays 16-bit. Colour profiles are not applied.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from cnnfeat.data.source import open_regular
from cnnfeat.errors import DataError, ImageError

if TYPE_CHECKING:
    from cnnfeat.records import Array

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # Pillow refuses more, unless told otherwise: half a gigabyte as RGB
MAX_PIXELS_LIMIT = 2**31 - 1
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for damaged files, found by feeding it thousands of them.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
)


def prepare_pillow(max_pixels: int) -> None:
    """Fit Pillow's own settings to ours.

    Its remarks on odd files stay out of the terminal: what matters becomes an error. Its own limit
    on the size of pictures is raised, for the whole process, where ours is above it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > 2 * limit:  # Pillow refuses beyond the double
        Image.MAX_IMAGE_PIXELS = max_pixels // 2 + 1


def decode_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Array:
    """Read one picture file.

    Parameters
    ----------
    path : Path
        A regular file.
    max_pixels : int
        Width times height allowed; checked before anything is decoded.

    Returns
    -------
    ndarray of shape (height, width, channels)
        One channel for grey, three for colour; uint8, uint16 or float32.

    Raises
    ------
    ImageError
        If the file can't be opened, isn't a picture, is damaged, or too large.
    """
    try:
        with (
            open_regular(path, error=ImageError) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{path}: {width} × {height} is {width * height:,} pixels; "
                    f"{max_pixels:,} are allowed",
                    hint="--max-pixels sets the limit",
                )
            image.load()
            return _pixels(_upright(image), path)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: {_what_it_is(path)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: more than the {max_pixels:,} pixels allowed",
            hint="--max-pixels sets the limit",
        ) from error
    except _DAMAGE as error:
        raise ImageError(f"{path}: damaged: {error or type(error).__name__}") from error


def is_image(path: Path) -> bool:
    """Whether a file begins as one of `FORMATS` does."""
    try:
        with open_regular(path) as file:
            start = file.read(16)
    except (DataError, OSError):
        return False
    return (
        start.startswith(
            (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        )
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == b"\0\0\0\0")
        or (start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b"\n", b" "))
    )


def _what_it_is(path: Path) -> str:
    if path.stat().st_size == 0:
        return "is empty"
    return f"not a picture, or damaged at its start; {', '.join(FORMATS)} are read"


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF data says nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        turn = _UPRIGHT.get(orientation)
    except _DAMAGE:
        return image
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image, path: Path) -> Array:
    """Pixels of an image of any mode, (height, width, channels)."""
    if image.mode.startswith("I;16"):
        pixels: Array = np.asarray(image).astype(np.uint16)
    elif image.mode == "I":
        pixels = _from_int32(np.asarray(image), path)
    elif image.mode == "F":
        pixels = np.asarray(image)
    else:
        pixels = np.asarray(_grey_or_rgb(image))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _from_int32(pixels: Array, path: Path) -> Array:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65_535:
        raise ImageError(f"{path}: 32-bit pixels from {low} to {high}; 0 to 65,535 are read")
    return pixels.astype(np.uint16)
