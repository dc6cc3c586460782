"""The images behind the rows of a feature file, read once more from where they came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from cnnfeat.copies import CopiedSource
from cnnfeat.divided import redivide
from cnnfeat.errors import ConfigError, DataError
from cnnfeat.features import FeatureFile
from cnnfeat.knobs import from_record
from cnnfeat.options import ExtractOptions, parse_augment
from cnnfeat.records import ImageTarget, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array, RowNumbers

_READ_AHEAD = 64  # images decoded at a time
_GAP = 4  # rows that lie this near are read in one go


class Pictures:
    """The images of a feature file's rows.

    Parameters
    ----------
    file : FeatureFile
        Whose rows are meant.
    source : Source
        Where its images came from, opened by the caller.

    Raises
    ------
    DataError
        If the source is not the one the features were made from, or has changed since.
    """

    def __init__(self, file: FeatureFile, source: Source) -> None:
        recorded = file.provenance.source_fingerprint
        found = source.fingerprint().digest
        if found != recorded:
            raise DataError(
                f"{source.name} is not what {file.path.name} was made from: its fingerprint is "
                f"{found[:12]}…, the file says {recorded[:12]}…",
                hint="extract the features again, or put the images back as they were",
            )
        self._file, self._source = file, _copied(_divided(source, file), file)
        self._positions: dict[str, NDArray[np.int64]] = {}

    def read(
        self, split: str, rows: Sequence[int], *, target: ImageTarget | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Read the images of some rows.

        Parameters
        ----------
        split : str
            A split of the file.
        rows : sequence of int
            Rows of it.
        target : ImageTarget, optional
            What the source shall bring images to.

        Yields
        ------
        row : int
            Each row asked for, once, in rising order; rows whose image can't be read are left out.
        image : ndarray
            (height, width, channels), of the source's own type.
        """
        positions = self._split_positions(split)
        row_of = {int(positions[row]): int(row) for row in rows}
        for start, stop in _spans(sorted(row_of)):
            for batch in self._source.batches(
                split,
                batch_size=_READ_AHEAD,
                start=start,
                stop=stop,
                target=target,
                on_error="skip",
            ):
                left_out = {sample.row for sample in batch.skipped}
                read = (place for place in range(batch.start, batch.stop) if place not in left_out)
                for place, image in zip(read, batch.images, strict=True):
                    if place in row_of:
                        yield row_of[place], image

    def one(self, split: str, row: int) -> Array:
        """Read one row's image, (height, width, channels).

        Raises
        ------
        DataError
            If it can't be read any more.
        """
        for _, image in self.read(split, [row]):
            return image
        raise DataError(f"the image behind row {row} of {split} can't be read any more")

    def thumbnails(
        self, split: str, rows: Sequence[int], *, side: int
    ) -> dict[int, NDArray[np.uint8]]:
        """Read small forms of some rows' images: {row: (height, width[, 3]) of at most `side`}."""
        return {row: thumbnail(image, side=side) for row, image in self.read(split, rows)}

    def _split_positions(self, split: str) -> NDArray[np.int64]:
        """Where in the source each row stands: samples that were left out have no row."""
        if split not in self._positions:
            skipped = [sample.row for sample in self._file.skipped(split)]
            n_rows = self._file.n_rows(split)
            places = np.arange(n_rows + len(skipped), dtype=np.int64)
            self._positions[split] = np.delete(places, skipped)[:n_rows]
        return self._positions[split]


def _divided(source: Source, file: FeatureFile) -> Source:
    """Divide the source as it was for the features, which have its splits."""
    kept = file.provenance.division
    if kept is None or source.division is not None:
        return source
    divided = redivide(source, kept)
    if divided is None:
        raise DataError(
            f"{source.name} can't be divided as it was for {file.path.name}",
            hint="extract the features again",
        )
    return divided


def _copied(source: Source, file: FeatureFile) -> Source:
    """Put copies behind the rows of the source, as there were for the features."""
    recorded = file.provenance.options.get("extract", {})
    if not recorded.get("augment_copies"):
        return source
    try:
        options = from_record(ExtractOptions, recorded)
    except ConfigError as error:
        raise DataError(f"{file.path.name}: made by another version of cnnfeat: {error}") from error
    n_copies, augment = options.augment_copies or 0, parse_augment(options.augment)

    def vary(images: Array, *, turn: int, rows: RowNumbers) -> Array:
        from cnnfeat.network.starting import load_tensorflow  # only where a copy is looked at

        load_tensorflow()
        from cnnfeat.network.augmentation import Augmentation

        return Augmentation(augment)(images, turn=turn, rows=rows)

    return CopiedSource(source, n_copies, vary, limit=options.limit)


def _spans(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Join neighbouring places: [1, 2, 3, 90] is (1, 4), (90, 91)."""
    start = stop = None
    for place in places:
        if start is None or stop is None:
            start, stop = place, place + 1
        elif place < stop + _GAP:
            stop = place + 1
        else:
            yield start, stop
            start, stop = place, place + 1
    if start is not None and stop is not None:
        yield start, stop


def as_bytes(image: Array) -> NDArray[np.uint8]:
    """Bring an image to 8 bits: (height, width) if grey, (height, width, 3) if coloured.

    Whole numbers keep their scale; of floating-point images the least value becomes black and the
    greatest white. Of more than 3 channels the first 3 are shown, of 2 the first.
    """
    shown = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    if shown.dtype == np.uint8:
        return cast("NDArray[np.uint8]", shown)
    if shown.dtype == np.uint16:
        return cast("NDArray[np.uint8]", (shown >> 8).astype(np.uint8))  # type: ignore[operator]
    values = np.nan_to_num(shown.astype(np.float64))
    low, high = values.min(), values.max()
    scaled: NDArray[np.float64] = (values - low) * (255 / ((high - low) or 1))
    return np.rint(scaled).astype(np.uint8)


def thumbnail(image: Array, *, side: int) -> NDArray[np.uint8]:
    """Make an image fit a square of `side` pixels, its proportions kept; never enlarged."""
    pixels = as_bytes(image)
    if max(pixels.shape[:2]) <= side:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(picture, np.uint8)


def sprite_sheet(
    thumbnails: Sequence[NDArray[np.uint8] | None], *, side: int, columns: int
) -> NDArray[np.uint8]:
    """Lay small images out in rows of `columns` cells of `side` pixels; None is an empty cell.

    Returns
    -------
    ndarray
        (rows * side, columns * side) uint8 if all are grey, else (…, 3).
    """
    coloured = any(item is not None and item.ndim == 3 for item in thumbnails)
    n_rows = max(-(-len(thumbnails) // columns), 1)
    sheet = np.zeros((n_rows * side, columns * side, *((3,) if coloured else ())), np.uint8)
    for place, item in enumerate(thumbnails):
        if item is None:
            continue
        height, width = item.shape[:2]
        top = place // columns * side + (side - height) // 2
        left = place % columns * side + (side - width) // 2
        shown = item[..., None] if coloured and item.ndim == 2 else item
        sheet[top : top + height, left : left + width] = shown
    return sheet
