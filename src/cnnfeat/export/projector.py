"""Files for TensorBoard's embedding projector, made without TensorBoard.

The format is described at https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin and
in the messages of `projector_config.proto`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cnnfeat.errors import UsageError
from cnnfeat.export.excerpt import Excerpt, number_lines
from cnnfeat.files import check_output, replacing
from cnnfeat.pictures import Pictures, sprite_sheet
from cnnfeat.progress import Task
from cnnfeat.records import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("cnnfeat")

VECTORS, METADATA, SPRITE = "vectors.tsv", "metadata.tsv", "sprite.png"
CONFIG = "projector_config.pbtxt"
SHEET_SIDE = 8192  # pixels: the widest texture the projector takes
THUMBNAIL_SIDE = 64
_SMALLEST_SIDE = 8
_MANY_POINTS = 10_000


def write_projector(
    excerpt: Excerpt,
    out: Path,
    *,
    source: Source | None,
    overwrite: bool,
    task: Task,
) -> list[Path]:
    """Write vectors, metadata, pictures (where there is a source) and the configuration.

    Raises
    ------
    UsageError
        If more than one layer is chosen.
    DataError
        If the source is not what the features were made from.
    """
    if len(excerpt.layers) != 1:
        raise UsageError(
            f"the projector shows one layer; {excerpt.file.path} has: {', '.join(excerpt.layers)}",
            hint="pick one with --layer",
        )
    if excerpt.total_rows > _MANY_POINTS:
        logger.warning(
            "%s points: browsers get slow above %s; --limit takes the first rows of each split",
            f"{excerpt.total_rows:,}",
            f"{_MANY_POINTS:,}",
        )
    pictures = Pictures(excerpt.file, source) if source else None
    names = [VECTORS, METADATA, *([SPRITE] if pictures else []), CONFIG]
    for name in names:
        check_output(out / name, overwrite=overwrite)
    _write_rows(excerpt, out, task)
    side = _write_sprite(excerpt, pictures, out) if pictures else None
    with replacing(out / CONFIG) as partial:
        partial.write_text(_config(excerpt.layers[0], side), "utf-8")
    return [out / name for name in names if name != SPRITE or side]


def _write_rows(excerpt: Excerpt, out: Path, task: Task) -> None:
    with (
        replacing(out / VECTORS) as vectors_path,
        replacing(out / METADATA) as metadata_path,
        vectors_path.open("w", encoding="utf-8", newline="\n") as vectors,
        metadata_path.open("w", encoding="utf-8", newline="\n") as metadata,
    ):
        metadata.write("id\tlabel\tsplit\n")
        for chunk in excerpt.chunks():
            for numbers in number_lines(chunk.features[0], separator="\t"):
                vectors.write(numbers + "\n")
            for row, name in enumerate(chunk.ids):
                label = "" if chunk.labels is None else excerpt.class_name(chunk.labels[row])
                metadata.write(f"{_cell(name)}\t{_cell(label)}\t{_cell(chunk.split)}\n")
            task.advance(len(chunk))


def _cell(text: str) -> str:
    """Keep a text inside its cell: tabs, line ends and the like become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _write_sprite(excerpt: Excerpt, pictures: Pictures, out: Path) -> int | None:
    """Write one picture of all pictures, and say how wide a cell is."""
    columns = math.ceil(math.sqrt(excerpt.total_rows))
    side = min(THUMBNAIL_SIDE, SHEET_SIDE // max(columns, 1))
    if side < _SMALLEST_SIDE:
        logger.warning("too many points for pictures; --limit takes fewer")
        return None
    cells = _cells(excerpt, pictures, side)
    largest = max((max(cell.shape[:2]) for cell in cells if cell is not None), default=side)
    sheet = sprite_sheet(cells, side=largest, columns=columns)
    with replacing(out / SPRITE) as partial:
        Image.fromarray(sheet).save(partial, format="PNG", optimize=True)
    return largest


def _cells(excerpt: Excerpt, pictures: Pictures, side: int) -> Sequence[NDArray[np.uint8] | None]:
    cells: list[NDArray[np.uint8] | None] = []
    for split in excerpt.splits:
        rows = range(excerpt.n_rows(split))
        found = pictures.thumbnails(split, rows, side=side)
        cells.extend(found.get(row) for row in rows)
    return cells


def _config(layer: str, side: int | None) -> str:
    """Write the configuration as protocol-buffer text."""
    name = layer.replace("\\", "\\\\").replace('"', '\\"')
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    lines = [
        "embeddings {",
        f'  tensor_name: "{name}"',
        f'  tensor_path: "{VECTORS}"',
        f'  metadata_path: "{METADATA}"',
    ]
    if side:
        lines += [
            "  sprite {",
            f'    image_path: "{SPRITE}"',
            f"    single_image_dim: {side}",
            f"    single_image_dim: {side}",
            "  }",
        ]
    return "\n".join([*lines, "}", ""])
