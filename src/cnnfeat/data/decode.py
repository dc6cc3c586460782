"""One encoded picture to pixels, as a viewer would show it.

Palettes become RGB, CMYK becomes RGB, opacity is laid over white, the EXIF orientation is applied,
of an animation the first frame is taken. 16-bit grey stays 16-bit. Colour profiles are not applied.
What a picture is, its first bytes say. HEIC and DICOM are read by packages that are extras.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging, features

from cnnfeat.data.dicom import DicomImage
from cnnfeat.data.source import open_file
from cnnfeat.errors import DataError, ImageError

if TYPE_CHECKING:
    from cnnfeat.records import Array

# As Pillow calls them. HEIF is known to it only once pillow-heif is there.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow refuses more, unless told otherwise: half a gigabyte as RGB
MAX_PIXELS_LIMIT = 2**31 - 1
_START_BYTES = 132  # by which every format can be told
_MARKS = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # what a PNG has of them
_ORIENTATION_TAG = 0x0112
_GREY = ("1", "L", "LA", "La", "I", "F")  # and "I;16" in its kinds
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
    warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif|pydicom)\.")
    _silence()
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > 2 * limit:  # Pillow refuses beyond the double
        Image.MAX_IMAGE_PIXELS = max_pixels // 2 + 1


@functools.cache
def _silence() -> None:
    """Keep what Pillow logs off the terminal where nobody asked for it, and libtiff's own words.

    Those libtiff writes past Python; the symbol is looked for in what Pillow has loaded of it.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def decode_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Array:
    """Read one picture file, which must be a regular one; see `decode_stream`."""
    with open_file(path, error=ImageError) as file:
        return decode_stream(file, name=str(path), max_pixels=max_pixels)


def decode_stream(
    stream: BinaryIO,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    scale: Callable[[Image.Image], Image.Image] | None = None,
) -> Array:
    """Read one encoded picture.

    Parameters
    ----------
    stream : BinaryIO
        At the picture's first byte, which is the stream's first.
    name : str
        For messages.
    max_pixels : int
        Width times height allowed; checked before anything is decoded.
    scale : callable, optional
        Gets pictures that are 8-bit grey or RGB by now, and gives others of that mode: what is
        made small before its pixels are copied out of Pillow costs no copy of the whole.

    Returns
    -------
    ndarray of shape (height, width, channels)
        One channel for grey, three for colour; uint8, uint16 or float32.

    Raises
    ------
    ImageError
        If it isn't a picture, is damaged, too large, or needs a package that isn't installed.
    """
    found = _decoded(stream, name=name, max_pixels=max_pixels)
    if isinstance(found, Image.Image):
        found = np.asarray(found if scale is None else scale(found))
    return found[:, :, np.newaxis] if found.ndim == 2 else found


def _decoded(stream: BinaryIO, *, name: str, max_pixels: int) -> Array | Image.Image:
    """Decode to an image of mode L or RGB where 8 bits hold it, else to pixels."""
    # JPEGs are decoded whole, though libjpeg could leave out what a smaller size doesn't show
    # (`Image.draft`): next to sharp edges that gives other grey levels, by tens of them, and which
    # pictures have none is known only once they are decoded.
    try:
        kind = format_of(stream.read(_START_BYTES))
        stream.seek(0)
        if kind == "DICOM":
            dicom = DicomImage(stream, name=name)
            _check_size(dicom.size, name=name, max_pixels=max_pixels)
            return dicom.pixels()
        if kind == "HEIC":
            _need_heif(name)
        formats = (*FORMATS, "HEIF") if kind == "HEIC" else FORMATS
        with Image.open(stream, formats=formats) as image:
            _check_size(image.size, name=name, max_pixels=max_pixels)
            image.load()
            return _standard(_upright(image), name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(stream)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: more than the {max_pixels:,} pixels allowed",
            hint="--max-pixels sets the limit; a smaller copy of the picture will do",
        ) from error
    except _DAMAGE as error:
        shorter = _without_texts(stream)
        if shorter is not None:
            return _decoded(shorter, name=name, max_pixels=max_pixels)
        raise ImageError(f"{name}: damaged: {error or type(error).__name__}") from error


