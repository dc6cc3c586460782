"""How every picture looks, and how it comes to disk or into a page: no screen needed."""

from __future__ import annotations

import base64
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from PIL import Image

from cnnfeat.errors import UsageError
from cnnfeat.files import replacing
from cnnfeat.temporary import temporary_folder

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.typing import RcKeyType
    from numpy.typing import NDArray

_log = logging.getLogger("cnnfeat")
# With letters of China, Japan, Korea, India and others; those that are installed are used.
_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic", "NanumGothic"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "MS Gothic", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "Noto Sans Arabic"),
    *("Noto Sans", "FreeSans", "Unifont"),
)
_MISSING = re.compile(r"Glyph (\d+) .*missing from")
FORMATS = (".png", ".svg")
_GAP = 0.08  # inches above and below what lies over each other
_ROUNDING = 1.06  # letters are drawn at whole pixels, which makes lines longer by up to so much

# Ten that colour-blind eyes tell apart as well as ten can be, on white and on dark: M. A. Petroff,
# "Accessible color sequences for data visualization", arXiv 2107.02270, 2021. Further classes have
# them again, with other markers.
CLASS_COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
GOOD, BAD = "#0072B2", "#D55E00"
AMOUNTS = "Blues"  # for what begins at 0: light on paper
SIGNED = "RdBu_r"  # for what has a sign, 0 in the middle

_STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "cnnfeat",  # equal pictures are equal files
    "text.parse_math": False,  # a class may be called "$x^2$"
}
# The cards of the page, by night; its style sheet has the same colours.
_DARK: dict[RcKeyType, Any] = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#1a2029"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e6e9ee"),
    "axes.edgecolor": "#a9b3bf",
    "axes.prop_cycle": "cycler(color=['#4aa3df', '#f0743e'])",
}
_LIGHT: dict[RcKeyType, Any] = {"axes.prop_cycle": f"cycler(color=['{GOOD}', '{BAD}'])"}
_JPEG_FROM = 48  # pixels a side: smaller colour images are as small in PNG, and exact
_JPEG_QUALITY = 80


@contextmanager
def drawing(
    out: Path, *, size: tuple[float, float], dpi: float = 150, dark: bool = False
) -> Iterator[Figure]:
    """Give an empty figure to draw on, and write it to `out` when the block ends.

    Parameters
    ----------
    out : Path
        Ends in `.png` or `.svg`; an existing file is replaced, whole.
    size : tuple of float
        Width and height in inches.
    dpi : float
        Dots per inch of a PNG.
    dark : bool
        Whether it is for a dark page. The colours C0 and C1 are those of good and bad in both.

    Raises
    ------
    UsageError
        If `out` ends otherwise.
    StorageError
        If it can't be written.
    """
    check_picture(out)
    families: dict[RcKeyType, Any] = {"font.family": ["sans-serif", *_other_fonts()]}
    with mpl.rc_context(_STYLE | families | (_DARK if dark else _LIGHT)):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=_GAP))
        yield figure
        with replacing(out) as partial, _missing_letters_said(out), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="constrained_layout not applied")
            figure.savefig(
                partial,
                format=out.suffix[1:].lower(),
                dpi=dpi,
                metadata={"Date": None} if out.suffix.lower() == ".svg" else None,
            )


@functools.cache
def _other_fonts() -> tuple[str, ...]:
    """Installed fonts that have the letters matplotlib's own font lacks."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@contextmanager
def _missing_letters_said(out: Path) -> Iterator[None]:
    """Say which letters no font has: boxes are drawn for them, all alike."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Glyph .* missing from")
        yield
    letters: dict[str, None] = {}
    for one in caught:
        if found := _MISSING.match(str(one.message)):
            letters[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if letters:
        _log.warning(
            "%s: no font here has %s: drawn as boxes, which look alike; installed fonts are used, "
            "such as Noto Sans CJK",
            *(out, ", ".join(letters)),
        )


def check_picture(out: Path) -> None:
    """Refuse a picture that would be neither PNG nor SVG.

    Raises
    ------
    UsageError
        Always the same, naming both.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"a picture is written as {' or '.join(FORMATS)}, not as {str(out)!r}",
            hint="end the name after -o with .png or .svg",
        )


def short(name: str, *, limit: int = 24) -> str:
    """Make a name from the data fit a label: no control characters, not too long."""
    clean = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def fitted(text: str, *, inches: float, size: float, lines: int = 4) -> str:
    """Break a text into lines that fit a width: neighbours' titles don't touch.

    Parameters
    ----------
    text : str
        Its own lines stay apart. A word that is too long ends in "…".
    inches : float
        How wide a line may be.
    size : float
        Of the letters, in points.
    lines : int
        At most so many; what is left over is "…".
    """
    broken: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and text_width(longer, size=size) > inches:
                broken.append(line)
                longer = word
            line = _cut(longer, inches=inches, size=size)
        broken.append(line)
    if len(broken) > lines:
        broken[lines - 1 :] = [_cut(f"{broken[lines - 1]} …", inches=inches, size=size)]
    return "\n".join(broken)


def text_width(text: str, *, size: float) -> float:
    """Measure one line of text in the fonts of the picture that is drawn, in inches."""
    font = FontProperties(family=mpl.rcParams["font.family"], size=size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # said when drawn
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return _ROUNDING * float(width) / 72


def _cut(line: str, *, inches: float, size: float) -> str:
    if text_width(line, size=size) <= inches:
        return line
    kept = line.rstrip("…")
    while kept and text_width(f"{kept}…", size=size) > inches:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


class Plot(Protocol):
    """Draws one picture to a file."""

    def __call__(self, *, out: Path, dark: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A picture as data URIs, one for light pages and one for dark ones."""

    light: str
    dark: str


def page_figure(plot: Plot) -> PageFigure:
    """Draw a picture for a page: twice, as SVG, with nothing in it to be loaded."""

    def uri(name: str, *, dark: bool) -> str:
        out = folder / name
        plot(out=out, dark=dark)
        return f"data:image/svg+xml;base64,{base64.b64encode(out.read_bytes()).decode('ascii')}"

    with temporary_folder() as folder:
        return PageFigure(uri("light.svg", dark=False), uri("dark.svg", dark=True))


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
