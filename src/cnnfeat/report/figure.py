"""How every picture looks, and how it comes to disk: no screen needed, whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from cnnfeat.errors import UsageError
from cnnfeat.files import replacing

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

FORMATS = (".png", ".svg")

# Okabe & Ito, https://jfly.uni-koeln.de/color/: told apart by colour-blind eyes. Yellow is left out
# (too faint on white); markers tell further classes apart.
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
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


@contextmanager
def drawing(out: Path, *, size: tuple[float, float], dpi: float = 150) -> Iterator[Figure]:
    """Give an empty figure to draw on, and write it to `out` when the block ends.

    Parameters
    ----------
    out : Path
        Ends in `.png` or `.svg`; an existing file is replaced, whole.
    size : tuple of float
        Width and height in inches.
    dpi : float
        Dots per inch of a PNG.

    Raises
    ------
    UsageError
        If `out` ends otherwise.
    StorageError
        If it can't be written.
    """
    check_format(out)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with replacing(out) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
            warnings.filterwarnings("ignore", message="constrained_layout not applied")
            figure.savefig(
                partial,
                format=out.suffix[1:].lower(),
                dpi=dpi,
                metadata={"Date": None} if out.suffix.lower() == ".svg" else None,
            )


def check_format(out: Path) -> None:
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