def _without_texts(stream: BinaryIO) -> BinaryIO | None:
    """Leave out the texts and the profile of a PNG, which Pillow takes up to 1 MB; None: none."""
    stream.seek(0)
    data = stream.read()
    if format_of(data[:_START_BYTES]) != "PNG":
        return None
    kept, place = [data[:8]], 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in _TEXTS:
            kept.append(data[place:end])
        place = end
    shorter = b"".join(kept)
    return io.BytesIO(shorter) if len(shorter) < len(data) else None


def _check_size(size: tuple[int, int], *, name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} × {height} is {width * height:,} pixels; {max_pixels:,} are allowed",
            hint="--max-pixels sets the limit; a smaller copy of the picture will do",
        )


def has_colour(stream: BinaryIO, *, name: str, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an encoded picture has three channels; its pixels stay packed if its header tells.

    Parameters are those of `decode_stream`.

    Raises
    ------
    ImageError
        If it can't be read.
    """
    mode = _mode(stream)
    if mode is None:
        return bool(decode_stream(stream, name=name, max_pixels=max_pixels).shape[2] == 3)
    return mode not in _GREY and not mode.startswith("I;16")


def is_deep(stream: BinaryIO, *, name: str, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an encoded picture has 16 bits a pixel; as `has_colour` finds out."""
    mode = _mode(stream)
    if mode is None:
        found = decode_stream(stream, name=name, max_pixels=max_pixels).dtype
        return bool(found == np.uint16)
    return mode == "I" or mode.startswith("I;16")


def _mode(stream: BinaryIO) -> str | None:
    """Pillow's mode of a picture, by its header; None where that doesn't tell."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            return str(image.mode)
    except (Image.DecompressionBombError, *_DAMAGE):
        stream.seek(0)
        return None


def is_image(path: Path) -> bool:
    """Whether a file begins as pictures do that are read here."""
    try:
        with open_file(path) as file:
            return bool(format_of(file.read(_START_BYTES)))
    except (DataError, OSError):
        return False


def format_of(start: bytes) -> str:
    """Name the format of a picture by its first bytes: "PNG", "HEIC", "DICOM"; "" for none."""
    for name, marks in _MARKS.items():
        if start.startswith(marks):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0":
        return "BMP"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b"\n", b" "):
        return "PPM"
    if start[128:132] == b"DICM":
        return "DICOM"
    return _iso_format(start) if start[4:8] == b"ftyp" else ""


def _iso_format(start: bytes) -> str:
    """AVIF or HEIC, by the brands that a file of ISO 14496-12 gives itself."""
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[begin : begin + 4] for begin in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else ""


def _need_heif(name: str) -> None:
    try:
        _register_heif()
    except ImportError as error:
        raise ImageError(
            f"{name}: a HEIC picture needs pillow-heif, which is not installed",
            hint="pip install 'cnnfeat[heic]'",
        ) from error


@functools.cache
def _register_heif() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()


def _what_it_is(stream: BinaryIO) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size == 0:
        return "is empty"
    if format_of(stream.read(_START_BYTES)) == "AVIF" and not features.check("avif"):
        return "an AVIF picture, which this build of Pillow can't read"
    return f"not a picture, or damaged at its start; {', '.join(FORMATS)}, HEIC and DICOM are read"


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF data says nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        turn = _UPRIGHT.get(orientation)
    except _DAMAGE:
        return image
    return image if turn is None else image.transpose(turn)


def _standard(image: Image.Image, name: str) -> Array | Image.Image:
    """Bring an image of any mode to L or RGB, or its pixels to uint16 or float32."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        return _from_int32(np.asarray(image), name)
    return np.asarray(image) if image.mode == "F" else _grey_or_rgb(image)


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    grey = image.mode in _GREY
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _from_int32(pixels: Array, name: str) -> Array:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65_535:
        raise ImageError(f"{name}: 32-bit pixels from {low} to {high}; 0 to 65,535 are read")
    return pixels.astype(np.uint16)
